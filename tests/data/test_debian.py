"""Files laid out as the packages lay them out are found, named and described; sounds are not."""

import pytest

from audiolm_jax.data import debian

VOICE = 'festival/voices/russian/msu_ru_nsh_clunits'


def fill(share, files):
  for name, text in files.items():
    (share / name).parent.mkdir(parents=True, exist_ok=True)
    (share / name).write_text(text, 'utf-8')


def found(clips, share):
  return [(clip.path.removeprefix(f'{share}/'), *clip[1:4]) for clip in clips]


def test_festvox_has_texts_and_labels(tmp_path):
  text = '( ru_0001 "Он сказал: \\"да\\"." )\n( ru_0003 "Нет." )\n'
  fill(tmp_path, {f'{VOICE}/etc/txt.done.data': text, f'{VOICE}/wav/ru_0001.wav': ''})
  (clip,) = debian.festvox_ru(tmp_path)
  assert clip[1:4] == ('festvox-ru', 'ru', 'Он сказал: "да".')
  assert clip.labels == str(tmp_path / VOICE / 'lab/ru_0001.lab')


def test_prompts_of_one_person_in_two_languages_are_one_voice(tmp_path):
  names = [
    'en_US_f_Allison/hello',
    'en_US_f_Allison/silence/1',
    'en_US_f_Allison/beep',
    'es_MX_f_Allison/digits/1',
    'it_IT_m_Carlo/is',
    'fr_CA_f_June/tt-monkeys',
  ]
  fill(tmp_path, {f'asterisk/sounds/{name}.g722': '' for name in names})
  assert found(debian.asterisk(tmp_path), tmp_path / 'asterisk/sounds') == [
    ('en_US_f_Allison/hello.g722', 'asterisk-allison', 'en', None),
    ('es_MX_f_Allison/digits/1.g722', 'asterisk-allison', 'es', None),
    ('it_IT_m_Carlo/is.g722', 'asterisk-carlo', 'it', None),
  ]


def test_dialogues_have_roles_and_only_lines_of_the_script_are_speech(tmp_path):
  lines = [
    ('let-m-a', 'font_small', 'Co je "to"?'),
    ('let-v-b', 'font_big', 'To je vrak.'),
    ('pc-1', 'font_linuxer1', 'Modem.'),
    ('song', '', 'La la.'),
  ]
  script = '\n\n'.join(
    'dialogId("{}", "{}", "English.")\ndialogStr("{}")'.format(name, font, text.replace('"', '\\"'))
    for name, font, text in lines
  )
  sounds = {f'games/fillets-ng/sound/city/cs/{name}.ogg': '' for name, _, _ in lines}
  sounds |= {
    'games/fillets-ng/sound/city/cs/click.ogg': '',
    'games/fillets-ng/sound/city/en/let-m-a.ogg': '',
  }
  fill(tmp_path, {'games/fillets-ng/script/city/dialogs_cs.lua': f'{script}\n', **sounds})
  assert found(debian.fillets(tmp_path), tmp_path / 'games/fillets-ng/sound/city') == [
    ('cs/let-m-a.ogg', 'fillets-cs-small', 'cs', 'Co je "to"?'),
    ('cs/let-v-b.ogg', 'fillets-cs-big', 'cs', 'To je vrak.'),
  ]


def test_stamps_are_described_in_the_language_of_their_name(tmp_path):
  names = [
    'wombat_desc.ogg',
    'wombat_desc_fr.ogg',
    'wombat_desc_da.ogg.ogg',
    'wombat.ogg',
    'eel_desc_en_GB.ogg',
  ]
  fill(tmp_path, {f'tuxpaint/stamps/animals/{name}': '' for name in names})
  texts = 'A wombat.\nfr.utf8=Un wombat.\nda.utf8=\n'
  fill(tmp_path, {'tuxpaint/stamps/animals/wombat.txt': texts})
  assert found(debian.tuxpaint(tmp_path), tmp_path / 'tuxpaint/stamps/animals') == [
    ('eel_desc_en_GB.ogg', 'tuxpaint-en_GB', 'en_GB', None),
    ('wombat_desc.ogg', 'tuxpaint-en', 'en', 'A wombat.'),
    ('wombat_desc_da.ogg.ogg', 'tuxpaint-da', 'da', None),
    ('wombat_desc_fr.ogg', 'tuxpaint-fr', 'fr', 'Un wombat.'),
  ]


def test_packages_are_read_below_a_root_and_missing_ones_say_how_to_get_them(tmp_path):
  fill(tmp_path / 'usr/share', {'klettres/en/alpha/A.ogg': '', 'klettres/de/syllab/ba.ogg': ''})
  clips = debian.clips(tmp_path, ['klettres-data'])
  assert [clip[1:] for clip in clips] == [
    ('klettres-de', 'de', None, None),
    ('klettres-en', 'en', None, None),
  ]
  with pytest.raises(
    ValueError, match='lacks festvox-ru. .*apt-get download festvox-ru; .*corpus.root'
  ):
    debian.clips(tmp_path, ['klettres-data', 'festvox-ru'])
  with pytest.raises(ValueError, match=r"\['festvox-fi'\]: choose from festvox-ru"):
    debian.clips(tmp_path, ['festvox-fi'])


def test_labels_end_where_the_next_begin(tmp_path):
  path = tmp_path / 'a.lab'
  path.write_text('separator ;\n#\n0.34200 125 pau\n0.39 125 k\n')
  assert debian.read_labels(path) == [(0.342, 'pau'), (0.39, 'k')]
  path.write_text('#\n0.4 125 pau\n0.3 125 k\n')
  with pytest.raises(ValueError, match='line 3: k ends at 0.3 s, the previous phone at 0.4 s'):
    debian.read_labels(path)
  path.write_text('#\n0.4 pau\n')
  with pytest.raises(ValueError, match="line 2: '0.4 pau' is not `end_seconds number phone`"):
    debian.read_labels(path)

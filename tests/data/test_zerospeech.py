import numpy as np
import pytest

from audiolm_jax import audio
from audiolm_jax.data import zerospeech

HEADER = zerospeech.ITEM_HEADER + '\n'
LEXICAL = """filename,id,voice,frequency,word,phones,length,correct
a,1,A,150,bat,B AE T,3,1
b,1,A,,bap,B AE P,3,0
c,2,A,0,zyx,Z IH K S,3,1
"""
SYNTACTIC = """filename,id,voice,type,subtype,transcription,correct
a,1,A,agreement,plural,dogs bark,1
b,1,A,agreement,plural,dogs barks,0
"""


def test_items_as_libri_light_writes_them(tmp_path):
  path = tmp_path / 'dev-clean.item'
  path.write_text(HEADER + '6295-244435-0009 0.2925 0.4725 IH L NG 6295\n')
  [item] = zerospeech.read_items(path)
  assert item == ('6295-244435-0009', 0.2925, 0.4725, 'IH', 'L', 'NG', '6295') and item.context == (
    'L',
    'NG',
  )
  zerospeech.write_items(tmp_path / 'again.item', [item])
  assert (tmp_path / 'again.item').read_text() == path.read_text()
  assert (
    zerospeech.item_file(tmp_path, 'dev') == zerospeech.item_file(tmp_path, 'dev-clean') == path
  )
  with pytest.raises(ValueError, match='has again.item, dev-clean.item; exactly one'):
    zerospeech.item_file(tmp_path, 'test')


@pytest.mark.parametrize(
  'text, said',
  [
    ('', 'begins with nothing'),
    ('f 0.1 0.2 a b c s\n', 'not with the header'),
    (HEADER, 'no items'),
    (HEADER + 'f 0.1 0.2 a b c s\nf 0.1 0.2 a b s\n', 'line 3: 6 columns'),
    (HEADER + 'f 0.1 then a b c s\n', "line 2: '0.1 then'"),
    (HEADER + 'f 0.2 0.2 a b c s\n', 'not an onset before an offset'),
    (HEADER + 'f nan 0.2 a b c s\n', 'not an onset before an offset'),
    (HEADER + 'f 0.2 inf a b c s\n', 'not an onset before an offset'),
  ],
)
def test_bad_item_files_are_named(text, said, tmp_path):
  (tmp_path / 'bad.item').write_text(text)
  with pytest.raises(ValueError, match=said) as error:
    zerospeech.read_items(tmp_path / 'bad.item')
  assert 'bad.item' in str(error.value)


def test_items_beyond_their_audio_are_named():
  item = zerospeech.Item('f', 0.5, 1.05, 'a', 'b', 'c', 's')
  zerospeech.check_times([item], {'f': 1.0})  # labels are rounded
  with pytest.raises(ValueError, match='item a of f ends at 1.05 s, its audio at 0.9 s'):
    zerospeech.check_times([item], {'f': 0.9})


def test_gold_files(tmp_path):
  (tmp_path / 'gold.csv').write_text(LEXICAL)
  samples = zerospeech.read_lexical(tmp_path / 'gold.csv')
  assert [(s.file, s.pair, s.correct, s.kind) for s in samples] == [
    ('a', '1', True, '>100'),
    ('b', '1', False, ''),
    ('c', '2', True, 'oov'),
  ]
  (tmp_path / 'gold.csv').write_text(SYNTACTIC)
  right, wrong = zerospeech.read_syntactic(tmp_path / 'gold.csv')
  assert right.pair == wrong.pair and (right.correct, wrong.correct) == (True, False)
  assert right.kind == 'agreement' and right.text == 'dogs bark'


@pytest.mark.parametrize(
  'frequency, band', [('0', 'oov'), ('1', '1-5'), ('5', '6-20'), ('99', '21-100'), ('100', '>100')]
)
def test_bands_end_where_zerospeech_ends_them(frequency, band, tmp_path):
  (tmp_path / 'gold.csv').write_text(LEXICAL.replace('150', frequency))
  assert zerospeech.read_lexical(tmp_path / 'gold.csv')[0].kind == band


@pytest.mark.parametrize(
  'text, said',
  [
    ('', 'without filename'),
    (SYNTACTIC, 'without frequency, word, phones, length'),
    (LEXICAL.splitlines()[0] + '\n', 'no rows'),
    (LEXICAL.replace('T,3,1', 'T,3,yes'), 'line 2'),
    (LEXICAL + 'd,2\n', 'line 5'),
    (LEXICAL.replace('150', '1' * 2**18), 'is not CSV .field larger than'),
    (LEXICAL.replace('150', 'often'), "'often', not a number"),
  ],
)
def test_bad_gold_files_are_named(text, said, tmp_path):
  (tmp_path / 'gold.csv').write_text(text)
  with pytest.raises(ValueError, match=said) as error:
    zerospeech.read_lexical(tmp_path / 'gold.csv')
  assert 'gold.csv' in str(error.value)


def test_folders_without_gold_are_named_and_missing_ones_are_none(tmp_path):
  assert zerospeech.gold_file(tmp_path, 'lexical', 'dev') is None
  (tmp_path / 'lexical' / 'test').mkdir(parents=True)
  with pytest.raises(ValueError, match='lexical has test'):
    zerospeech.gold_file(tmp_path, 'lexical', 'dev')


def test_recordings_are_found_anywhere_and_missing_ones_are_named(tmp_path):
  (tmp_path / '84').mkdir()
  for name in ('84/one.flac', 'two.wav'):
    audio.save(tmp_path / name, np.zeros(800, np.float32), 8000)
  found = zerospeech.Recordings(tmp_path, ['two', 'one', 'two'], 16_000)
  assert [found[n]['file'] for n in range(len(found))] == ['one', 'two'] and len(
    found[0]['waveform']
  ) == 1600
  with pytest.raises(ValueError, match='no audio for 1 of 2 recordings, such as three'):
    zerospeech.Recordings(tmp_path, ['one', 'three'], 16_000)
  audio.save(tmp_path / 'one.wav', np.zeros(800, np.float32), 8000)
  with pytest.raises(ValueError, match='have the same name'):
    zerospeech.Recordings(tmp_path, ['one'], 16_000)

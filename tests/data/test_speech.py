"""Clips of tones become a prepared corpus: who is held out, what is joined, what is left out."""

import numpy as np
import pytest

from audiolm_jax import audio
from audiolm_jax.data import debian, speech, zerospeech

RATE = 16_000


def tone(path, seconds, frequency=300.0, amplitude=0.5, silence=0.5):
  time_T = np.arange(round(seconds * RATE)) / RATE
  pause_T = np.zeros(round(silence * RATE))
  wave_T = np.concatenate([pause_T, amplitude * np.sin(2 * np.pi * frequency * time_T), pause_T])
  audio.save(path, wave_T.astype(np.float32), RATE)
  return str(path)


@pytest.fixture
def clips(tmp_path):
  made = [
    debian.Clip(tone(tmp_path / f'{index}.wav', 2.0), 'tux-fr', 'fr', f'text {index}')
    for index in range(5)
  ]
  made.append(debian.Clip(tone(tmp_path / 'mute.wav', 1.0, amplitude=1e-4), 'tux-fr', 'fr', 'mute'))
  made.append(debian.Clip(tone(tmp_path / 'it.wav', 1.0), 'tux-it', 'it'))
  (tmp_path / 'bad.wav').write_text('no audio')
  made.append(debian.Clip(str(tmp_path / 'bad.wav'), 'tux-it', 'it'))
  for number in (9, 10):
    labels = tmp_path / f'ru_{number}.lab'
    labels.write_text('#\n0.5 1 pau\n0.6 1 a\n0.7 1 k\n0.8 1 o\n0.9 1 t\n2.0 1 pau\n')
    path = tone(tmp_path / f'ru_{number}.wav', 1.0)
    made.append(debian.Clip(path, 'msu', 'ru', 'акот', str(labels)))
  return made


def test_clips_of_a_voice_are_joined_and_voices_of_a_language_held_out(clips, tmp_path):
  folder = speech.prepared(clips, tmp_path / 'cache')
  train, names = speech.utterances(folder, 'train')
  first = speech.FIRST_SPEAKER
  assert names == ('a', 'k', 'o', 'pau', 't')
  # Three of 2 s and their margins reach 6 s; two are left. The labelled clip stays as it is.
  assert [(one.path.removeprefix(f'{folder}/'), one.speaker, one.text) for one in train] == [
    ('train/tux-fr/tux-fr-0000.flac', first + 1, 'text 0 text 1 text 2'),
    ('train/msu/ru_9.flac', first, 'акот'),
    ('train/tux-fr/tux-fr-0001.flac', first + 1, 'text 3 text 4'),
  ]
  assert train[1].phones == [
    (0.5, 'pau'),
    (0.6, 'a'),
    (0.7, 'k'),
    (0.8, 'o'),
    (0.9, 't'),
    (2.0, 'pau'),
  ]
  lengths = [audio.info(one.path).num_samples / RATE for one in train]
  np.testing.assert_allclose(lengths, [3 * 2.3, 2.0, 2 * 2.3], atol=0.05)
  loudness = [np.sqrt(np.mean(audio.load(one.path, RATE) ** 2)) for one in train]
  np.testing.assert_allclose(loudness, 0.08, rtol=0.01)
  (test,), _ = speech.utterances(folder, 'test')
  assert (test.speaker, test.text, test.phones) == (first + 2, None, [])
  (labelled,), _ = speech.utterances(folder, 'labelled')
  assert labelled.path == str(folder / 'labelled/msu/ru_10.flac')
  left_out = (folder / 'left_out.txt').read_text().splitlines()
  assert [line.split(': ')[0].split('/')[-1] for line in left_out] == ['mute.wav', 'bad.wav']


def test_phones_between_phones_are_items_for_abx(clips, tmp_path):
  items = zerospeech.read_items(
    speech.prepared(clips, tmp_path / 'cache') / 'labelled/labelled.item'
  )
  assert items == [
    zerospeech.Item('ru_10', 0.6, 0.7, 'k', 'a', 'o', 'msu'),
    zerospeech.Item('ru_10', 0.7, 0.8, 'o', 'k', 't', 'msu'),
  ]


def test_it_is_prepared_once_and_afresh_for_other_files(clips, tmp_path):
  folder = speech.prepared(clips, tmp_path / 'cache')
  (folder / 'left_out.txt').write_text('kept')
  assert speech.prepared(clips, tmp_path / 'cache') == folder
  assert (folder / 'left_out.txt').read_text() == 'kept'
  assert speech.prepared(clips[:-1], tmp_path / 'cache') != folder


def test_a_preparation_that_was_stopped_begins_again(clips, tmp_path, monkeypatch):
  made = speech.prepared(clips, tmp_path / 'whole')
  with monkeypatch.context() as patch, pytest.raises(OSError, match='full'):
    patch.setattr(zerospeech, 'write_items', lambda *_: (_ for _ in ()).throw(OSError('full')))
    speech.prepared(clips, tmp_path / 'cache')
  again = speech.prepared(clips, tmp_path / 'cache')
  names = [sorted(path.relative_to(at) for path in at.rglob('*')) for at in (made, again)]
  assert names[0] == names[1]
  assert (made / 'utterances.json').read_text() == (again / 'utterances.json').read_text()


def test_nothing_is_left_behind_where_nothing_can_be_used(clips, tmp_path):
  with pytest.raises(
    ValueError, match='none of 1 clips can be used; the first: .*mute.wav: silent'
  ):
    speech.prepared([clips[5]], tmp_path / 'cache')
  assert not (tmp_path / 'cache').exists()


def test_another_split_is_refused(clips, tmp_path):
  with pytest.raises(ValueError, match="split is 'dev'; there are train, test, labelled"):
    speech.utterances(tmp_path, 'dev')


def test_speech_is_cut_out_of_silence_and_faded():
  rng = np.random.default_rng(0)
  wave_T = np.zeros(2 * RATE, np.float32)
  wave_T[RATE // 2 : RATE] = rng.uniform(-3, 3, RATE // 2)
  cut_T = speech.trimmed(wave_T)
  assert abs(len(cut_T) - 0.8 * RATE) <= 320 and np.abs(cut_T).max() == 1.0
  assert cut_T[0] == cut_T[-1] == 0
  assert (
    speech.trimmed(wave_T[:1600]) is None and speech.trimmed(np.zeros(RATE, np.float32)) is None
  )

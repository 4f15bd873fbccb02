import numpy as np
import pytest

from audiolm_jax import audio
from audiolm_jax.data.utterances import Utterance, Utterances

RATE = 16_000


def test_examples_carry_what_is_known_of_them(tmp_path):
  wave_T = np.linspace(
    -0.5, 0.5, 2000, dtype=np.float32
  )  # 0.125 s: frames centred at 20, 60, 100, 140 ms
  audio.save(tmp_path / 'a.flac', wave_T, RATE)
  path = str(tmp_path / 'a.flac')
  phones = [(0.03, 'pau'), (0.1, 'k'), (0.11, 'a')]
  source = Utterances(
    [Utterance(path, 7, 'ка', phones), Utterance(path, 8), Utterance('nowhere.flac', 9)],
    RATE,
    phone_names=('a', 'k', 'pau'),
    max_bad_fraction=0.5,
  )
  assert source[0]['phones'].tolist() == [
    2,
    1,
    0,
    0,
  ]  # at 100 ms the next one has begun; after the last, the last
  assert (source[0]['speaker'], source[0]['text']) == (7, 'ка')
  assert sorted(source[1]) == ['speaker', 'waveform'] and source[1]['speaker'] == 8
  assert source[2] is None and list(source.bad) == [2]
  crop = source.crop(0, lambda length: (length - 10, length))
  np.testing.assert_allclose(crop['waveform'], wave_T[-10:], atol=1e-4)
  assert (crop['speaker'], crop['text']) == (7, 'ка') and 'phones' not in crop


def test_a_phone_without_a_name_is_refused():
  with pytest.raises(ValueError, match='phone_names lacks zh'):
    Utterances([Utterance('a.flac', 0, None, [(1.0, 'zh')])], RATE, phone_names=('a',))

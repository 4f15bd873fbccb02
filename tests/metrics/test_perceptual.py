"""Measures of the `eval` extra on a synthesized vowel: known ends of their scales, order, and a
status for the rest.

That `pesq` and `visqol-python` compute what their standards say is theirs to test; STOI is computed
once more here.
"""

import importlib.util

import librosa
import numpy as np
import pytest
import soxr

from audiolm_jax.metrics import perceptual

RATE = 16_000
pytestmark = pytest.mark.skipif(
  len(perceptual.available()) < 3, reason='the eval extra is not installed'
)


def _vowel(seconds=2.0, rate=RATE):
  """A pulse train of 120 Hz through three formants, four times a second louder and softer."""
  t = np.arange(round(seconds * rate)) / rate
  harmonics = np.arange(1, 60) * 120.0
  gain = sum(1 / (1 + ((harmonics - f) / 80) ** 2) for f in (700, 1200, 2600))
  wave = (gain[:, None] * np.sin(2 * np.pi * harmonics[:, None] * t)).sum(0) * (
    0.6 + 0.4 * np.sin(2 * np.pi * 4 * t)
  )
  return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


def _noisy(wave_T, snr_db):
  noise_T = np.random.default_rng(0).normal(size=len(wave_T)).astype(np.float32)
  return wave_T + noise_T * np.sqrt(np.mean(wave_T**2)) * 10 ** (-snr_db / 20)


@pytest.mark.parametrize('name, best', [('pesq', 4.64), ('stoi', 1.0), ('visqol', 4.1)])
def test_equal_clips_score_near_the_top_and_noise_lowers_the_score(name, best):
  measure, wave_T = getattr(perceptual, name), _vowel()
  equal, *worse = (
    measure(wave_T, other_T, RATE) for other_T in (wave_T, _noisy(wave_T, 20), _noisy(wave_T, 0))
  )
  assert {score.status for score in (equal, *worse)} == {'ok'}
  assert equal.value >= best - 0.1, equal
  assert equal.value > worse[0].value > worse[1].value, (equal, worse)


@pytest.mark.parametrize('name', ['pesq', 'stoi', 'visqol'])
def test_what_cannot_be_scored_says_why(name):
  measure, wave_T = getattr(perceptual, name), _vowel(1.0)
  silence_T, broken_T = np.zeros_like(wave_T), np.where(np.arange(RATE) == 7, np.nan, wave_T)
  for other_T, status in ((silence_T, 'silent'), (broken_T, 'not finite')):
    assert measure(wave_T, other_T, RATE) == (None, status)
    assert measure(other_T, wave_T, RATE) == (None, status)
  assert measure(wave_T[:9600], wave_T[:9600], RATE) == (None, 'too short')
  assert measure(wave_T[: round(0.7 * RATE)], wave_T[: round(0.7 * RATE)], RATE).status == 'ok'
  with pytest.raises((ValueError, TypeError)):  # under pytest, jaxtyping is faster
    measure(wave_T, wave_T[1:], RATE)


def test_speech_of_less_than_thirty_frames_is_too_short_for_stoi():
  wave_T = np.zeros(2 * RATE, np.float32)
  wave_T[: RATE // 5] = _vowel(0.2)
  assert perceptual.stoi(wave_T, wave_T, RATE) == (None, 'too short')


def test_other_rates_are_resampled():
  wave_T = _vowel(rate=24_000)
  noisy_T = _noisy(wave_T, 10)
  for measure in (perceptual.pesq, perceptual.stoi, perceptual.visqol):
    resampled = [soxr.resample(x, 24_000, RATE) for x in (wave_T, noisy_T)]
    assert measure(wave_T, noisy_T, 24_000) == measure(*resampled, RATE)


def test_stoi_is_what_its_paper_says():
  """Taal et al., 2011, equations 1 to 6, of a clip without pauses: there is no frame to leave
  out.
  """
  wave_T, estimate_T = (soxr.resample(x, RATE, 10_000) for x in (_vowel(), _noisy(_vowel(), 3)))
  window_N = np.hanning(258)[1:-1]
  centres = 150 * 2 ** (np.arange(15) / 3)
  bins = np.linspace(0, 5000, 257)
  nearest = lambda f: np.argmin(np.abs(bins - f))
  edges = [(nearest(c * 2 ** (-1 / 6)), nearest(c * 2 ** (1 / 6))) for c in centres]

  def bands(x_T):
    frames_NF = librosa.util.frame(x_T, frame_length=256, hop_length=128)[:, :-1]
    power = np.abs(np.fft.rfft(frames_NF * window_N[:, None], 512, axis=0)) ** 2
    return np.sqrt(np.stack([power[low:high].sum(0) for low, high in edges]))

  x_JF, y_JF = bands(wave_T), bands(estimate_T)
  values = []
  for end in range(30, x_JF.shape[1] + 1):
    x, y = x_JF[:, end - 30 : end], y_JF[:, end - 30 : end]
    y = y * np.linalg.norm(x, axis=1, keepdims=True) / np.linalg.norm(y, axis=1, keepdims=True)
    y = np.minimum(y, x * (1 + 10 ** (15 / 20)))
    x, y = (v - v.mean(1, keepdims=True) for v in (x, y))
    values.append(
      np.mean(np.sum(x * y, 1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)))
    )
  # Its code leaves out frames 40 dB below the loudest, none here, and puts the rest together again
  # by overlap and add.
  np.testing.assert_allclose(
    perceptual.stoi(_vowel(), _noisy(_vowel(), 3), RATE).value, np.mean(values), atol=0.01
  )


def test_a_mean_counts_what_it_is_of():
  scores = [
    perceptual.Score(1.0, 'ok'),
    perceptual.Score(None, 'silent'),
    perceptual.Score(2.0, 'ok'),
  ]
  assert perceptual.mean(scores) == (1.5, 2)
  assert perceptual.mean(scores[1:2]) == (None, 0)


def test_a_missing_package_names_the_extra(monkeypatch):
  monkeypatch.setitem(perceptual.MODULES, 'pesq', 'no_such_package')
  assert perceptual.available() == ('stoi', 'visqol')
  with pytest.raises(ValueError, match=r"pip install -e '\.\[eval\]'"):
    perceptual.pesq(_vowel(), _vowel(), RATE)


def test_the_mapper_of_visqol_is_named(monkeypatch):
  assert perceptual.visqol_mapper() == 'lattice'
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: None if name == 'ai_edge_litert' else find(name)
  )
  assert perceptual.visqol_mapper() == 'polynomial'

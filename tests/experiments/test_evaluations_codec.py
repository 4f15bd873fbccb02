"""The codec's table: known rows for known estimates, and Opus in time with its original."""

import numpy as np
import pytest

from audiolm_jax.metrics import perceptual
from experiments.evaluations import codec, opus
from tests.metrics.test_perceptual import _noisy, _vowel

RATE = 16_000


def test_rows_of_the_original_of_noise_and_of_silence():
  wave_BT = np.stack([_vowel(1.0), _vowel(1.0)[::-1]])
  equal, noisy, silent = (
    codec.row(RATE, wave_BT, estimate_BT, 6000.0)
    for estimate_BT in (
      wave_BT,
      np.stack([_noisy(wave_T, 10) for wave_T in wave_BT]),
      np.zeros_like(wave_BT),
    )
  )
  assert equal['kbit_s'] == 6 and equal['clips'] == 2
  assert equal['si_sdr'] > 90 and equal['mel_distance'] == equal['stft_distance'] == 0
  assert noisy['si_sdr'] == pytest.approx(10, abs=0.2) and silent['si_sdr'] == pytest.approx(
    -100, abs=1
  )
  if set(perceptual.available()) == set(perceptual.MODULES):
    assert (equal['scored'], noisy['scored'], silent['scored']) == (2, 2, 0)
    for name in perceptual.MODULES:
      assert silent[name] is None and noisy[name] < equal[name]


@pytest.mark.skipif(bool(opus.missing()), reason='opus-tools are not installed')
def test_opus_keeps_length_and_time_and_more_bits_keep_more():
  wave_T = _vowel(2.0)[: 2 * 16_000 - 7]
  low_T, high_T = (opus.round_trip(wave_T, 16_000, rate) for rate in (6, 32))
  assert low_T.shape == high_T.shape == wave_T.shape
  lags = [np.dot(np.roll(high_T, -lag), wave_T) for lag in range(-20, 21)]
  assert abs(np.argmax(lags) - 20) <= 1
  error = lambda estimate_T: np.mean(
    (np.abs(np.fft.rfft(estimate_T)) - np.abs(np.fft.rfft(wave_T))) ** 2
  )
  assert error(high_T) < error(low_T)


def test_missing_opus_is_named(monkeypatch):
  monkeypatch.setenv('PATH', '')
  assert opus.missing() == ('opusenc', 'opusdec')

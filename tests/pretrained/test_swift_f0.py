"""Pitches of tones and of silence, where the package is installed; what is advised where it is not."""

import importlib.util
import sys

import numpy as np
import pytest

from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import swift_f0

INSTALLED = importlib.util.find_spec('swift_f0') is not None


@pytest.mark.skipif(not INSTALLED, reason='swift-f0 is not installed')
@pytest.mark.parametrize('rate', [16_000, 24_000])
def test_tones_have_their_pitch_and_silence_and_noise_have_none(rate):
  listen = swift_f0.listener()
  time_T = np.arange(rate) / rate
  for midi in (48, 69, 84):
    hertz = 440 * 2 ** ((midi - 69) / 12)
    wave_T = sum(0.2 / n * np.sin(2 * np.pi * n * hertz * time_T) for n in range(1, 5))
    pitch_F = listen(wave_T, rate)
    assert len(pitch_F) == 16_000 // swift_f0.HOP
    assert np.nanmedian(pitch_F) == pytest.approx(midi, abs=0.2)
    assert np.isfinite(pitch_F).mean() > 0.9
  assert np.isnan(listen(np.zeros(rate), rate)).all()
  noise_T = np.random.default_rng(0).normal(size=rate) * 0.1
  assert np.isfinite(listen(noise_T, rate)).mean() < 0.1


def test_a_missing_package_says_what_to_run(monkeypatch):
  monkeypatch.setitem(sys.modules, 'swift_f0', None)
  with pytest.raises(UserError, match='run `pip install swift-f0==0.3.0`'):
    swift_f0.listener()

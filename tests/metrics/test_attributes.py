"""Compares features of sounds made by hand with what they must be, and fits judges to them."""

import numpy as np
import pytest

from audiolm_jax.errors import UserError
from audiolm_jax.metrics import attributes, music

RATE = attributes.RATE
BANDS = 3 * 64  # features before the rhythm
LAGS = 38


def chord(pitches, seconds=2.0, rate=RATE):
  time_T = np.arange(round(seconds * rate)) / rate
  hertz = [440 * 2 ** ((pitch - 69) / 12) for pitch in pitches]
  return (0.2 * sum(np.sin(2 * np.pi * f * time_T) for f in hertz)).astype(np.float32)


def clicks(period, seconds=3.0):
  random = np.random.default_rng(0)
  wave_T = np.zeros(round(seconds * RATE), np.float32)
  for start in np.arange(0.1, seconds - 0.05, period):
    at = round(start * RATE)
    wave_T[at : at + 400] = random.normal(size=400) * np.linspace(1, 0, 400) ** 2
  return wave_T


def test_rhythm_has_its_peak_at_the_period():
  for period in (0.4, 0.6):
    rhythm_L = attributes.features(clicks(period), RATE)[BANDS : BANDS + LAGS]
    lag = 0.096 + 0.048 * np.arange(LAGS)  # seconds, of the first of three lags each
    assert abs(lag[rhythm_L[: round(1.2 * period / 0.048)].argmax()] - period) <= 0.05


def test_keys_and_pitch_classes_follow_the_tonic_and_the_level_the_amplitude():
  c_major, g_major = chord([60, 64, 67, 72]), chord([67, 71, 74, 79])
  c_minor = chord([60, 63, 67, 72])
  found = {name: attributes.features(wave_T, RATE) for name, wave_T in
           (('C', c_major), ('G', g_major), ('c', c_minor), ('half', 0.5 * c_major))}  # fmt: skip
  assert {len(vector_D) for vector_D in found.values()} == {BANDS + LAGS + 12 + 4}
  class_12 = {name: vector_D[BANDS + LAGS :][:12] for name, vector_D in found.items()}
  np.testing.assert_allclose(class_12['C'], class_12['G'], atol=0.03)  # both from their tonic
  assert class_12['C'][[0, 4, 7]].sum() > 0.7 and class_12['c'][[0, 3, 7]].sum() > 0.7
  assert found['C'][-2] > 0 > found['c'][-2]  # major above minor
  assert found['C'][-1] - found['half'][-1] == pytest.approx(np.log(2), abs=1e-3)


def test_rates_differ_little_and_silence_is_finite():
  at_24 = attributes.features(chord([60, 64, 67], rate=24_000), 24_000)
  at_16 = attributes.features(chord([60, 64, 67]), RATE)
  np.testing.assert_allclose(at_24[-4:], at_16[-4:], atol=0.05)
  assert np.isfinite(attributes.features(np.zeros(2 * RATE), RATE)).all()


def test_judges_hear_what_they_learned():
  random = np.random.default_rng(0)
  label_N = np.arange(40) % 2
  features_ND = random.normal(size=(40, 5)) + 4 * label_N[:, None] * [0, 0, 1, 0, 0]
  judges = attributes.fit(features_ND, {'mode': label_N, 'tempo': 2 * (1 - label_N)})
  probe_ND = np.array([[0, 0, 0, 0, 0], [0, 0, 4, 0, 0]], float)
  found = attributes.judge(judges, probe_ND)
  assert found['mode'].tolist() == [0, 1] and found['tempo'].tolist() == [2, 0]


def test_clips_too_short_and_single_values_are_refused():
  with pytest.raises(UserError, match='1.50 s is too short for its rhythm: give 1.92 s'):
    attributes.features(np.zeros(24_000), RATE)
  with pytest.raises(UserError, match='all clips have the same mode'):
    attributes.fit(np.zeros((3, 2)), {'mode': np.ones(3, int)})


def test_pitch_classes_are_heard():
  share_12 = music.heard_pitch_classes(chord([62, 69]), RATE)  # D and A
  assert share_12.sum() == pytest.approx(1) and share_12[[2, 9]].sum() > 0.7
  np.testing.assert_allclose(music.heard_pitch_classes(np.zeros(RATE), RATE), 1 / 12)

"""Arrangements: each attribute changes the notes as its name says."""

import collections
import itertools

import numpy as np
import pytest

from audiolm_jax.data import arrangements, scores

SECONDS = 6.0
C_MAJOR, C_MINOR = {0, 2, 4, 5, 7, 9, 11}, {0, 2, 3, 5, 7, 8, 10}


def tune(pitches, is_minor=False):
  """Returns a tune in eighths and 4/4 with tonic C."""
  voice_N3 = np.array([[0.5 * n, 0.5, pitch] for n, pitch in enumerate(pitches)])
  return scores.tune('a', 'a', 0, is_minor, 4.0, False, (voice_N3,))


SCALE = tune([60, 62, 64, 65, 67, 69, 71, 72] * 8)
VALUES = {name: values[0] for name, values in arrangements.ATTRIBUTES.items()}


def captioned(seed=0, of=SCALE, **attributes):
  random = np.random.default_rng(seed)
  return arrangements.captioned(of, VALUES | attributes, SECONDS, random)


def at_once(notes_N4, time):
  return sum(onset <= time < end for onset, end, *_ in notes_N4)


def test_notes_are_sorted_and_inside_of_the_clip():
  for seed in range(5):
    notes_N4, tonic = captioned(seed)
    assert 0 <= tonic < 12 and (np.diff(notes_N4[:, 0]) >= 0).all()
    assert notes_N4[0, 0] == 0 and (notes_N4[:, 0] < notes_N4[:, 1]).all()
    assert SECONDS - 1.5 < notes_N4[:, 0].max() < notes_N4[:, 1].max() <= SECONDS


def test_keys_differ_and_the_same_seed_gives_the_same_clip():
  tonics = {captioned(seed)[1] for seed in range(40)}
  assert len(tonics) >= 10
  np.testing.assert_array_equal(captioned(3)[0], captioned(3)[0])
  assert captioned(3)[0].tolist() != captioned(4)[0].tolist()


def test_register_is_two_octaves_apart_and_dynamics_are_apart():
  heights = {name: captioned(register=name)[0][:, 2].mean() for name in ('low', 'high')}
  assert 18 < heights['high'] - heights['low'] < 30
  loudest_soft = captioned(dynamics='soft')[0][:, 3].max()
  assert loudest_soft + 20 < captioned(dynamics='loud')[0][:, 3].min() <= 127


def test_texture_adds_two_notes_to_each_beat():
  counts = {}
  for texture in ('line', 'chords'):
    notes_N4, _ = captioned(texture=texture, tempo='medium')
    counts[texture] = np.mean([at_once(notes_N4, time) for time in np.arange(0.05, 5.5, 0.1)])
  assert 1.6 < counts['line'] <= 2 and 1.6 < counts['chords'] - counts['line'] <= 2


@pytest.mark.parametrize('tempo, wanted', [('slow', 66), ('medium', 104), ('fast', 160)])
@pytest.mark.parametrize('metre', [(4.0, False), (3.0, True)])
def test_tempo_is_that_of_an_even_accompaniment(tempo, wanted, metre):
  voice_N3 = np.array([[0.5 * n, 0.5, 60 + n % 5] for n in range(48)])
  of = scores.tune('a', 'a', 0, False, *metre, (voice_N3,))
  notes_N4, _ = captioned(of=of, tempo=tempo, register='high')
  # The accompaniment is the lowest note of each onset, and the quieter one.
  low = [one for one in notes_N4 if one[3] <= 56 - 16 + 6]
  steps = np.diff([onset for onset, *_ in low])
  np.testing.assert_allclose(60 / steps, wanted, rtol=0.06)
  assert np.ptp(steps) < 1e-3


@pytest.mark.parametrize('mode, scale', [('major', C_MAJOR), ('minor', C_MINOR)])
@pytest.mark.parametrize('is_minor', [False, True])
def test_every_tune_is_played_in_the_mode_asked_for(mode, scale, is_minor):
  pitches = [60, 62, 63 if is_minor else 64, 65, 67, 68 if is_minor else 69, 70, 72] * 8
  notes_N4, tonic = captioned(of=tune(pitches, is_minor), mode=mode, texture='chords')
  played = {int(pitch - tonic) % 12 for pitch in notes_N4[:, 2]}
  assert played <= scale and (4 if mode == 'major' else 3) in played


def test_chords_hold_the_melody():
  # Bars of C E G, G B D and F A C: I, V and IV of C major, and a minor: vi.
  bars = [[60, 64, 67, 72], [67, 71, 74, 67], [65, 69, 72, 77], [69, 69, 72, 76]]
  of = tune([pitch for bar in bars for pitch in bar for _ in range(2)])
  triads = arrangements._chords(of.voices[0], 4.0, 0, 'major')
  assert [(start, set(triad)) for start, triad in triads] == [
    (0, {0, 4, 7}),
    (4, {7, 11, 2}),
    (8, {5, 9, 0}),
    (12, {9, 0, 4}),
  ]


def test_chorales_keep_their_intervals_and_move_by_three_semitones_at_most():
  voices = tuple(
    np.array([[float(n), 1.0, pitch] for n in range(32)]) for pitch in (72, 67, 64, 48)
  )
  of = scores.tune('a', 'a', 0, False, 4.0, False, voices)
  shifts = set()
  for seed in range(30):
    notes_N4, tonic, mode = arrangements.piano(of, 'chorale', SECONDS, np.random.default_rng(seed))
    shift = notes_N4[:, 2].min() - 48
    assert {pitch - shift for pitch in notes_N4[:, 2]} == {72, 67, 64, 48}
    assert tonic == shift % 12 and mode == 'major'
    shifts.add(shift)
  assert shifts == set(range(-3, 4))


def test_two_hands_are_apart_and_have_several_patterns():
  patterns = collections.Counter()
  for seed in range(30):
    notes_N4, tonic, mode = arrangements.piano(SCALE, 'hands', SECONDS, np.random.default_rng(seed))
    assert {int(pitch - tonic) % 12 for pitch in notes_N4[:, 2]} <= C_MAJOR and mode == 'major'
    left = notes_N4[notes_N4[:, 2] < 62]
    groups = [len(list(group)) for _, group in itertools.groupby(left[:, 0].tolist())]
    patterns[max(groups), min(groups)] += 1
  assert set(patterns) == {(1, 1), (3, 3), (2, 1)} and min(patterns.values()) >= 3


def test_a_tune_that_is_shorter_than_the_clip_starts_again():
  notes_N4, _ = captioned(of=tune([60, 62, 64, 65, 67, 65, 64, 62] * 4), tempo='fast')
  assert notes_N4[:, 0].max() > SECONDS - 0.5


def test_held_out_pairs_leave_every_value_in_training():
  named = {value for pair in arrangements.HELD_OUT_PAIRS for value in pair}
  for name, value in named:
    assert value in arrangements.ATTRIBUTES[name]
  for instrument in arrangements.ATTRIBUTES['instrument']:
    kept = [
      tempo
      for tempo in arrangements.ATTRIBUTES['tempo']
      if (('instrument', instrument), ('tempo', tempo)) not in arrangements.HELD_OUT_PAIRS
    ]
    assert len(kept) >= 2

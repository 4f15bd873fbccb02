"""Compares measures of notes with hand counts, and transport costs with a linear program."""

import numpy as np
import pytest
import scipy.optimize

from audiolm_jax.metrics import music

C_MAJOR = [60, 62, 64, 65, 67, 69, 71]


def line(pitches, step=0.5, start=0.0):
  return np.array(
    [[start + n * step, start + (n + 1) * step, p, 80] for n, p in enumerate(pitches)]
  )


def test_pitch_classes_are_weighted_by_time():
  notes_N4 = np.array([[0, 3, 60, 80], [0, 1, 79, 80], [5, 6, 48, 1]], float)
  wanted = np.zeros(12)
  wanted[0], wanted[7] = 0.8, 0.2
  np.testing.assert_allclose(music.pitch_classes(notes_N4), wanted)


@pytest.mark.parametrize(
  'pitches, wanted',
  [
    ([60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60], (0, 'major')),
    ([60, 62, 63, 65, 67, 68, 71, 72, 67, 63, 60], (0, 'minor')),
    ([66, 69, 73, 66, 68, 69, 71, 73, 66, 65, 66], (6, 'minor')),
    ([67, 71, 74, 79, 72, 76, 74, 71, 67], (7, 'major')),
  ],
)
@pytest.mark.parametrize('shift', [0, 5])
def test_keys_of_tunes(pitches, wanted, shift):
  tonic, mode = wanted
  notes_N4 = line(np.array(pitches) + shift)
  assert music.key(music.pitch_classes(notes_N4)) == ((tonic + shift) % 12, mode)


def test_no_key_of_no_notes():
  with pytest.raises(ValueError, match='there is no key'):
    music.key(np.full(12, 1 / 12))
  for measure in (music.pitch_classes, lambda notes: music.share_in_key(notes, 0, 'major')):
    with pytest.raises(ValueError, match='no notes'):
      measure(np.zeros((0, 4)))


def test_shares_in_key():
  share = lambda pitches, *key: music.share_in_key(line(pitches), *key)
  assert share(C_MAJOR, 0, 'major') == share(C_MAJOR, 9, 'minor') == 1.0
  # A tritone away, C major shares only F and B with F sharp major.
  assert share(C_MAJOR, 6, 'major') == pytest.approx(2 / 7)
  assert share(range(60, 72), 3, 'minor') == pytest.approx(7 / 12)
  with pytest.raises(ValueError, match='tonic=12'):
    share(C_MAJOR, 12, 'major')


def test_distances_of_histograms():
  c, g = music.pitch_classes(line([60])), music.pitch_classes(line([67]))
  assert music.histogram_distance(c, c) == 0 and music.histogram_distance(c, g) == 1
  both = music.pitch_classes(line([60, 67]))
  assert music.histogram_distance(c, both) == pytest.approx(0.5)


def test_rates_count_chords_once():
  chord = np.array([[0, 1, 60, 80], [0.02, 1, 64, 80], [0.04, 1, 67, 80]])
  assert music.onset_rate(chord, 2.0) == 0.5
  assert music.onset_rate(np.concatenate([chord, line([60, 62], start=1.0)]), 2.0) == 1.5
  assert music.onset_rate(np.zeros((0, 4)), 2.0) == 0


@pytest.mark.parametrize('per_second', [1.0, 2.0, 4.0])
def test_onsets_are_heard_in_bursts_of_sound(per_second):
  rate, seconds = 16_000, 4.0
  time_T = np.arange(round(rate * seconds)) / rate
  since_T = (time_T + 0.5 / per_second) % (1 / per_second)  # a burst starts in each period's middle
  wave_T = np.exp(-30 * since_T) * np.sin(2 * np.pi * 440 * since_T)
  wave_T[time_T < 0.5 / per_second] = 0
  assert music.heard_onset_rate(wave_T, rate) == pytest.approx(per_second)


def test_silence_has_no_onsets():
  assert music.heard_onset_rate(np.zeros(16_000), 16_000) == 0


def test_polyphony_is_the_mean_while_notes_sound():
  # One note for 1 s, two for 1 s, none for 2 s, one for 1 s.
  notes_N4 = np.array([[0, 2, 60, 80], [1, 2, 64, 80], [4, 5, 67, 80]], float)
  assert music.polyphony(notes_N4) == pytest.approx(4 / 3)
  assert music.polyphony(np.zeros((0, 4))) == 0
  assert music.polyphony(line([60, 62, 64])) == 1


def test_agreement_of_notes():
  pytest.importorskip('mir_eval', reason='mir_eval is not installed: note F1 is not tested')
  true_N4 = line([60, 64, 67, 72])
  assert music.note_f1(true_N4, true_N4) == 1.0
  # One wrong pitch, one late onset, one note too many: 2 right of 4 and of 5.
  heard_N4 = np.concatenate([true_N4, line([50])])
  heard_N4[1, 2] += 1
  heard_N4[2, 0] += 0.1
  assert music.note_f1(true_N4, heard_N4) == pytest.approx(2 * (2 / 4) * (2 / 5) / (2 / 4 + 2 / 5))
  late_N4 = true_N4 + [0.03, 0.3, 0, 0]
  assert music.note_f1(true_N4, late_N4) == 1.0
  nothing = np.zeros((0, 4))
  assert music.note_f1(true_N4, nothing) == 0 and music.note_f1(nothing, nothing) == 1


def test_impossible_notes_are_refused():
  for notes_N4 in ([[1, 0, 60, 80]], [[0, np.nan, 60, 80]]):
    with pytest.raises(ValueError, match='ends before it begins'):
      music.polyphony(np.array(notes_N4, float))


def exact_cost(p, q, cost_AB):
  """Returns the least cost of a transport, by a linear program."""
  size_a, size_b = cost_AB.shape
  rows = np.kron(np.eye(size_a), np.ones(size_b))
  columns = np.kron(np.ones(size_a), np.eye(size_b))
  solved = scipy.optimize.linprog(
    cost_AB.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=np.concatenate([p, q])
  )
  return solved.fun


def test_transport_costs_are_those_of_a_linear_program():
  random = np.random.default_rng(0)
  centroids_KD = random.normal(size=(12, 3))
  for _ in range(3):
    one_S, other_S = random.integers(12, size=(2, 40))
    p, q = (np.bincount(tokens, minlength=12) / 40 for tokens in (one_S, other_S))
    cost_KK = np.linalg.norm(centroids_KD[:, None] - centroids_KD, axis=-1)
    cost = music.transport_cost(one_S, other_S, centroids_KD)
    np.testing.assert_allclose(cost, exact_cost(p, q, cost_KK), rtol=0.05, atol=0.01)
    assert music.transport_cost(one_S, one_S[::-1], centroids_KD) < 0.02


def test_transport_on_a_line_moves_every_token_by_one():
  cost = lambda one, other: music.transport_cost(np.array(one), np.array(other), centroids_KD)
  centroids_KD = np.arange(5.0)[:, None]
  assert cost([0, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(1, rel=0.01)
  assert cost([2, 2, -1], [2]) == 0
  assert cost([0], [4, 4]) == pytest.approx(4)
  with pytest.raises(ValueError, match='has no tokens'):
    cost([-1], [0])
  with pytest.raises(ValueError, match='holds 5, outside of 0 to 4'):
    cost([5], [0])


def test_memorized_continuations_are_found():
  random = np.random.default_rng(0)
  centroids_KD = random.normal(size=(64, 8))
  centroids_KD[32:, 0] += 10  # the tokens of continuations that are not memorized
  true_NS, generated_NS = (
    np.stack([random.choice(first + random.choice(32, 8), 30) for _ in range(20)])
    for first in (0, 32)
  )
  generated_NS[:2] = true_NS[:2]
  generated_NS[2] = true_NS[2, ::-1]  # the same histogram in another order
  found = music.memorization(generated_NS, true_NS, centroids_KD, num_negatives=30, seed=1)
  assert found.exact == 2 / 20 and 0.3 < found.threshold < 10
  assert found.approximate == 3 / 20
  with pytest.raises(ValueError, match='1 examples have no permuted pairs'):
    music.memorization(true_NS[:1], true_NS[:1], centroids_KD)


def test_melodies_are_compared_in_any_octave_key_and_tempo():
  tune_F = np.repeat([60.0, 64, 67, 65, 62], 8)
  slower_F = np.repeat([60.0, 64, 67, 65, 62], 13) + 5
  with_rests_F = tune_F.copy()
  with_rests_F[[0, 9, 39]] = np.nan
  with_octaves_F = tune_F + np.repeat([0, 12, 0, -12, 0], 8)
  for same_F in (tune_F, slower_F, with_rests_F, with_octaves_F):
    assert music.melody_distance(tune_F, same_F) == pytest.approx(0, abs=1e-12)
  # By hand: around their medians 0 and 0, the tunes are -1, 0, 1 and -2, 0, 2; only ends differ.
  found = music.melody_distance(np.array([59.0, 60, 61]), np.array([70.0, 72, 74]))
  assert found == pytest.approx(2 / 3)
  assert music.melody_distance(tune_F, np.repeat([60.0, 61, 60, 66, 67], 8)) > 0.5
  assert music.melody_distance(tune_F, np.full(4, np.nan)) is None

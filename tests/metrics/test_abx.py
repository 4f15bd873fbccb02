import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.metrics import abx


def brute_force_cost(distance_NM):
  """Returns (cost, path length) of the cheapest path, by trying all of them; among equals all
  lengths.
  """
  rows, columns = distance_NM.shape

  def paths(i, j):
    if (i, j) == (rows - 1, columns - 1):
      yield [(i, j)]
    for step in ((1, 0), (0, 1), (1, 1)):
      if i + step[0] < rows and j + step[1] < columns:
        yield from ([(i, j), *rest] for rest in paths(i + step[0], j + step[1]))

  found = [(sum(distance_NM[cell] for cell in path), len(path)) for path in paths(0, 0)]
  cheapest = min(found)[0]
  return cheapest, {length for cost, length in found if np.isclose(cost, cheapest, rtol=1e-6)}


@pytest.mark.parametrize('shape', [(1, 1), (1, 4), (4, 1), (3, 5), (5, 4)])
def test_alignment_is_the_cheapest_of_all_paths(shape):
  random = np.random.default_rng(shape)
  for _ in range(5):
    distance_NM = random.random(shape).astype(np.float32)
    cost, [length] = brute_force_cost(distance_NM)
    # what is beyond a stretch has no say
    padded_PNM = np.full((1, 6, 6), random.random(), np.float32)
    padded_PNM[0, : shape[0], : shape[1]] = distance_NM
    found_P = abx.alignment_cost(
      jnp.asarray(padded_PNM), jnp.array([shape[0]]), jnp.array([shape[1]])
    )
    np.testing.assert_allclose(found_P[0], cost / length, rtol=1e-5)


def test_among_equal_alignments_one_ends_diagonally():
  # All cells cost the same: the diagonal is cheapest. Cost 0 everywhere but in the corners: any
  # path, and 0 for all.
  equal_PNM = jnp.ones((1, 3, 4))
  assert abx.alignment_cost(equal_PNM, jnp.array([3]), jnp.array([4]))[0] == 1
  # One token against itself repeated: n columns, all on the path.
  ties = np.array([[0, 0, 1], [0, 0, 1]], np.float32)
  cost, lengths = brute_force_cost(ties)
  assert (cost, lengths) == (1, {3, 4})  # a tie that the rule decides: both ends diagonal
  assert abx.alignment_cost(jnp.asarray(ties)[None], jnp.array([2]), jnp.array([3]))[
    0
  ] == pytest.approx(1 / 3)


def test_distances_by_their_definitions():
  one, other = np.array([[3.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [-2.0, 0.0], [0.0, 0.0]])
  sides = [jnp.asarray(abx._normalized(frames))[None] for frames in (one, other)]
  angular_NM = abx.frame_distances(*sides, 'angular')[0]
  # arccos is steep at 0
  np.testing.assert_allclose(angular_NM, [[0.25, 1, 1], [1, 1, 0]], atol=1e-3)
  cosine_NM = abx.frame_distances(*sides, 'cosine')[0]
  np.testing.assert_allclose(cosine_NM, [[1 - 0.5**0.5, 2, 1], [1, 1, 0]], atol=1e-6)
  tokens = jnp.array([[[1, 2], [3, 4]]]), jnp.array([[[1, 5], [3, 4], [0, 0]]])
  np.testing.assert_array_equal(
    abx.frame_distances(*tokens, 'identity')[0], [[0.5, 1, 1], [1, 0, 1]]
  )


def test_a_frame_belongs_where_its_middle_is():
  frames_FD = np.arange(10)[:, None]
  # At 25 Hz the middles are at 20, 60, 100 ms, ...; the end is exclusive, as in Libri-Light.
  assert abx.cut(frames_FD, 0.06, 0.22, 25.0).ravel().tolist() == [1, 2, 3, 4]
  assert abx.cut(frames_FD, 0.061, 0.18, 25.0).ravel().tolist() == [2, 3]
  assert abx.cut(frames_FD, 0.30, 9.0, 25.0).ravel().tolist() == [7, 8, 9]
  assert (
    abx.cut(frames_FD, 0.0, 0.01, 25.0).size == 0 and abx.cut(frames_FD, 5.0, 5.2, 25.0).size == 0
  )


def corpus(seed, phones=3, contexts=2, speakers=3, each=3):
  """Returns segments (random), phones, contexts, speakers: `each` of every combination, in random
  order.
  """
  random = np.random.default_rng(seed)
  cells = list(itertools.product(range(phones), range(contexts), range(speakers))) * each
  cells = [cells[i] for i in random.permutation(len(cells))]
  segments = [random.normal(size=(random.integers(1, 6), 4)).astype(np.float32) for _ in cells]
  return segments, *map(list, zip(*cells, strict=True))


def brute_force_score(segments, phones, contexts, speakers, speaker, cost):
  """Returns the error by looping over all triplets, one after the other."""
  cells = {}
  index = range(len(segments))
  for a, b, x in itertools.product(index, repeat=3):
    if (
      contexts[a] != contexts[b]
      or contexts[a] != contexts[x]
      or phones[a] != phones[x]
      or phones[a] == phones[b]
    ):
      continue
    if (
      a == x or speakers[a] != speakers[b] or (speakers[x] == speakers[a]) != (speaker == 'within')
    ):
      continue
    key = (phones[a], phones[b], speakers[a], contexts[a], speakers[x])
    to_a, to_b = cost(segments[x], segments[a]), cost(segments[x], segments[b])
    cells.setdefault(key, []).append(1.0 * (to_b < to_a) + 0.5 * (to_b == to_a))
  errors = {key: np.mean(values) for key, values in cells.items()}
  for length in (3, 2):  # over contexts and speakers of X; over speakers
    grouped = {}
    for key, value in errors.items():
      grouped.setdefault(key[:length], []).append(value)
    errors = {key: np.mean(values) for key, values in grouped.items()}
  return np.mean(list(errors.values()))


@pytest.mark.parametrize('speaker', abx.SPEAKERS)
def test_score_equals_looping_over_triplets(speaker):
  data = corpus(seed=1)
  keep = [n for n in range(len(data[0])) if n % 7]  # unequal groups
  data = [[column[n] for n in keep] for column in data]
  pooled = lambda one, other: np.linalg.norm(one.mean(0) - other.mean(0))

  # One frame each, so that an alignment is the distance itself.
  single = [[segment.mean(axis=0, keepdims=True) for segment in data[0]], *data[1:]]

  def angle(one, other):
    cosine = (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)
    return np.arccos(np.clip(cosine, -1, 1)) / np.pi

  expected = brute_force_score(*single, speaker, angle)
  result = abx.score(*single, speaker=speaker)
  assert result.error == pytest.approx(expected, abs=1e-6)
  assert result.phone_pairs == 6
  # the distance matters
  assert brute_force_score(*single, speaker, pooled) != pytest.approx(expected, abs=1e-6)


def test_tokens_that_are_the_phones_make_no_error_and_constant_tokens_are_at_chance():
  _, phones, contexts, speakers = corpus(seed=2)
  random = np.random.default_rng(0)
  named = [np.full((random.integers(1, 7), 1), phone) for phone in phones]
  constant = [np.zeros((random.integers(1, 7), 1), int) for _ in phones]
  voices = [np.full((random.integers(1, 7), 1), speaker) for speaker in speakers]
  for speaker in abx.SPEAKERS:
    options = dict(speaker=speaker, distance='identity')
    assert abx.score(named, phones, contexts, speakers, **options).error == 0
    assert abx.score(constant, phones, contexts, speakers, **options).error == 0.5
    assert abx.score(voices, phones, contexts, speakers, **options).error == 0.5


def test_more_noise_makes_more_errors_and_noise_alone_is_at_chance():
  _, phones, contexts, speakers = corpus(seed=3, each=6)
  errors = []
  for noise in (0.1, 1.0, 3.0, 1000.0):
    random = np.random.default_rng(0)
    segments = [
      (np.eye(8)[phone] + noise * random.normal(size=(random.integers(2, 7), 8))).astype(np.float32)
      for phone in phones
    ]
    errors.append(abx.score(segments, phones, contexts, speakers, speaker='across').error)
  assert errors == sorted(errors) and errors[0] < 0.01 and abs(errors[-1] - 0.5) < 0.05


def test_draws_are_repeatable_and_bounded():
  segments, phones, contexts, speakers = corpus(seed=4, contexts=1, speakers=4, each=8)
  small = dict(speaker='across', max_group=3, max_speakers=2)
  score = lambda **options: abx.score(segments, phones, contexts, speakers, **options)
  assert score(**small) == score(**small) != score(**small, seed=1)
  assert score(**small).alignments < score(speaker='across').alignments
  assert score(**small).comparisons == 4 * 3 * 2 * 2  # speakers, phones A, speakers of X, phones B
  told = []
  assert score(**small, progress=told.append).alignments == sum(told)


def test_what_cannot_be_compared_is_said():
  segments, phones, contexts, speakers = corpus(seed=5, phones=1)
  for speaker, other in (('within', 'the same'), ('across', 'another')):
    with pytest.raises(
      ValueError, match=f'no {speaker}-speaker comparison .* one of them again by {other} speaker'
    ):
      abx.score(segments, phones, contexts, speakers, speaker=speaker)
  with pytest.raises(ValueError, match="'both'"):
    abx.score(segments, phones, contexts, speakers, speaker='both')
  with pytest.raises(ValueError, match='have lengths'):
    abx.score(segments, phones[1:], contexts, speakers, speaker='within')
  segments, phones, contexts, speakers = corpus(seed=5)
  empty = [np.zeros((0, 4), np.float32)] * 3
  result = abx.score(
    segments + empty, phones + [0, 1, 2], contexts + [0] * 3, speakers + [0] * 3, speaker='within'
  )
  assert result == abx.score(segments, phones, contexts, speakers, speaker='within')


@pytest.mark.parametrize('distance', ['angular', 'cosine'])
def test_discrete_tokens_have_no_angle(distance):
  segments = [np.zeros((2, 1), np.int32)] * 4
  with pytest.raises(
    ValueError, match=rf"segments\[0\] is of type int32 and distance='{distance}'.*'identity'"
  ):
    abx.score(segments, list('aabb'), [0] * 4, [0] * 4, speaker='within', distance=distance)


def test_features_that_are_not_finite_have_no_distance():
  segments = [np.zeros((2, 3), np.float32), np.full((2, 3), np.nan, np.float32)]
  with pytest.raises(ValueError, match=r'segments\[1\] contains NaN'):
    abx.score(segments, list('ab'), [0] * 2, [0] * 2, speaker='within')

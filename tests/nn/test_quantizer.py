import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.nn import quantizer

Q, K, D = 3, 5, 4
# As one program each: compiling one for each operation takes most of the time of these tests.
encode, decode, quantize, fit = map(
  jax.jit, (quantizer.encode, quantizer.decode, quantizer.quantize, quantizer.fit)
)
update = jax.jit(quantizer.update, static_argnames=('decay', 'dead_code_threshold'))
fsq_encode, fsq_decode, fsq_quantize = (
  jax.jit(function, static_argnums=0)
  for function in (quantizer.fsq_encode, quantizer.fsq_decode, quantizer.fsq_quantize)
)


@pytest.fixture
def books():
  vectors_QKD = jax.random.normal(jax.random.key(0), (Q, K, D))
  counts_QK = jax.random.uniform(jax.random.key(1), (Q, K), minval=1, maxval=9)
  return quantizer.Codebooks(
    vectors_QKD, counts_QK, vectors_QKD * counts_QK[..., None], jnp.asarray(True)
  )


@pytest.fixture
def x_BFD():
  return jax.random.normal(jax.random.key(2), (2, 6, D))


def _brute_force(vectors_QKD, x_BFD):
  """Returns codes, the input of every level, and the sum of the chosen vectors after every
  level.
  """
  residual = np.array(x_BFD, np.float64)
  codes, inputs, sums = [], [], [np.zeros_like(residual)]
  for vectors_KD in np.asarray(vectors_QKD, np.float64):
    distance = np.square(residual[:, :, None] - vectors_KD).sum(-1)
    codes.append(distance.argmin(-1))
    inputs.append(residual)
    sums.append(sums[-1] + vectors_KD[codes[-1]])
    residual = residual - vectors_KD[codes[-1]]
  return np.stack(codes, -1), inputs, sums


def test_encode_and_decode_match_brute_force(books, x_BFD):
  codes, inputs, sums = _brute_force(books.vectors_QKD, x_BFD)
  codes_BFQ, residuals_QBFD = encode(books.vectors_QKD, x_BFD)
  np.testing.assert_array_equal(codes_BFQ, codes)
  np.testing.assert_allclose(residuals_QBFD, inputs, atol=1e-5)
  for levels in (1, 2, 3):
    got_BFD = decode(books.vectors_QKD, codes_BFQ[..., :levels])
    np.testing.assert_allclose(got_BFD, sums[levels], atol=1e-5)


def test_quantize_uses_the_first_levels_of_each_example(books, x_BFD):
  _, inputs, sums = _brute_force(books.vectors_QKD, x_BFD)
  quantized = quantize(books.vectors_QKD, x_BFD, jnp.asarray([1, 3]))
  np.testing.assert_allclose(quantized.z_BFD, [sums[1][0], sums[3][1]], atol=1e-5)
  distance = [np.square(inputs[q] - (sums[q + 1] - sums[q])).mean((1, 2)) for q in range(Q)]
  np.testing.assert_allclose(
    quantized.commitment,
    (distance[0][0] + distance[0][1] + distance[1][1] + distance[2][1]) / 4,
    rtol=1e-5,
  )


def test_gradients_pass_straight_through_and_commitment_pulls_to_the_codes(books, x_BFD):
  levels_B = jnp.asarray([1, 1])
  through_BFD = jax.grad(lambda x: jnp.sum(3 * quantize(books.vectors_QKD, x, levels_B).z_BFD))(
    x_BFD
  )
  np.testing.assert_allclose(through_BFD, 3 * np.ones_like(x_BFD))
  pull_BFD = jax.grad(lambda x: quantize(books.vectors_QKD, x, levels_B).commitment)(x_BFD)
  _, _, sums = _brute_force(books.vectors_QKD, x_BFD)
  np.testing.assert_allclose(pull_BFD, 2 * (np.asarray(x_BFD) - sums[1]) / x_BFD.size, atol=1e-6)


def test_update_is_a_moving_average_of_the_frames_of_each_code(books, x_BFD):
  quantized = quantize(books.vectors_QKD, x_BFD, jnp.asarray([1, 2]))
  new = update(books, quantized, jax.random.key(0), decay=0.9, dead_code_threshold=0.0)
  codes, inputs, _ = _brute_force(books.vectors_QKD, x_BFD)
  for q in range(Q):
    for k in range(K):
      chosen = inputs[q][codes[..., q] == k]
      count = 0.9 * books.counts_QK[q, k] + 0.1 * len(chosen)
      total = 0.9 * books.sums_QKD[q, k] + 0.1 * chosen.sum(0)
      np.testing.assert_allclose(new.counts_QK[q, k], count, rtol=1e-5)
      np.testing.assert_allclose(new.vectors_QKD[q, k], total / count, atol=1e-5)


def test_dead_codes_become_frames_of_their_level(books, x_BFD):
  # Code 2 of every level is far from everything, and was hardly chosen before.
  books = books._replace(
    vectors_QKD=books.vectors_QKD.at[:, 2].set(100.0),
    counts_QK=jnp.full((Q, K), 50.0).at[:, 2].set(0.1),
    sums_QKD=(books.vectors_QKD * 50.0).at[:, 2].set(10.0),
  )
  quantized = quantize(books.vectors_QKD, x_BFD, jnp.asarray([3, 3]))
  new = update(books, quantized, jax.random.key(0), decay=0.99, dead_code_threshold=2.0)
  for q in range(Q):
    frames_ND = np.asarray(quantized.residuals_QBFD[q]).reshape(-1, D)
    assert np.abs(frames_ND - new.vectors_QKD[q, 2]).max(-1).min() < 1e-6
    np.testing.assert_allclose(
      new.sums_QKD[q, 2], new.counts_QK[q, 2] * new.vectors_QKD[q, 2], rtol=1e-5
    )
    kept = [0, 1, 3, 4]
    np.testing.assert_allclose(new.vectors_QKD[q, kept[0]], books.vectors_QKD[q, kept[0]], atol=0.1)
  assert (new.counts_QK >= 2).all()


def test_fit_finds_separated_clusters_level_by_level():
  # Five far points, and around each of them the same five near offsets: level 0 finds points, level
  # 1 offsets.
  points_KD, offsets_KD = 100 * np.eye(5, D) - 50, np.random.default_rng(0).normal(size=(5, D))
  offsets_KD -= offsets_KD.mean(0)
  frames_ND = (points_KD[:, None] + offsets_KD).reshape(1, 25, D).astype(np.float32)
  empty = quantizer.init(jax.random.key(0), 2, 25, D)
  books = fit(empty, jnp.asarray(frames_ND), jax.random.key(0))
  assert books.fitted and not empty.fitted
  codes_BFQ, _ = encode(books.vectors_QKD, jnp.asarray(frames_ND))
  np.testing.assert_allclose(decode(books.vectors_QKD, codes_BFQ), frames_ND, atol=1e-3)
  np.testing.assert_allclose(np.sum(books.counts_QK, axis=-1), 25)


def test_fit_with_fewer_frames_than_codes_still_reproduces_them():
  frames_BFD = jax.random.normal(jax.random.key(3), (1, 3, D))
  books = fit(quantizer.init(jax.random.key(0), Q, 8, D), frames_BFD, jax.random.key(0))
  assert all(np.isfinite(leaf).all() for leaf in books)
  codes_BFQ, _ = encode(books.vectors_QKD, frames_BFD)
  np.testing.assert_allclose(decode(books.vectors_QKD, codes_BFQ), frames_BFD, atol=1e-5)
  quantized = quantize(books.vectors_QKD, frames_BFD, jnp.asarray([Q]))
  books = update(books, quantized, jax.random.key(1), decay=0.99, dead_code_threshold=0.1)
  assert all(np.isfinite(leaf).all() for leaf in books)


def test_perplexity_counts_equal_codes():
  codes_BFQ = jnp.stack([jnp.arange(8) % 4, jnp.zeros(8, jnp.int32)], axis=-1)[None]
  np.testing.assert_allclose(quantizer.perplexity(codes_BFQ, 16), [4, 1], rtol=1e-5)


LEVELS = (3, 8, 2, 5)


def _fsq_closed_form(levels, x):
  """Returns code and point of one vector, digit by digit in Python's floats (the formulas of arXiv
  2309.15505).
  """
  code, place, point = 0, 1, []
  for size, value in zip(levels, x, strict=True):
    half = (size - 1) * 0.999 / 2
    bounded = (
      math.tanh(value) * half if size % 2 else math.tanh(value + math.tan(0.5 / half)) * half - 0.5
    )
    digit = math.floor(bounded + 0.5)
    code, place = code + place * (digit + size // 2), place * size
    point.append(digit / (size // 2))
  return code, point


def test_fsq_matches_the_closed_form():
  x_BFD = 2 * jax.random.normal(jax.random.key(4), (3, 40, len(LEVELS)))
  want = [[_fsq_closed_form(LEVELS, map(float, x_D)) for x_D in x_FD] for x_FD in x_BFD]
  codes_BFQ = fsq_encode(LEVELS, x_BFD)
  assert codes_BFQ.shape == (3, 40, 1)
  np.testing.assert_array_equal(codes_BFQ[..., 0], [[code for code, _ in row] for row in want])
  points = [[point for _, point in row] for row in want]
  np.testing.assert_allclose(fsq_decode(LEVELS, codes_BFQ), points, atol=1e-6)
  quantized = fsq_quantize(LEVELS, x_BFD)
  np.testing.assert_array_equal(quantized.codes_BFQ, codes_BFQ)
  np.testing.assert_allclose(quantized.z_BFD, points, atol=1e-6)
  assert quantized.commitment == 0


@pytest.mark.parametrize('size', [2, 3, 4, 5, 16, 255])
def test_fsq_reaches_every_level_in_order_and_none_beyond(size):
  x_BFD = jnp.linspace(-20, 20, 40_001)[None, :, None]
  codes_F = np.asarray(fsq_encode((size,), x_BFD))[0, :, 0]
  assert (np.diff(codes_F) >= 0).all() and set(codes_F.tolist()) == set(range(size))


def test_fsq_codes_number_the_points_of_the_grid():
  points_FD = np.asarray(fsq_decode(LEVELS, jnp.arange(240)[None, :, None]))[0]
  axes = [np.arange(-(size // 2), size - size // 2) / (size // 2) for size in LEVELS]
  # first axis fastest
  grid_FD = np.stack(np.meshgrid(*reversed(axes), indexing='ij')[::-1], axis=-1).reshape(-1, 4)
  np.testing.assert_allclose(points_FD, grid_FD, atol=1e-6)


def test_fsq_gradients_are_those_of_the_bound():
  x_BFD = jax.random.normal(jax.random.key(5), (1, 6, len(LEVELS)))
  got_BFD = jax.grad(lambda x: jnp.sum(fsq_quantize(LEVELS, x).z_BFD))(x_BFD)
  sizes = np.array(LEVELS)
  half = (sizes - 1) * 0.999 / 2
  inner = np.asarray(x_BFD, np.float64) + np.where(sizes % 2, 0, np.tan(0.5 / half))
  np.testing.assert_allclose(got_BFD, (1 - np.tanh(inner) ** 2) * half / (sizes // 2), rtol=1e-4)

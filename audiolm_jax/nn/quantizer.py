"""Residual vector quantization (SoundStream, section III-C), and finite scalar quantization.

Codebooks are learned by exponential moving averages, not by gradients: pure functions compute the
next `Codebooks`, which are part of a stage's `state`. All arrays are float32, because distances and
moving averages in bfloat16 would lose codes. Arrays are global, so that k-means and averages use
the whole batch.

The order within a training step is `fitted`, `quantize`, `update`:

  books = fitted(books, x_BFD, key)  # places the vectors, on the first batch only
  quantized = quantize(books.vectors_QKD, x_BFD, levels_B)
  books = update(books, quantized, key, decay=0.99, dead_code_threshold=2.0)  # the next state

`fitted` comes first, because otherwise the first batch would be quantized by random vectors.
`update` comes last, because it needs the codes and residuals of the vectors before their update. In
evaluation, `quantize` runs alone, and the state does not change.

Finite scalar quantization (arXiv 2309.15505) has a fixed grid instead of learned codebooks.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from audiolm_jax import checks
from audiolm_jax.errors import UserError

KMEANS_ITERATIONS = 10
# Scope of operations of the first step only, which `costs` does not count.
FIT = 'fit_codebooks'
# Otherwise, TPUs would round the float32 operands of a product to bfloat16.
HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class RVQ:
  """Configures a residual vector quantizer; the defaults are AudioLM's codec.

  Fields:
    num_quantizers: number of levels.
    codebook_size: number of codes per level.
    embedding_dim: width of the vectors.
    dropout: whether a training example uses a random number of levels; otherwise, it uses all.
    decay: decay per step of the moving averages.
    dead_code_threshold: average number of frames per batch below which a code is replaced; small
      batches need a lower one.

  Raises:
    UserError: if a field is illegal.
  """

  num_quantizers: int = 12
  codebook_size: int = 1024
  embedding_dim: int = 256
  dropout: bool = True
  decay: float = 0.99
  dead_code_threshold: float = 2.0

  def __post_init__(self):
    checks.fields(
      self,
      num_quantizers=checks.WHOLE,
      codebook_size=checks.WHOLE,
      embedding_dim=checks.WHOLE,
      dropout=checks.FLAG,
      decay=checks.BELOW_ONE,
      dead_code_threshold=checks.NOT_NEGATIVE,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FSQ:
  """Configures finite scalar quantization, which has one code per frame.

  Fields:
    levels: number of values of each dimension; the number of codes is their product.

  Raises:
    UserError: if a dimension has fewer than two levels, or there are 2^31 codes or more.
  """

  levels: tuple[int, ...]

  def __post_init__(self):
    if not checks.each(checks.whole(2)).holds(self.levels) or self.codebook_size >= 2**31:
      raise UserError(
        f'levels={self.levels}: give 2 or more levels for each dimension, below 2^31 codes'
      )

  @property
  def num_quantizers(self) -> int:
    return 1

  @property
  def codebook_size(self) -> int:
    return math.prod(self.levels)

  @property
  def embedding_dim(self) -> int:
    return len(self.levels)


class Codebooks(NamedTuple):
  """Holds the codebooks of Q levels, and their moving averages.

  Fields:
    vectors_QKD: code vectors.
    counts_QK: moving average of the number of frames per batch that choose each code.
    sums_QKD: moving average of the sum of those frames; vectors = sums / counts.
    fitted: whether k-means has initialized the vectors; before, they are random and small.
  """

  vectors_QKD: Float[Array, 'Q K D']
  counts_QK: Float[Array, 'Q K']
  sums_QKD: Float[Array, 'Q K D']
  fitted: Bool[Array, '']


class Quantized(NamedTuple):
  """Holds the result of a quantization.

  Fields:
    z_BFD: sum of the chosen vectors; its gradient is passed to the input unchanged.
    codes_BFQ: codes of all levels.
    residuals_QBFD: input of each level, without gradients; that of level 0 is the whole input.
    commitment: mean squared difference per dimension between the input of a level and its vector,
      averaged over the levels in use.
  """

  z_BFD: Float[Array, 'B F D']
  codes_BFQ: Int[Array, 'B F Q']
  residuals_QBFD: Float[Array, 'Q B F D']
  commitment: Float[Array, '']


def init(key: jax.Array, num_quantizers: int, codebook_size: int, dim: int) -> Codebooks:
  """Returns codebooks of small random vectors, which `fit` replaces at the first training batch."""
  vectors_QKD = 0.1 * jax.random.normal(key, (num_quantizers, codebook_size, dim))
  counts_QK = jnp.ones((num_quantizers, codebook_size))
  # A copy, because a train step that donates its state must not get a buffer twice.
  return Codebooks(vectors_QKD, counts_QK, jnp.copy(vectors_QKD), jnp.asarray(False))


def nearest(vectors_KD: Float[Array, 'K D'], x: Float[Array, '*dims D']) -> Int[Array, '*dims']:
  """Returns the index of the vector nearest to each x; of equal ones, the first."""
  products = jnp.einsum('...d,kd->...k', x, vectors_KD, precision=HIGHEST)
  # |x|^2 is the same for every k.
  norms = _last_axis(jnp.sum(jnp.square(vectors_KD), axis=-1), products.ndim)
  return jnp.argmin(norms - 2 * products, axis=-1).astype(jnp.int32)


def _last_axis(values_N, ndim: int):
  """Returns values [N] as the last axis of an array with `ndim` axes."""
  return values_N.reshape((1,) * (ndim - 1) + (-1,))


def encode(
  vectors_QKD: Float[Array, 'Q K D'], x_BFD: Float[Array, 'B F D']
) -> tuple[Int[Array, 'B F Q'], Float[Array, 'Q B F D']]:
  """Returns the codes of all levels, and the input of each level.

  The input of a level is the residual: the input minus the vectors of the previous levels.

  Raises:
    UserError: if ranks or widths are wrong.
  """
  checks.shapes(vectors_QKD=vectors_QKD, x_BFD=x_BFD)

  def level(residual_BFD, vectors_KD):
    codes_BF = nearest(vectors_KD, residual_BFD)
    return residual_BFD - vectors_KD[codes_BF], (codes_BF, residual_BFD)

  _, (codes_QBF, residuals_QBFD) = jax.lax.scan(level, x_BFD.astype(jnp.float32), vectors_QKD)
  return jnp.moveaxis(codes_QBF, 0, -1), residuals_QBFD


def lookup(
  vectors_QKD: Float[Array, 'Q K D'], codes_BFQ: Int[Array, 'B F Qu']
) -> Float[Array, 'Qu B F D']:
  """Returns the vectors of the codes of any number of leading levels."""
  return jax.vmap(lambda vectors_KD, codes_BF: vectors_KD[codes_BF])(
    vectors_QKD[: codes_BFQ.shape[-1]], jnp.moveaxis(codes_BFQ, -1, 0)
  )


def decode(
  vectors_QKD: Float[Array, 'Q K D'], codes_BFQ: Int[Array, 'B F Qu']
) -> Float[Array, 'B F D']:
  """Returns the sum of the vectors of the codes of any number of leading levels.

  Compiled code cannot check codes; the result of a frame with an illegal code is NaN.

  Raises:
    UserError: if the rank is wrong, there are too many levels, or a code is illegal.
  """
  checks.shapes(vectors_QKD=vectors_QKD)
  checks.shapes(codes_BFQ=codes_BFQ)
  levels, size = codes_BFQ.shape[-1], vectors_QKD.shape[1]
  if levels > len(vectors_QKD):
    raise UserError(
      f'codes_BFQ has {levels} levels, the codebooks {len(vectors_QKD)}: '
      'were they made by another codec?'
    )
  checks.ids('codes_BFQ', codes_BFQ, size, padding=False)
  codes_BFQ = jnp.asarray(codes_BFQ)
  known_BF1 = jnp.all((codes_BFQ >= 0) & (codes_BFQ < size), axis=-1, keepdims=True)
  return jnp.where(known_BF1, jnp.sum(lookup(vectors_QKD, codes_BFQ), axis=0), jnp.nan)


def quantize(
  vectors_QKD: Float[Array, 'Q K D'], x_BFD: Float[Array, 'B F D'], levels_B: Int[Array, 'B']
) -> Quantized:
  """Quantizes each example with its first `levels_B` levels, a random number in training.

  Raises:
    UserError: if ranks or sizes are wrong.
  """
  checks.shapes(vectors_QKD=vectors_QKD, x_BFD=x_BFD, levels_B=levels_B)
  codes_BFQ, residuals_QBFD = encode(vectors_QKD, jax.lax.stop_gradient(x_BFD))
  vectors_QBFD = lookup(vectors_QKD, codes_BFQ)
  used_QB = jnp.arange(len(vectors_QBFD))[:, None] < levels_B[None]
  z_BFD = jnp.einsum('qb,qbfd->bfd', used_QB.astype(jnp.float32), vectors_QBFD, precision=HIGHEST)
  # The input of a level is x minus constant vectors, so its gradient is that of x.
  inputs_QBFD = x_BFD[None] + jax.lax.stop_gradient(residuals_QBFD - x_BFD[None])
  distance_QB = jnp.mean(jnp.square(inputs_QBFD - vectors_QBFD), axis=(-2, -1))
  commitment = jnp.sum(jnp.where(used_QB, distance_QB, 0)) / jnp.sum(used_QB)
  return Quantized(
    x_BFD + jax.lax.stop_gradient(z_BFD - x_BFD), codes_BFQ, residuals_QBFD, commitment
  )


def _totals(codes_N, x_ND, codebook_size):
  """Returns the number of frames [K] that chose each code, and their sum [K, D]."""
  choices_NK = jax.nn.one_hot(codes_N, codebook_size, dtype=jnp.float32)
  return jnp.sum(choices_NK, axis=0), jnp.einsum('nk,nd->kd', choices_NK, x_ND, precision=HIGHEST)


def fit(codebooks: Codebooks, x_BFD: Float[Array, 'B F D'], key: jax.Array) -> Codebooks:
  """Returns codebooks whose vectors are k-means centroids of the frames of one batch.

  Each level is fitted to the residuals of the previous levels. If there are fewer frames than
  codes, some vectors are equal; only the first of them is chosen, and `update` replaces the others
  by frames of later batches.
  """
  checks.shapes(vectors_QKD=codebooks.vectors_QKD, x_BFD=x_BFD)
  codebook_size = codebooks.vectors_QKD.shape[1]
  x_ND = x_BFD.reshape(-1, x_BFD.shape[-1]).astype(jnp.float32)
  num_frames = len(x_ND)

  def lloyd(vectors_KD, residual_ND):
    counts_K, sums_KD = _totals(nearest(vectors_KD, residual_ND), residual_ND, codebook_size)
    means_KD = sums_KD / jnp.maximum(counts_K, 1)[:, None]
    return jnp.where(counts_K[:, None] > 0, means_KD, vectors_KD), counts_K

  def level(residual_ND, key):
    order_N = jax.random.permutation(key, num_frames)
    start_KD = residual_ND[order_N[jnp.arange(codebook_size) % num_frames]]
    vectors_KD, counts_IK = jax.lax.scan(
      lambda vectors_KD, _: lloyd(vectors_KD, residual_ND), start_KD, length=KMEANS_ITERATIONS
    )
    next_ND = residual_ND - vectors_KD[nearest(vectors_KD, residual_ND)]
    return next_ND, (vectors_KD, counts_IK[-1])

  _, (vectors_QKD, counts_QK) = jax.lax.scan(
    level, x_ND, jax.random.split(key, len(codebooks.vectors_QKD))
  )
  return Codebooks(vectors_QKD, counts_QK, vectors_QKD * counts_QK[..., None], jnp.asarray(True))


def fitted(codebooks: Codebooks, x_BFD: Float[Array, 'B F D'], key: jax.Array) -> Codebooks:
  """Returns the codebooks, after `fit` on this batch if that was not done before."""
  with jax.named_scope(FIT):
    return jax.lax.cond(
      codebooks.fitted, lambda books: books, lambda books: fit(books, x_BFD, key), codebooks
    )


def update(
  codebooks: Codebooks,
  quantized: Quantized,
  key: jax.Array,
  *,
  decay: float,
  dead_code_threshold: float,
) -> Codebooks:
  """Returns codebooks with updated moving averages, in which rarely chosen codes are replaced.

  All levels are updated by all frames, including levels that quantizer dropout did not use. The
  vector of a code that is chosen by fewer than `dead_code_threshold` frames per batch, on average,
  becomes a random input of its level from this batch. The count of such a code restarts at an equal
  share of the frames, so that it is not replaced again at once.
  """
  codebook_size = codebooks.vectors_QKD.shape[1]

  def level(counts_K, sums_KD, vectors_KD, codes_BF, residual_BFD, key):
    residual_ND = residual_BFD.reshape(-1, residual_BFD.shape[-1])
    batch_counts_K, batch_sums_KD = _totals(codes_BF.reshape(-1), residual_ND, codebook_size)
    counts_K = decay * counts_K + (1 - decay) * batch_counts_K
    sums_KD = decay * sums_KD + (1 - decay) * batch_sums_KD
    # A code that was never chosen has no mean, and keeps its vector.
    vectors_KD = jnp.where(
      counts_K[:, None] > 0, sums_KD / jnp.maximum(counts_K, 1e-9)[:, None], vectors_KD
    )
    dead_K = counts_K < dead_code_threshold
    fresh_KD = residual_ND[jax.random.randint(key, (codebook_size,), 0, len(residual_ND))]
    share = max(dead_code_threshold, len(residual_ND) / codebook_size)
    counts_K = jnp.where(dead_K, share, counts_K)
    vectors_KD = jnp.where(dead_K[:, None], fresh_KD, vectors_KD)
    return vectors_KD, counts_K, jnp.where(dead_K[:, None], share * fresh_KD, sums_KD)

  updated = jax.vmap(level)(
    codebooks.counts_QK,
    codebooks.sums_QKD,
    codebooks.vectors_QKD,
    jnp.moveaxis(quantized.codes_BFQ, -1, 0),
    quantized.residuals_QBFD,
    jax.random.split(key, len(codebooks.counts_QK)),
  )
  return Codebooks(*updated, codebooks.fitted)


def perplexity(codes_BFQ: Int[Array, 'B F Q'], codebook_size: int) -> Float[Array, 'Q']:
  """Returns exp(entropy) of the codes of each level, from 1 to `codebook_size`."""
  share_QK = jnp.mean(jax.nn.one_hot(codes_BFQ, codebook_size), axis=(0, 1))
  return jnp.exp(jnp.sum(jax.scipy.special.entr(share_QK), axis=-1))


FSQ_EPSILON = 1e-3  # keeps saturated values away from the border between two integers


def _fsq_bound(levels: Sequence[int], x: Float[Array, '*dims D']) -> Float[Array, '*dims D']:
  """Returns x bounded such that rounding gives L integers per dimension, from -(L // 2).

  For even L, these are not symmetric about 0, so x is shifted first. The shift is a tangent, as in
  the paper's listing. The inverse of tanh would map 0 to 0, but is infinite for L = 2.
  """
  levels_D = np.asarray(levels)
  half = _last_axis((levels_D - 1) * (1 - FSQ_EPSILON) / 2, x.ndim)
  offset = _last_axis(np.where(levels_D % 2, 0.0, 0.5), x.ndim)
  return (jnp.tanh(x + np.tan(offset / half)) * half - offset).astype(jnp.float32)


def fsq_encode(levels: Sequence[int], x_BFD: Float[Array, 'B F D']) -> Int[Array, 'B F 1']:
  """Returns one code per frame, a number whose digits are the rounded dimensions, lowest first."""
  checks.shapes(x_BFD=x_BFD, levels_D=levels)
  half_11D = _last_axis(np.asarray(levels), 3) // 2
  digits_BFD = jnp.round(_fsq_bound(levels, x_BFD)).astype(jnp.int32) + half_11D
  place_11D = _last_axis(np.cumprod([1, *levels[:-1]]), 3)
  return jnp.sum(digits_BFD * place_11D, axis=-1, keepdims=True, dtype=jnp.int32)


def fsq_decode(levels: Sequence[int], codes_BFQ: Int[Array, 'B F 1']) -> Float[Array, 'B F D']:
  """Returns the grid point in [-1, 1] of each code; codes are 0 to prod(levels) - 1.

  Compiled code cannot check codes; the point of an illegal code is NaN.

  Raises:
    UserError: if the rank is wrong or a code is illegal.
  """
  checks.shapes(codes_BF1=codes_BFQ)
  levels_11D, size = _last_axis(np.asarray(levels), 3), int(np.prod(levels))
  checks.ids('codes_BFQ', codes_BFQ, size, padding=False)
  codes_BFQ = jnp.asarray(codes_BFQ)
  place_11D = _last_axis(np.cumprod([1, *levels[:-1]]), 3)
  digits_BFD = codes_BFQ // place_11D % levels_11D
  points_BFD = ((digits_BFD - levels_11D // 2) / (levels_11D // 2)).astype(jnp.float32)
  return jnp.where((codes_BFQ >= 0) & (codes_BFQ < size), points_BFD, jnp.nan)


def fsq_quantize(levels: Sequence[int], x_BFD: Float[Array, 'B F D']) -> Quantized:
  """Quantizes each frame, without a commitment loss.

  The gradient of the rounding is 1; the bound has its own gradient.
  """
  codes_BFQ = fsq_encode(levels, x_BFD)
  bounded_BFD = _fsq_bound(levels, x_BFD) / (_last_axis(np.asarray(levels), 3) // 2)
  z_BFD = bounded_BFD + jax.lax.stop_gradient(fsq_decode(levels, codes_BFQ) - bounded_BFD)
  return Quantized(z_BFD, codes_BFQ, jax.lax.stop_gradient(x_BFD)[None], jnp.zeros(()))

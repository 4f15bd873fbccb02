"""Residual vector quantization with codebooks learned by exponential moving averages (SoundStream,
section III-C).

Pure functions over `Codebooks`, which live in a stage's `state`: no gradient ever reaches them.
Everything is float32: distances and running sums lose codes in bfloat16. Arrays are global, so
k-means and the averages see the whole batch.

The order within a training step is `fitted`, `quantize`, `update`:

  books = fitted(books, x_BFD, key)  # places the vectors, on the first batch only
  quantized = quantize(books.vectors_QKD, x_BFD, levels_B)
  books = update(books, quantized, key, decay=0.99, dead_code_threshold=2.0)  # the next state

`fitted` comes first, or the first batch is quantized by random vectors; `update` last, because it
takes the codes and residuals for those of the vectors that it moves. In evaluation `quantize` runs
alone, and the state stays as it is.

At the end, the alternative that learns no codebook: finite scalar quantization (Mentzer et al.,
2023, arXiv 2309.15505).
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
# the scope of what runs at the first step alone: `training` counts none of it
FIT = 'fit_codebooks'
# TPUs would otherwise round the float32 operands of a product to bfloat16
HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class RVQ:
  """Sizes of a residual vector quantizer, and how it learns. Raises ValueError for a value that is
  not legal.
  """

  num_quantizers: int = 12
  codebook_size: int = 1024
  embedding_dim: int = 256
  # each training example uses a random number of levels; without, always all
  dropout: bool = True
  decay: float = 0.99  # of the moving averages, a step
  dead_code_threshold: float = 2.0  # frames a batch, on average; lower it for batches of few frames

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
  """The number of levels of each dimension in finite scalar quantization: one code a frame.

  Raises ValueError for a dimension of fewer than two levels, and for 2^31 codes or more.
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
  """Codebooks of Q levels, and the moving averages that they are made of.

  vectors_QKD: the code vectors.
  counts_QK: moving average of how many frames of a batch choose each code (the paper's assignment
  statistic).
  sums_QKD: moving average of the sum of those frames; vectors = sums / counts.
  fitted: whether k-means has placed the vectors; before, they are small random vectors.
  """

  vectors_QKD: Float[Array, 'Q K D']
  counts_QK: Float[Array, 'Q K']
  sums_QKD: Float[Array, 'Q K D']
  fitted: Bool[Array, '']


class Quantized(NamedTuple):
  """What a frame becomes.

  z_BFD: sum of the chosen vectors, gradients passed straight through to the input.
  codes_BFQ: the chosen codes of all levels.
  residuals_QBFD: what each level was given (level 0: the input), without gradient.
  commitment: mean squared distance per dimension from each level's input to its vector, mean over
  levels in use.
  """

  z_BFD: Float[Array, 'B F D']
  codes_BFQ: Int[Array, 'B F Q']
  residuals_QBFD: Float[Array, 'Q B F D']
  commitment: Float[Array, '']


def init(key: jax.Array, num_quantizers: int, codebook_size: int, dim: int) -> Codebooks:
  """Returns codebooks of small random vectors, to be placed by `fit` on the first training
  batch.
  """
  vectors_QKD = 0.1 * jax.random.normal(key, (num_quantizers, codebook_size, dim))
  counts_QK = jnp.ones((num_quantizers, codebook_size))
  # A copy: a train step that donates its state must not be given one buffer twice.
  return Codebooks(vectors_QKD, counts_QK, jnp.copy(vectors_QKD), jnp.asarray(False))


def nearest(vectors_KD: Float[Array, 'K D'], x: Float[Array, '*dims D']) -> Int[Array, '*dims']:
  """Returns the index of the vector nearest to each x; the first one among equals."""
  products = jnp.einsum('...d,kd->...k', x, vectors_KD, precision=HIGHEST)
  # |x|^2 is the same for every k.
  return jnp.argmin(jnp.sum(jnp.square(vectors_KD), axis=-1) - 2 * products, axis=-1).astype(
    jnp.int32
  )


def encode(
  vectors_QKD: Float[Array, 'Q K D'], x_BFD: Float[Array, 'B F D']
) -> tuple[Int[Array, 'B F Q'], Float[Array, 'Q B F D']]:
  """Returns the codes of all levels, each chosen for what the levels before it left, and what each
  level was given.

  Raises ValueError for another rank, and for widths that differ.
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
  """Returns the vectors behind the codes of the first levels, as many as are given."""
  return jax.vmap(lambda vectors_KD, codes_BF: vectors_KD[codes_BF])(
    vectors_QKD[: codes_BFQ.shape[-1]], jnp.moveaxis(codes_BFQ, -1, 0)
  )


def decode(
  vectors_QKD: Float[Array, 'Q K D'], codes_BFQ: Int[Array, 'B F Qu']
) -> Float[Array, 'B F D']:
  """Returns the sum of the vectors of the first levels, as many as are given.

  Raises ValueError for another rank, more levels than there are, and a code beyond the codebook;
  in compiled code, which cannot raise, the vector of such a frame is NaN.
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
  """Quantizes each example with its first `levels_B` levels (quantizer dropout chooses them at
  random).

  Raises ValueError for another rank, and for sizes that differ.
  """
  checks.shapes(vectors_QKD=vectors_QKD, x_BFD=x_BFD, levels_B=levels_B)
  codes_BFQ, residuals_QBFD = encode(vectors_QKD, jax.lax.stop_gradient(x_BFD))
  vectors_QBFD = lookup(vectors_QKD, codes_BFQ)
  used_QB = jnp.arange(len(vectors_QBFD))[:, None] < levels_B
  z_BFD = jnp.einsum('qb,qbfd->bfd', used_QB.astype(jnp.float32), vectors_QBFD, precision=HIGHEST)
  # The input of level q is x minus the vectors of the levels before: in x, the gradient of the
  # commitment is that of x.
  inputs_QBFD = x_BFD + jax.lax.stop_gradient(residuals_QBFD - x_BFD)
  distance_QB = jnp.mean(jnp.square(inputs_QBFD - vectors_QBFD), axis=(-2, -1))
  commitment = jnp.sum(jnp.where(used_QB, distance_QB, 0)) / jnp.sum(used_QB)
  return Quantized(
    x_BFD + jax.lax.stop_gradient(z_BFD - x_BFD), codes_BFQ, residuals_QBFD, commitment
  )


def _totals(codes_N, x_ND, codebook_size):
  """Returns how many frames chose each code, [K], and their sum, [K, D]."""
  choices_NK = jax.nn.one_hot(codes_N, codebook_size, dtype=jnp.float32)
  return jnp.sum(choices_NK, axis=0), jnp.einsum('nk,nd->kd', choices_NK, x_ND, precision=HIGHEST)


def fit(codebooks: Codebooks, x_BFD: Float[Array, 'B F D'], key: jax.Array) -> Codebooks:
  """Places the vectors by k-means on the frames of one batch, level by level on what the levels
  before left.

  With fewer frames than codes some vectors start equal; only the first of them is ever chosen, and
  `update` replaces the others by frames of later batches.
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
  """Returns the codebooks, `fit` to this batch unless they are fitted already."""
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
  """Moves the codebooks towards the frames that chose them, and replaces codes that are hardly
  chosen.

  All levels learn from all frames, whatever quantizer dropout used of them. A code whose moving
  count falls below `dead_code_threshold` frames a batch becomes a random input of its level from
  this batch, and starts with a fair share of the frames as its count, so that it has time to find
  its own.
  """
  codebook_size = codebooks.vectors_QKD.shape[1]

  def level(counts_K, sums_KD, vectors_KD, codes_BF, residual_BFD, key):
    residual_ND = residual_BFD.reshape(-1, residual_BFD.shape[-1])
    batch_counts_K, batch_sums_KD = _totals(codes_BF.reshape(-1), residual_ND, codebook_size)
    counts_K = decay * counts_K + (1 - decay) * batch_counts_K
    sums_KD = decay * sums_KD + (1 - decay) * batch_sums_KD
    # A code that was never chosen has no mean: it stays.
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
  """Returns exp(entropy) of the codes in use at each level: between 1 and `codebook_size`."""
  share_QK = jnp.mean(jax.nn.one_hot(codes_BFQ, codebook_size), axis=(0, 1))
  return jnp.exp(jnp.sum(jax.scipy.special.entr(share_QK), axis=-1))


FSQ_EPSILON = 1e-3  # keeps what saturates off the border between two integers


def _fsq_bound(levels: Sequence[int], x: Float[Array, '*dims D']) -> Float[Array, '*dims D']:
  """Returns x bounded so that rounding leaves L integers in each dimension, the lowest of them -(L
  // 2).

  Even L lie asymmetrically about 0, so x is shifted first. The tangent is what the paper's listing
  has; 0 would stay at 0 by the inverse of tanh, which is infinite for L = 2.
  """
  levels_D = np.asarray(levels)
  half_D = (levels_D - 1) * (1 - FSQ_EPSILON) / 2
  offset_D = np.where(levels_D % 2, 0.0, 0.5)
  return (jnp.tanh(x + np.tan(offset_D / half_D)) * half_D - offset_D).astype(jnp.float32)


def fsq_encode(levels: Sequence[int], x_BFD: Float[Array, 'B F D']) -> Int[Array, 'B F 1']:
  """Returns one code a frame: its rounded dimensions are the digits of a number, the first one the
  lowest.
  """
  checks.shapes(x_BFD=x_BFD, levels_D=levels)
  levels_D = np.asarray(levels)
  digits_BFD = jnp.round(_fsq_bound(levels, x_BFD)).astype(jnp.int32) + levels_D // 2
  place_D = np.cumprod([1, *levels[:-1]])
  return jnp.sum(digits_BFD * place_D, axis=-1, keepdims=True, dtype=jnp.int32)


def fsq_decode(levels: Sequence[int], codes_BFQ: Int[Array, 'B F 1']) -> Float[Array, 'B F D']:
  """Returns the point of each code, in [-1, 1]; the codes of all points are 0 to prod(levels) - 1.

  Raises ValueError for another rank and a code beyond; in compiled code, which cannot raise, the
  point of such a code is NaN.
  """
  checks.shapes(codes_BF1=codes_BFQ)
  levels_D, size = np.asarray(levels), int(np.prod(levels))
  checks.ids('codes_BFQ', codes_BFQ, size, padding=False)
  codes_BFQ = jnp.asarray(codes_BFQ)
  digits_BFD = codes_BFQ // np.cumprod([1, *levels[:-1]]) % levels_D
  points_BFD = ((digits_BFD - levels_D // 2) / (levels_D // 2)).astype(jnp.float32)
  return jnp.where((codes_BFQ >= 0) & (codes_BFQ < size), points_BFD, jnp.nan)


def fsq_quantize(levels: Sequence[int], x_BFD: Float[Array, 'B F D']) -> Quantized:
  """Quantizes each frame; gradients pass straight through the rounding, not through the bound. No
  commitment loss.
  """
  codes_BFQ = fsq_encode(levels, x_BFD)
  bounded_BFD = _fsq_bound(levels, x_BFD) / (np.asarray(levels) // 2)
  z_BFD = bounded_BFD + jax.lax.stop_gradient(fsq_decode(levels, codes_BFQ) - bounded_BFD)
  return Quantized(z_BFD, codes_BFQ, jax.lax.stop_gradient(x_BFD)[None], jnp.zeros(()))

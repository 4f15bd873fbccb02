"""Block attention for TPUs: Pallas kernels whose scores stay on the chip.

Attention is causal with T5's relative bias, or bidirectional without bias.

The kernels process blocks of queries and keys as FlashAttention does (arXiv 2205.14135,
2307.08691). Blocks are transposed, so that positions and the statistics of queries (maximum, sum)
fill the lanes of the vector unit.

T5's bias needs no [H, L, L] array: it is constant for distances of `max_distance` and more. The
softmax is invariant to a constant added to a row, so this constant is subtracted everywhere. Two
tiles per head remain: one for the diagonal blocks, with the causal mask, and one for the blocks
next to the diagonal.
"""

import functools
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int, Shaped

# Candidate sizes of a block of queries or keys; the first with the least padding is used.
BLOCKS = (256, 384)
SAVED = 'attention'  # checkpoint name for rematerialization policies
MASKED = -1e30  # finite, because the difference of two infinities is NaN
# Extra channels (one tile) of queries and keys in a kernel: the first one masks keys, at no cost on
# the matrix unit.
_EXTRA = 16


def padded_length(length: int) -> int:
  """Returns the sequence length padded to whole blocks."""
  return min(-(-length // block) * block for block in BLOCKS)


def block_size(length: int) -> int:
  """Returns the number of positions in a block of a sequence, padded or not."""
  return next(block for block in BLOCKS if padded_length(length) % block == 0)


def bias_tiles(
  table_NH: Float[Array, 'N H'],
  bucket: Callable[[Int[Array, 'K Q']], Int[Array, 'K Q']],
  block: int,
) -> Float[Array, 'H 2 K Q']:
  """Returns the tiles [H, 2, key, query] of the bias table[bucket(distance)].

  Args:
    table_NH: bias of each bucket and head; the last entry applies to all distances from `block` on,
      or from a shorter one.
    bucket: function from distances to bucket indices.
    block: number of positions in a block.

  Returns:
    Tiles of the diagonal blocks, then of the blocks next to the diagonal.
  """
  apart_KQ = jnp.arange(block) - jnp.arange(block)[:, None]
  buckets_TKQ = jnp.stack([bucket(apart_KQ), bucket(apart_KQ + block)])
  # A matrix product, because the gradient of a gather is a scatter, which is slow on TPUs.
  chosen_TKQN = jax.nn.one_hot(buckets_TKQ, len(table_NH))
  tiles = jnp.einsum(
    'tkqn,nh->htkq', chosen_TKQN, table_NH - table_NH[-1], precision=jax.lax.Precision.HIGHEST
  )
  future_TKQ = jnp.stack([apart_KQ < 0, jnp.zeros_like(apart_KQ, bool)])
  return jnp.where(future_TKQ, MASKED, tiles)


def padded(x_BL: Shaped[Array, 'B L *dims'], padding: int) -> Shaped[Array, 'B M *dims']:
  """Pads the sequence with `padding` zeros on the right."""
  return jnp.pad(x_BL, ((0, 0), (0, padding), *((0, 0),) * (x_BL.ndim - 2)))


def whole_blocks(x_BL: Shaped[Array, 'B L *dims']) -> Shaped[Array, 'B M *dims']:
  """Pads the sequence with zeros on the right to whole blocks."""
  return padded(x_BL, padded_length(x_BL.shape[1]) - x_BL.shape[1])


def useful_scope(share: Fraction) -> str:
  """Returns the name of a scope of whose products `costs.flops` counts a share."""
  return f'useful_{share.numerator}_of_{share.denominator}'


def attend(
  query_BLHD: Float[Array, 'B L H D'],
  key_BLHD: Float[Array, 'B L H D'],
  value_BLHD: Float[Array, 'B L H D'],
  valid_BL: Bool[Array, 'B L'],
  tiles_HTKQ: Float[Array, 'H 2 K Q'] | None = None,
  *,
  interpret: bool = False,
) -> Float[Array, 'B L H D']:
  """Returns softmax(q k / sqrt(D) + bias) v over the valid keys.

  Results of queries without a valid key are finite but meaningless.

  Args:
    query_BLHD: queries.
    key_BLHD: keys.
    value_BLHD: values.
    valid_BL: False at keys without weight.
    tiles_HTKQ: bias from `bias_tiles`; makes attention causal.
    interpret: runs the kernel in Pallas' interpreter.
  """
  length, width = query_BLHD.shape[1], query_BLHD.shape[3]
  query_BLHD, key_BLHD, value_BLHD, valid_BL = map(
    whole_blocks, (query_BLHD, key_BLHD, value_BLHD, valid_BL)
  )

  # Naming the transposed arrays lets a rematerialization policy drop their inputs.
  columns = lambda x_BLHD: checkpoint_name(x_BLHD.transpose(0, 2, 3, 1), SAVED)
  key_mask_BL = jnp.where(valid_BL, 0.0, MASKED).astype(key_BLHD.dtype)
  key_mask_BEL = jnp.pad(key_mask_BL[:, None], ((0, 0), (0, _EXTRA - 1), (0, 0)))
  query, key, value = columns(query_BLHD * width**-0.5), columns(key_BLHD), columns(value_BLHD)
  mixed_BHDL = _attention(query, key, value, key_mask_BEL, tiles_HTKQ, interpret)
  return mixed_BHDL.transpose(0, 3, 1, 2)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(query, key, value, key_mask, tiles, interpret):
  return _forward(query, key, value, key_mask, tiles, interpret)[0]


def _attention_forward(query, key, value, key_mask, tiles, interpret):
  mixed, lse = _forward(query, key, value, key_mask, tiles, interpret)
  mixed, lse = checkpoint_name(mixed, SAVED), checkpoint_name(lse, SAVED)
  return mixed, (query, key, value, key_mask, tiles, mixed, lse)


def _attention_backward(interpret, saved, grad):
  query, key, value, key_mask, tiles, mixed, lse = saved
  delta = jnp.sum(grad.astype(jnp.float32) * mixed.astype(jnp.float32), axis=2, keepdims=True)
  return _backward(query, key, value, key_mask, tiles, lse, grad, delta, interpret)


_attention.defvjp(_attention_forward, _attention_backward)

_dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
_AB, _ATB, _ABT = (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ())), (((1,), (1,)), ((), ()))


def _block(index, size):
  return pl.ds(pl.multiple_of(index * size, size), size)


def _extended(x_DN, extra_EN):
  return jnp.concatenate([x_DN, extra_EN], axis=0)


def _seeing_mask(query_DQ):
  """Appends to queries the channels that multiply the key mask."""
  first_EQ = jax.lax.broadcasted_iota(jnp.int32, (_EXTRA, query_DQ.shape[1]), 0) == 0
  return _extended(query_DQ, first_EQ.astype(jnp.float32).astype(query_DQ.dtype))


def _biased(score_KQ, tiles_ref, blocks_below):
  """Adds the bias tile of a block; only diagonal blocks and their neighbours have one."""
  if tiles_ref is None:
    return score_KQ
  near = (blocks_below < 2).astype(jnp.float32)
  return score_KQ + near * tiles_ref[jnp.minimum(blocks_below, 1)]


def _forward_kernel(query_ref, key_ref, value_ref, key_mask_ref, *refs):
  *tiles, mixed_ref, lse_ref = refs
  tiles_ref = tiles[0] if tiles else None
  i, query_CQ = pl.program_id(2), _seeing_mask(query_ref[...])
  size = query_CQ.shape[1]

  def body(j, carry):
    top_1Q, total_1Q, sum_DQ = carry
    columns = _block(j, size)
    key_CK = _extended(key_ref[:, columns], key_mask_ref[:, columns])
    score_KQ = _biased(_dot(key_CK, query_CQ, _ATB), tiles_ref, i - j)
    new_top_1Q = jnp.maximum(top_1Q, score_KQ.max(axis=0, keepdims=True))
    weight_KQ = jnp.exp(score_KQ - new_top_1Q)
    shrink_1Q = jnp.exp(top_1Q - new_top_1Q)
    total_1Q = shrink_1Q * total_1Q + weight_KQ.sum(axis=0, keepdims=True)
    value_DK = value_ref[:, columns]
    sum_DQ = shrink_1Q * sum_DQ + _dot(value_DK, weight_KQ.astype(value_DK.dtype), _AB)
    return new_top_1Q, total_1Q, sum_DQ

  row_1Q = jnp.zeros((1, size), jnp.float32)
  start = (row_1Q + 4 * MASKED, row_1Q, jnp.zeros(mixed_ref.shape, jnp.float32))
  stop = key_ref.shape[1] // size if tiles_ref is None else i + 1
  top_1Q, total_1Q, sum_DQ = jax.lax.fori_loop(0, stop, body, start)
  mixed_ref[...] = (sum_DQ / total_1Q).astype(mixed_ref.dtype)
  lse_ref[...] = top_1Q + jnp.log(total_1Q)


def _backward_kernel(
  query_ref, key_ref, value_ref, key_mask_ref, lse_ref, grad_ref, delta_ref, *refs
):
  tiles_ref = grad_tiles_ref = None
  if len(refs) == 5:
    tiles_ref, *refs, grad_tiles_ref = refs
  grad_query_ref, grad_key_ref, grad_value_ref = refs
  b, j = pl.program_id(1), pl.program_id(2)
  key_DK, value_DK = key_ref[...], value_ref[...]
  key_CK, size = _extended(key_DK, key_mask_ref[...]), key_DK.shape[1]

  @pl.when(j == 0)
  def _():
    grad_query_ref[...] = jnp.zeros_like(grad_query_ref)

  if tiles_ref is not None:

    @pl.when((j == 0) & (b == 0))
    def _():
      grad_tiles_ref[...] = jnp.zeros_like(grad_tiles_ref)

  def body(i, carry):
    grad_key_DK, grad_value_DK = carry
    rows = _block(i, size)
    query_DQ, grad_DQ = query_ref[:, rows], grad_ref[:, rows]
    score_KQ = _biased(_dot(key_CK, _seeing_mask(query_DQ), _ATB), tiles_ref, i - j)
    weight_KQ = jnp.exp(score_KQ - lse_ref[:, rows])
    grad_value_DK += _dot(grad_DQ, weight_KQ.astype(grad_DQ.dtype), _ABT)
    grad_score_KQ = weight_KQ * (_dot(value_DK, grad_DQ, _ATB) - delta_ref[:, rows])
    if tiles_ref is not None:

      @pl.when(i - j < 2)
      def _():
        grad_tiles_ref[i - j] += grad_score_KQ

    grad_score_KQ = grad_score_KQ.astype(query_DQ.dtype)
    grad_key_DK += _dot(query_DQ, grad_score_KQ, _ABT)
    grad_query_ref[:, rows] += _dot(key_DK, grad_score_KQ, _AB)
    return grad_key_DK, grad_value_DK

  start = (jnp.zeros(key_DK.shape, jnp.float32), jnp.zeros(value_DK.shape, jnp.float32))
  num_blocks = query_ref.shape[1] // size
  grad_key_DK, grad_value_DK = jax.lax.fori_loop(
    0 if tiles_ref is None else j, num_blocks, body, start
  )
  grad_key_ref[...] = grad_key_DK.astype(grad_key_ref.dtype)
  grad_value_ref[...] = grad_value_DK.astype(grad_value_ref.dtype)


# Grid: heads (outermost, so that the tiles of a head stay in memory), batch rows, blocks. Chips of
# two cores (v4, v5p) share the heads among them: the gradients of queries and of tiles are summed
# over the other axes, on one core.
_PARAMS = pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary', 'arbitrary'))


def _metadata(heads: int, **numbers: int) -> dict[str, str]:
  """Returns what `costs` reads of a kernel in a program."""
  return {name: str(number) for name, number in {'parallel_heads': heads, **numbers}.items()}


def _whole(channels, length):
  return pl.BlockSpec((None, None, channels, length), lambda h, b, i: (b, h, 0, 0))


def _cut(channels, size):
  return pl.BlockSpec((None, None, channels, size), lambda h, b, i: (b, h, 0, i))


def _mask(length, cut):
  return pl.BlockSpec((None, _EXTRA, length), lambda h, b, i: (b, 0, i if cut else 0))


def _tiles(size):
  return pl.BlockSpec((None, 2, size, size), lambda h, b, i: (h, 0, 0, 0))


def _cost(query, tiles, products: int) -> pl.CostEstimate:
  """Returns the cost of `products` matrix products over all blocks, or half if causal."""
  batch, heads, width, length = query.shape
  pairs = batch * heads * length * (length if tiles is None else (length + block_size(length)) // 2)
  size = 4 * batch * heads * length * width * query.dtype.itemsize
  return pl.CostEstimate(
    flops=2 * products * pairs * width, transcendentals=pairs, bytes_accessed=size * products // 2
  )


def _forward(query, key, value, key_mask, tiles, interpret):
  batch, heads, width, length = query.shape
  biases, size = [] if tiles is None else [tiles], block_size(length)
  return pl.pallas_call(
    _forward_kernel,
    grid=(heads, batch, length // size),
    in_specs=[
      _cut(width, size),
      _whole(width, length),
      _whole(width, length),
      _mask(length, False),
      *[_tiles(size)] * len(biases),
    ],
    out_specs=[_cut(width, size), _cut(1, size)],
    out_shape=[
      jax.ShapeDtypeStruct(value.shape, value.dtype),
      jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32),
    ],
    cost_estimate=_cost(query, tiles, 2),
    compiler_params=_PARAMS,
    metadata=_metadata(heads),
    interpret=interpret,
    name='attention',
  )(query, key, value, key_mask, *biases)


def _backward(query, key, value, key_mask, tiles, lse, grad, delta, interpret):
  batch, heads, width, length = query.shape
  biases, size = [] if tiles is None else [tiles], block_size(length)
  like = lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype)
  grad_query, *grads = pl.pallas_call(
    _backward_kernel,
    grid=(heads, batch, length // size),
    in_specs=[
      _whole(width, length),
      _cut(width, size),
      _cut(width, size),
      _mask(size, True),
      _whole(1, length),
      _whole(width, length),
      _whole(1, length),
      *[_tiles(size)] * len(biases),
    ],
    out_specs=[
      _whole(width, length),
      _cut(width, size),
      _cut(width, size),
      *[_tiles(size)] * len(biases),
    ],
    out_shape=[
      like(query, jnp.float32),
      like(key, key.dtype),
      like(value, value.dtype),
      *[like(tiles, jnp.float32) for tiles in biases],
    ],
    cost_estimate=_cost(query, tiles, 5),
    compiler_params=_PARAMS,
    metadata=_metadata(heads, recomputed_products=1, products=5),  # costs.flops counts four
    interpret=interpret,
    name='attention_backward',
  )(query, key, value, key_mask, lse, grad, delta, *biases)
  grad_key, grad_value, *grad_tiles = grads
  return grad_query.astype(query.dtype), grad_key, grad_value, None, *(grad_tiles or [None])

"""Multi-head attention with logically partitioned projections."""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from audiolm_jax.errors import UserError
from audiolm_jax.nn import block_attention, placement, portable_attention

# Logical axis names of parameters; `training.sharding` maps them to mesh axes.
EMBED, HEADS, HEAD_DIM, MLP, VOCAB, LAYERS = 'embed', 'heads', 'head_dim', 'mlp', 'vocab', 'layers'

# Scope of matrix products whose masked half `costs.flops` does not count.
CAUSAL = block_attention.useful_scope(Fraction(1, 2))

PROJECTIONS = ('query', 'key', 'value')
# Up to this number of rows, reading a kernel once per row is faster on a CPU than XLA's product of
# matrices; extrapolated from 2 and 8 rows (docs/results/speed.md).
MAX_ROWS = 16
# XLA runs products of a single row on the vector unit of a TPU, which takes longer than this number
# of rows on the matrix unit.
TPU_ROWS = 2

# A rematerialized layer saves its matrix products with weights and the attention kernel's output.
REMAT_POLICY = jax.checkpoint_policies.save_from_both_policies(
  jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  jax.checkpoint_policies.save_only_these_names(block_attention.SAVED),
)


def partitioned(init: jax.nn.initializers.Initializer, *axes: str | None):
  """Returns an initializer that attaches logical axis names to the parameters of `init`."""
  return nn.with_logical_partitioning(init, axes)


def dense(
  features: int | Sequence[int],
  kernel_axes: Sequence[str | None],
  *,
  axis: int | Sequence[int] = -1,
  use_bias: bool = False,
  dtype: Any = jnp.float32,
  decoding: bool = False,
  name: str | None = None,
) -> nn.DenseGeneral:
  """Returns a linear layer whose kernel [*inputs, *features] carries `kernel_axes`.

  With `decoding`, its product is `dot_of_rows`.
  """
  num_outputs = 1 if isinstance(features, int) else len(features)
  return nn.DenseGeneral(
    features,
    axis=axis,
    use_bias=use_bias,
    dtype=dtype,
    kernel_init=partitioned(nn.initializers.lecun_normal(), *kernel_axes),
    bias_init=partitioned(nn.initializers.zeros, *kernel_axes[-num_outputs:]),
    dot_general=dot_of_rows if decoding else None,
    name=name,
  )


def dot_of_rows(rows: Array, kernel: Array, dimension_numbers: Any, **options) -> Array:
  """Returns `jax.lax.dot_general` without batch dimensions, also fast for few rows.

  XLA's product of matrices on a CPU rearranges the kernel at each call, which takes longer than
  reading it once per row. On a TPU, a single row is padded to `TPU_ROWS`.
  """
  ((axes, kernel_axes), _) = dimension_numbers
  free = [axis for axis in range(rows.ndim) if axis not in axes]
  number = math.prod(rows.shape[axis] for axis in free)
  if placement.platform() == 'tpu' and number == 1:
    padded = _more(rows, free[-1])
    products = jax.lax.dot_general(padded, kernel, dimension_numbers, **options)
    return jax.lax.slice_in_dim(products, 0, 1, axis=len(free) - 1)
  if placement.platform() != 'cpu' or not 1 < number <= MAX_ROWS:
    return jax.lax.dot_general(rows, kernel, dimension_numbers, **options)
  each = rows.transpose(*free, *axes).reshape(number, *(rows.shape[axis] for axis in axes))
  numbers = ((tuple(range(len(axes))), kernel_axes), ((), ()))
  results = jax.lax.map(lambda row: jax.lax.dot_general(row, kernel, numbers, **options), each)
  return results.reshape(*(rows.shape[axis] for axis in free), *results.shape[1:])


def _more(x, axis):
  """Returns an array whose single entry along `axis` is padded with zeros to `TPU_ROWS`."""
  return jnp.pad(x, [(0, TPU_ROWS - 1) if n == axis else (0, 0) for n in range(x.ndim)])


def attend(
  query_BLHD: Float[Array, 'B L H D'],
  key_BNHD: Float[Array, 'B N H D'],
  value_BNHD: Float[Array, 'B N H D'],
  *,
  bias: Float[Array, 'P #H #L N'] | None = None,
  mask: Bool[Array, '#B #H #L N'] | None = None,
) -> Float[Array, 'B L H D']:
  """Returns softmax(q k / sqrt(D) + bias) v.

  The softmax is computed in float32, because bfloat16 loses the tail of a long row.

  Args:
    query_BLHD: queries.
    key_BNHD: keys.
    value_BNHD: values.
    bias: added to the scores; one array for each of P equal parts of the batch (see
      `placement.each_part`).
    mask: False at positions without weight.
  """
  weights_BHLN = weights(query_BLHD, key_BNHD, bias=bias, mask=mask).astype(value_BNHD.dtype)
  return jnp.einsum('bhln,bnhd->blhd', weights_BHLN, value_BNHD)


def weights(
  query_BLHD: Float[Array, 'B L H D'],
  key_BNHD: Float[Array, 'B N H D'],
  *,
  bias: Float[Array, 'P #H #L N'] | None = None,
  mask: Bool[Array, '#B #H #L N'] | None = None,
) -> Float[Array, 'B H L N']:
  """Returns softmax(q k / sqrt(D) + bias) in float32; arguments are those of `attend`."""
  scale = query_BLHD.shape[-1] ** -0.5
  scores_BHLN = jnp.einsum(
    'blhd,bnhd->bhln', query_BLHD * scale, key_BNHD, preferred_element_type=jnp.float32
  )
  if bias is not None:
    parts = scores_BHLN.reshape(bias.shape[0], -1, *scores_BHLN.shape[1:])
    scores_BHLN = (parts + bias[:, None]).reshape(scores_BHLN.shape)
  if mask is not None:
    scores_BHLN = jnp.where(mask, scores_BHLN, jnp.finfo(jnp.float32).min)
  return jax.nn.softmax(scores_BHLN, axis=-1)


def block_size(length: int, max_distance: int = 0) -> int | None:
  """Returns the block size of `attend_in_blocks` on the platform of the current trace.

  Args:
    length: number of tokens of a sequence.
    max_distance: distance from which on the relative bias is constant; 0 without a bias.

  Returns:
    Number of tokens; None where `attend` is faster, or two tiles cannot hold the bias.
  """
  if placement.on_tpu():
    block = block_attention.block_size(length)
    return block if max_distance <= block else None
  return portable_attention.block_size(length, max_distance)


class Tiles(NamedTuple):
  """Holds a causal relative bias in the form of `block_attention`, one copy for each batch part."""

  tiles_PHTKQ: Array


def attend_in_blocks(
  query_BLHD: Float[Array, 'B L H D'],
  key_BLHD: Float[Array, 'B L H D'],
  value_BLHD: Float[Array, 'B L H D'],
  valid_BL: Bool[Array, 'B L'],
  bias: Tiles | None = None,
  *,
  interpret: bool = False,
) -> Float[Array, 'B L H D']:
  """Returns attention over valid keys; each device works on its own part.

  TPUs run the kernels of `block_attention`, other devices `portable_attention`.

  Args:
    query_BLHD: queries.
    key_BLHD: keys.
    value_BLHD: values.
    valid_BL: False at keys without weight.
    bias: tiles of a causal bias; None for bidirectional attention.
    interpret: runs the TPU kernel in Pallas' interpreter, on any device.
  """

  def function(query, key, value, valid, *tiles):
    one = tiles[0][0] if tiles else None
    if interpret or placement.on_tpu():
      return block_attention.attend(query, key, value, valid, one, interpret=interpret)
    block = block_size(query.shape[1]) if one is None else one.shape[-1]
    return portable_attention.attend(query, key, value, valid, one, block)

  activation = (placement.BATCH, None, placement.HEADS, None)
  inputs = (
    [activation] * 3
    + [(placement.BATCH,)]
    + [(placement.BATCH, placement.HEADS)] * (bias is not None)
  )
  call = placement.per_device(function, inputs)
  return call(query_BLHD, key_BLHD, value_BLHD, valid_BL, *(bias or ()))


class LayerCache(NamedTuple):
  """Holds keys and values of one layer; columns from `KVCache.index` on are empty.

  Z counts the heads of all rows. The axes are those of the products in `attend_to_cache`: XLA:CPU
  copies arrays of another order or rank at each step.
  """

  key_ZDN: Array
  value_ZND: Array

  @classmethod
  def of(cls, key_BLHD: Array, value_BLHD: Array) -> 'LayerCache':
    return cls(_by_head(key_BLHD).swapaxes(1, 2), _by_head(value_BLHD))

  def padded(self, num_columns: int) -> 'LayerCache':
    """Returns the cache with empty columns appended."""
    none, more = (0, 0), (0, num_columns - self.key_ZDN.shape[2])
    return LayerCache(
      jnp.pad(self.key_ZDN, (none, none, more)), jnp.pad(self.value_ZND, (none, more, none))
    )

  def updated(self, new: 'LayerCache', index: Array) -> 'LayerCache':
    """Returns the cache with the columns of `new` at `index`."""
    # XLA updates one buffer per layer in place when the index is a scalar.
    write = jax.lax.dynamic_update_slice
    return LayerCache(
      write(self.key_ZDN, new.key_ZDN, (0, 0, index)),
      write(self.value_ZND, new.value_ZND, (0, index, 0)),
    )


def _by_head(x_BLHD):
  return x_BLHD.swapaxes(1, 2).reshape(-1, x_BLHD.shape[1], x_BLHD.shape[3])


def attend_to_cache(
  query_BLHD: Float[Array, 'B L H D'], cache: LayerCache, bias_ZLN: Float[Array, 'Z L N']
) -> Float[Array, 'B L H D']:
  """Returns softmax(q k / sqrt(D) + bias) v over the columns of a cache; `bias` masks, too."""
  batch, length, heads, width = query_BLHD.shape
  query_ZLD = _by_head(query_BLHD * width**-0.5)
  if placement.platform() == 'tpu' and length == 1:
    query_ZLD = _more(query_ZLD, 1)
  scores_ZLN = jnp.einsum(
    'zld,zdn->zln', query_ZLD, cache.key_ZDN, preferred_element_type=jnp.float32
  )
  weights_ZLN = jax.nn.softmax(scores_ZLN + bias_ZLN, axis=-1).astype(cache.value_ZND.dtype)
  mixed_ZLD = jnp.einsum('zln,znd->zld', weights_ZLN, cache.value_ZND)[:, :length]
  return mixed_ZLD.reshape(batch, heads, length, width).swapaxes(1, 2)


class SelfAttention(nn.Module):
  """Self-attention over [B, L, D] with `num_heads` heads of width D / num_heads.

  Without a cache, `mask` makes attention causal; `causal=False` tells `costs.flops` that it does
  not. With `Tiles` as `bias`, `mask` is over keys, [B, L].

  If `decoding`, there is one projection 'qkv' instead of three, and a cache is returned with the
  output: of x_BLD alone or, with a `cache`, that one with x_BLD at column `index`. x_BLD then
  attends to all N columns, and `bias` is [B H, L, N].

  Raises:
    UserError: if the width is not a multiple of `num_heads`.
  """

  num_heads: int
  dtype: Any = jnp.float32
  causal: bool = True
  decoding: bool = False

  @nn.compact
  def __call__(self, x_BLD, *, bias=None, mask=None, cache: LayerCache | None = None, index=None):
    width = x_BLD.shape[-1]
    if width % self.num_heads:
      raise UserError(
        f'width {width} is not a multiple of num_heads={self.num_heads}: change one of them'
      )
    shape = (self.num_heads, width // self.num_heads)
    linear = functools.partial(dense, dtype=self.dtype, decoding=self.decoding)
    if self.decoding:
      qkv = linear((3, *shape), (EMBED, None, HEADS, HEAD_DIM), name='qkv')(x_BLD)
      query, key, value = (qkv[:, :, n] for n in range(3))
    else:
      query, key, value = (
        linear(shape, (EMBED, HEADS, HEAD_DIM), name=name)(x_BLD) for name in PROJECTIONS
      )
    new = LayerCache.of(key, value) if self.decoding else None
    if cache is not None:
      new = cache.updated(new, index)
      mixed_BLHD = attend_to_cache(query, new, bias)
    elif isinstance(bias, Tiles):
      mixed_BLHD = attend_in_blocks(query, key, value, mask, bias)
    else:
      with jax.named_scope(CAUSAL if self.causal else 'attention'):
        mixed_BLHD = attend(query, key, value, bias=bias, mask=mask)
      if self.is_mutable_collection('intermediates'):  # only if captured
        self.sow('intermediates', 'weights', weights(query, key, bias=bias, mask=mask))
    output = linear(width, (HEADS, HEAD_DIM, EMBED), axis=(-2, -1), name='output')
    return (output(mixed_BLHD), new) if self.decoding else output(mixed_BLHD)

"""Multi-head attention with logically partitioned projections."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from audiolm_jax.errors import UserError
from audiolm_jax.nn import block_attention, placement

# Logical axis names of parameters; `training.sharding` maps them to mesh axes.
EMBED, HEADS, HEAD_DIM, MLP, VOCAB, LAYERS = 'embed', 'heads', 'head_dim', 'mlp', 'vocab', 'layers'

# Scope of matrix products whose masked half `costs.flops` does not count.
CAUSAL = 'causal_attention'

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
  name: str | None = None,
) -> nn.DenseGeneral:
  """Returns a linear layer whose kernel [*inputs, *features] carries `kernel_axes`."""
  num_outputs = 1 if isinstance(features, int) else len(features)
  return nn.DenseGeneral(
    features,
    axis=axis,
    use_bias=use_bias,
    dtype=dtype,
    kernel_init=partitioned(nn.initializers.lecun_normal(), *kernel_axes),
    bias_init=partitioned(nn.initializers.zeros, *kernel_axes[-num_outputs:]),
    name=name,
  )


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
  """Returns attention over valid keys; each device runs the TPU kernel on its part.

  Args:
    query_BLHD: queries.
    key_BLHD: keys.
    value_BLHD: values.
    valid_BL: False at keys without weight.
    bias: tiles of a causal bias; None for bidirectional attention.
    interpret: runs the kernel in Pallas' interpreter, on any device.
  """

  def function(query, key, value, valid, *tiles):
    one = tiles[0][0] if tiles else None
    return block_attention.attend(query, key, value, valid, one, interpret=interpret)

  activation = (placement.BATCH, None, placement.HEADS, None)
  inputs = (
    [activation] * 3
    + [(placement.BATCH,)]
    + [(placement.BATCH, placement.HEADS)] * (bias is not None)
  )
  call = placement.per_device(function, inputs)
  return call(query_BLHD, key_BLHD, value_BLHD, valid_BL, *(bias or ()))


class LayerCache(NamedTuple):
  """Holds keys and values of one layer; columns from `KVCache.index` on are empty."""

  key_BNHD: Array
  value_BNHD: Array


class SelfAttention(nn.Module):
  """Self-attention over [B, L, D] with `num_heads` heads of width D / num_heads.

  With a `cache`, keys and values of x_BLD are written at column `index`, x_BLD attends to all N
  columns, `bias` and `mask` have the axes [L, N], and the new cache is returned with the output.
  Without a cache, `mask` makes attention causal; `causal=False` tells `costs.flops` that it does
  not. With `Tiles` as `bias`, `mask` is over keys, [B, L].

  Raises:
    UserError: if the width is not a multiple of `num_heads`.
  """

  num_heads: int
  dtype: Any = jnp.float32
  causal: bool = True

  @nn.compact
  def __call__(self, x_BLD, *, bias=None, mask=None, cache: LayerCache | None = None, index=None):
    width = x_BLD.shape[-1]
    if width % self.num_heads:
      raise UserError(
        f'width {width} is not a multiple of num_heads={self.num_heads}: change one of them'
      )
    shape = (self.num_heads, width // self.num_heads)
    query, key, value = (
      dense(shape, (EMBED, HEADS, HEAD_DIM), dtype=self.dtype, name=name)(x_BLD)
      for name in ('query', 'key', 'value')
    )
    if cache is not None:
      # XLA updates one buffer per layer in place when the index is a scalar.
      key = jax.lax.dynamic_update_slice(cache.key_BNHD, key, (0, index, 0, 0))
      value = jax.lax.dynamic_update_slice(cache.value_BNHD, value, (0, index, 0, 0))
    if isinstance(bias, Tiles):
      mixed_BLHD = attend_in_blocks(query, key, value, mask, bias)
    elif cache is None:
      with jax.named_scope(CAUSAL if self.causal else 'attention'):
        mixed_BLHD = attend(query, key, value, bias=bias, mask=mask)
      if self.is_mutable_collection('intermediates'):  # only if captured
        self.sow('intermediates', 'weights', weights(query, key, bias=bias, mask=mask))
    else:
      mixed_BLHD = attend(query, key, value, bias=bias, mask=mask)
    output_BLD = dense(
      width, (HEADS, HEAD_DIM, EMBED), axis=(-2, -1), dtype=self.dtype, name='output'
    )(mixed_BLHD)
    return output_BLD if cache is None else (output_BLD, LayerCache(key, value))

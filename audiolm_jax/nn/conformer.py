"""Conformer blocks (arXiv 2005.08100) with rotary positions, scanned over layers.

Deviations from the paper: positions are rotary (as in SoundStorm) instead of Transformer-XL's
relative positions, and the convolution module uses layer norm instead of batch norm, so that blocks
are stateless and treat examples independently.

Dropout is active if and only if `apply` gets a 'dropout' key.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from audiolm_jax.errors import UserError
from audiolm_jax.nn import placement
from audiolm_jax.nn.attention import (
  EMBED,
  HEAD_DIM,
  HEADS,
  LAYERS,
  MLP,
  REMAT_POLICY,
  attend,
  attend_in_blocks,
  block_size,
  dense,
  partitioned,
)
from audiolm_jax.nn.dropout import Dropout


def rotate(x_BLHD: Float[Array, 'B L H D'], *, base: float = 10_000.0) -> Float[Array, 'B L H D']:
  """Applies rotary position embeddings (arXiv 2104.09864).

  Each pair of channels is rotated by an angle proportional to its position. Angles are in float32,
  because bfloat16 cannot distinguish positions 1,000 and 1,001.

  Raises:
    UserError: if D is odd.
  """
  length, width = x_BLHD.shape[1], x_BLHD.shape[-1]
  if width % 2:
    raise UserError(
      f'rotary positions rotate pairs of channels, but a head has {width}: make its width even'
    )
  frequency_N = base ** (-np.arange(0, width, 2) / width)
  angle_LN = (np.arange(length)[:, None] * frequency_N).astype(np.float32)
  cosine_1L1N, sine_1L1N = (f(angle_LN)[None, :, None] for f in (np.cos, np.sin))
  first, second = jnp.split(x_BLHD.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate(
    [first * cosine_1L1N - second * sine_1L1N, second * cosine_1L1N + first * sine_1L1N], axis=-1
  )
  return turned.astype(x_BLHD.dtype)


def convolve_depthwise(
  x_BLD: Float[Array, 'B L D'], kernel_ND: Float[Array, 'N D']
) -> Float[Array, 'B L D']:
  """Correlates each channel with its own centred kernel, zero-padded at both ends.

    y[l] = sum_n x[l + n - N // 2] k[n]

  It is a sum of shifted products, which XLA fuses and which is many times faster on CPU than a
  grouped convolution.

  Raises:
    UserError: if N is even.
  """
  size, length = kernel_ND.shape[0], x_BLD.shape[1]
  if size % 2 == 0:
    raise UserError(f'a kernel of {size} frames has no centre: make kernel_size odd')
  padded = jnp.pad(x_BLD, ((0, 0), (size // 2, size // 2), (0, 0)))
  return sum(padded[:, n : n + length] * kernel_ND[n][None, None] for n in range(size))


def layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(
    dtype=dtype,
    scale_init=partitioned(nn.initializers.ones, EMBED),
    bias_init=partitioned(nn.initializers.zeros, EMBED),
    name=name,
  )


class GatedDense(nn.Module):
  """Computes the gated linear unit (x W + b) * sigmoid(x V + c), [B, L, D] -> [B, L, features].

  W and V are halves of one kernel. The kernel is split instead of the output, because splitting a
  sharded output would move activations between devices.
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BLD):
    shape = (x_BLD.shape[-1], 2 * self.features)
    kernel = self.param('kernel', partitioned(nn.initializers.lecun_normal(), EMBED, MLP), shape)
    bias = self.param('bias', partitioned(nn.initializers.zeros, MLP), shape[1:])
    x_BLD = x_BLD.astype(self.dtype)
    value, gate = (
      x_BLD @ half_DE.astype(self.dtype) + half_E.astype(self.dtype)[None, None]
      for half_DE, half_E in zip(jnp.split(kernel, 2, axis=1), jnp.split(bias, 2))
    )
    return value * jax.nn.sigmoid(gate)


class ConformerBlock(nn.Module):
  """Conformer block [B, L, D] -> [B, L, D].

  Half feed-forward, self-attention, convolution, half feed-forward (all residual), then layer norm.
  Positions where the optional mask_BL is False are padding and do not influence others. The output
  is returned twice, because `nn.scan` needs a carry and an output to stack.
  """

  num_heads: int
  mlp_width: int
  kernel_size: int  # frames of the depthwise convolution; odd
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BLD, mask_BL=None):
    x_BLD = placement.by_batch(x_BLD)
    x_BLD = x_BLD + 0.5 * self._feed_forward(x_BLD, 'feed_forward_1')
    x_BLD = x_BLD + self._attention(x_BLD, mask_BL)
    x_BLD = x_BLD + self._convolution(x_BLD, mask_BL)
    x_BLD = x_BLD + 0.5 * self._feed_forward(x_BLD, 'feed_forward_2')
    x_BLD = layer_norm(self.dtype, 'norm')(x_BLD)
    return x_BLD, x_BLD

  def _drop(self, x):
    return Dropout(self.dropout, deterministic=not self.has_rng('dropout'))(x)

  def _dense(self, features, axes, name, **options):
    return dense(features, axes, use_bias=True, dtype=self.dtype, name=name, **options)

  def _feed_forward(self, x_BLD, name):
    width = x_BLD.shape[-1]
    x_BLD = layer_norm(self.dtype, f'{name}_norm')(x_BLD)
    hidden = jax.nn.silu(self._dense(self.mlp_width, (EMBED, MLP), f'{name}_in')(x_BLD))
    return self._drop(self._dense(width, (MLP, EMBED), f'{name}_out')(self._drop(hidden)))

  def _attention(self, x_BLD, mask_BL):
    width = x_BLD.shape[-1]
    if width % self.num_heads:
      raise UserError(
        f'width {width} is not a multiple of num_heads={self.num_heads}: change one of them'
      )
    shape = (self.num_heads, width // self.num_heads)
    x_BLD = layer_norm(self.dtype, 'attention_norm')(x_BLD)
    query, key, value = (
      self._dense(shape, (EMBED, HEADS, HEAD_DIM), name)(x_BLD)
      for name in ('query', 'key', 'value')
    )
    if block_size(x_BLD.shape[1]) is not None:
      valid_BL = jnp.ones(x_BLD.shape[:2], bool) if mask_BL is None else mask_BL
      mixed_BLHD = attend_in_blocks(rotate(query), rotate(key), value, valid_BL)
    else:
      mask = None if mask_BL is None else mask_BL[:, None, None, :]
      mixed_BLHD = attend(rotate(query), rotate(key), value, mask=mask)
    return self._drop(
      self._dense(width, (HEADS, HEAD_DIM, EMBED), 'output', axis=(-2, -1))(mixed_BLHD)
    )

  def _convolution(self, x_BLD, mask_BL):
    width = x_BLD.shape[-1]
    x_BLD = layer_norm(self.dtype, 'convolution_norm')(x_BLD)
    x_BLD = GatedDense(width, dtype=self.dtype, name='convolution_in')(x_BLD)
    if mask_BL is not None:
      x_BLD = jnp.where(mask_BL[..., None], x_BLD, 0)
    init = partitioned(nn.initializers.normal(self.kernel_size**-0.5), None, EMBED)
    kernel_ND = self.param('depthwise', init, (self.kernel_size, width)).astype(self.dtype)
    x_BLD = jax.nn.silu(
      layer_norm(self.dtype, 'depthwise_norm')(convolve_depthwise(x_BLD, kernel_ND))
    )
    return self._drop(self._dense(width, (MLP, EMBED), 'convolution_out')(x_BLD))


class Conformer(nn.Module):
  """Applies `num_layers` Conformer blocks in a scan.

  Maps x_BLD and an optional mask_BL (False at padding) to (x_BLD, hidden_NBLD): hidden_NBLD[n - 1]
  is the output of layer n, and the last one equals x_BLD. Under jit, unused hidden states are not
  computed. To run the first n layers only, use a Conformer of n layers with the parameters
  `jax.tree.map(lambda p: p[:n], params)`.
  """

  num_layers: int
  num_heads: int
  mlp_width: int
  kernel_size: int
  dropout: float = 0.0
  dtype: Any = jnp.float32
  remat: bool = False  # recompute activations in the backward pass, except matrix products

  @nn.compact
  def __call__(
    self, x_BLD: Float[Array, 'B L D'], mask_BL: Bool[Array, 'B L'] | None = None
  ) -> tuple[Float[Array, 'B L D'], Float[Array, 'N B L D']]:
    block = ConformerBlock
    if self.remat:
      block = nn.remat(block, prevent_cse=False, policy=REMAT_POLICY)
    layers = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=nn.broadcast,
      length=self.num_layers,
      unroll=placement.unrolls_layers(),
      metadata_params={nn.PARTITION_NAME: LAYERS},
    )
    return layers(
      self.num_heads, self.mlp_width, self.kernel_size, self.dropout, self.dtype, name='layers'
    )(x_BLD.astype(self.dtype), mask_BL)

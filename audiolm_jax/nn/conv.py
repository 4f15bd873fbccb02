"""Convolutions in time that never look ahead, over arrays [B, N, D].

A clip comes whole or in chunks. Causal convolutions keep the inputs that later outputs need in the variable collection
`PAST`: apply with `mutable=[PAST]` returns it, and given back it lets the next chunk go on from there. Where the
collection is not mutable, the input is a clip from its beginning, and zeros are its past.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from audiolm_jax.nn.attention import partitioned

PAST = 'past'


def conv(
    features: int,
    kernel_shape: tuple[int, ...],
    *,
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal(),
    name: str | None = None,
    **options,
) -> nn.Conv:
  """Returns an `nn.Conv` whose parameters are boxed, with every axis replicated.

  Codecs have a few million parameters and odd channel counts (1 at both ends): nothing is won by sharding them.
  """
  return nn.Conv(
      features,
      kernel_shape,
      kernel_init=partitioned(kernel_init, *[None] * (len(kernel_shape) + 2)),
      bias_init=partitioned(nn.initializers.zeros, None),
      name=name,
      **options,
  )


class CausalConv(nn.Module):
  """Convolution [B, N, D] -> [B, N / stride, features] that sees the past alone; N is a multiple of `stride`.

  Output n depends on inputs up to (n + 1) * stride - 1: a strided output stands for a whole group of `stride` inputs
  and waits for its last one.
  """

  features: int
  kernel_size: int
  stride: int = 1
  dilation: int = 1
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BND):
    batch, _, width = x_BND.shape
    zeros = length = self.dilation * (self.kernel_size - 1) - (self.stride - 1)
    if length > 0 and self.is_mutable_collection(PAST):
      past = self.variable(PAST, 'inputs', lambda: jnp.zeros((batch, length, width), x_BND.dtype))
      x_BND, zeros = jnp.concatenate([past.value, x_BND], axis=1), 0
      past.value = x_BND[:, -length:]
    kernel_init = partitioned(self.kernel_init, None, None, None)
    kernel = self.param('kernel', kernel_init, (self.kernel_size, width, self.features))
    y_BND = lax.conv_general_dilated(
        x_BND.astype(self.dtype), kernel.astype(self.dtype), (self.stride,), ((zeros, 0),),
        rhs_dilation=(self.dilation,), dimension_numbers=('NWC', 'WIO', 'NWC'),
    )  # fmt: skip
    if self.use_bias:
      y_BND += self.param('bias', partitioned(nn.initializers.zeros, None), (self.features,)).astype(self.dtype)
    return y_BND


class CausalConvTranspose(nn.Module):
  """Transposed convolution [B, N, D] -> [B, N * stride, features], kernel 2 * stride, trimmed on the right.

  Input n reaches outputs n * stride and later, and 2 * stride of them: so each output sees two inputs, and the whole
  is a convolution of kernel 2 that makes `stride` outputs at a time. In this form XLA:CPU runs forward and backward
  5 to 15 times faster than `lax.conv_transpose` (measured at strides 2 and 8).
  """

  features: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BND):
    batch, length, _ = x_BND.shape
    groups_BND = CausalConv(self.stride * self.features, 2, use_bias=False, dtype=self.dtype, name='kernel')(x_BND)
    bias_D = self.param('bias', partitioned(nn.initializers.zeros, None), (self.features,))
    return groups_BND.reshape(batch, length * self.stride, self.features) + bias_D.astype(self.dtype)


class GroupedConv(nn.Module):
  """Strided convolution [B, N, D] -> [B, ceil(N / stride), features] whose groups of 4 channels are kept apart.

  What `nn.Conv(feature_group_count=D // 4)` computes, from the same parameters. Written as dense convolutions with
  block-diagonal kernels, since XLA's partitioner sums the kernel gradient of a grouped convolution once too often for
  every replica (docs/log.md), and since on a CPU it is 2 to 7 times faster, zeros included.
  """

  features: int
  kernel_size: int
  stride: int
  dtype: Any = jnp.float32

  GROUP = 4
  BLOCK = 64  # channels that one dense kernel holds: a few groups fill a matrix unit, all of them would waste it

  @nn.compact
  def __call__(self, x_BND):
    channels = x_BND.shape[-1]
    kernel_init = partitioned(nn.initializers.lecun_normal(), None, None, None)
    kernel = self.param('kernel', kernel_init, (self.kernel_size, self.GROUP, self.features))
    bias_D = self.param('bias', partitioned(nn.initializers.zeros, None), (self.features,))
    num_blocks = max(channels // self.BLOCK, 1)
    blocks = zip(jnp.split(x_BND, num_blocks, axis=-1), jnp.split(kernel, num_blocks, axis=-1))
    y_BND = jnp.concatenate([self._block(x, block) for x, block in blocks], axis=-1)
    return y_BND + bias_D.astype(self.dtype)

  def _block(self, x_BND, kernel):
    groups = x_BND.shape[-1] // self.GROUP
    grouped = kernel.reshape(self.kernel_size, self.GROUP, groups, -1)
    diagonal = jnp.einsum('kigo,gh->khigo', grouped, jnp.eye(groups)).reshape(self.kernel_size, -1, kernel.shape[-1])
    return lax.conv_general_dilated(
        x_BND.astype(self.dtype), diagonal.astype(self.dtype), (self.stride,), 'SAME',
        dimension_numbers=('NWC', 'WIO', 'NWC'),
    )  # fmt: skip

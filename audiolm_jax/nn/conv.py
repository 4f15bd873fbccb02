"""Convolutions of the codec, which are causal, and of its discriminators.

Causal convolutions [B, N, D] run on whole clips or on consecutive chunks. They keep the inputs that
later outputs need in the variable collection `PAST`: `apply(..., mutable=[PAST])` returns it for
the next chunk. If the collection is immutable, the input is a whole clip, preceded by zeros.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from audiolm_jax.errors import UserError
from audiolm_jax.nn.attention import partitioned

PAST = 'past'


def with_past(
  module: nn.Module, x: Float[ArrayLike, 'B N *dims'], length: int
) -> Float[Array, 'B M *dims']:
  """Returns `x` preceded by the last `length` inputs of `module` along axis 1.

  The inputs come from the collection `PAST`, or are zeros if it is immutable.
  """
  x = jnp.asarray(x)
  if not length:
    return x
  zeros = lambda: jnp.zeros((len(x), length, *x.shape[2:]), x.dtype)
  if not module.is_mutable_collection(PAST):
    return jnp.concatenate([zeros(), x], axis=1)
  past = module.variable(PAST, 'inputs', zeros)
  x = jnp.concatenate([past.value, x], axis=1)
  past.value = x[:, -length:]
  return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(
  x: Float[Array, 'B *spatial D'],
  kernel: Float[Array, '*taps D E'],
  strides: tuple[int, ...],
  padding: tuple[tuple[int, int], ...],
  dilation: tuple[int, ...],
) -> Float[Array, 'B *spatial_out E']:
  """Returns `lax.conv_general_dilated` with gradients in the same layout.

  JAX computes gradients by convolutions with permuted axis names, which XLA:CPU makes fast only
  outside of branches and loops: within a `lax.cond`, as around the codec's discriminators, they
  took 20 to 80 times as long (docs/log.md). Here, gradients are convolutions with the axis order of
  the forward pass, between transposes. Values are bitwise equal.
  """
  return _convolve(x, kernel, strides, padding, dilation)


def _convolve(x, kernel, strides, padding, dilation, x_dilation=None):
  spatial = 'HW'[: x.ndim - 2]
  axes = f'N{spatial}C', f'{spatial}IO', f'N{spatial}C'
  return lax.conv_general_dilated(x, kernel, strides, padding, x_dilation, dilation, axes)


def _forward(x, kernel, *options):
  return _convolve(x, kernel, *options), (x, kernel)


def _backward(strides, padding, dilation, inputs, gradient):
  x, kernel = inputs
  # Per axis, in samples of x: distances between the first and last tap, and between the first and
  # last output; zeros read before and after (negative if the last samples are not read).
  reach = [(taps - 1) * step for taps, step in zip(kernel.shape, dilation)]
  spread = [(size - 1) * stride for size, stride in zip(gradient.shape[1:], strides)]
  before = [low for low, _ in padding]
  after = [s + r + 1 - size - low for s, r, size, low in zip(spread, reach, x.shape[1:], before)]
  flipped = jnp.swapaxes(jnp.flip(kernel, range(kernel.ndim - 2)), -1, -2)
  x_padding = [(r - low, r - high) for r, low, high in zip(reach, before, after)]
  x_gradient = _convolve(
    gradient, flipped, (1,) * len(reach), x_padding, dilation, x_dilation=strides
  )
  # Swap batch and channels: the kernel gradient sums over examples and keeps channels apart.
  as_kernel = jnp.moveaxis(gradient, 0, -2)
  kernel_gradient = _convolve(
    jnp.swapaxes(x, 0, -1), as_kernel, dilation, list(zip(before, after)), strides
  )
  return x_gradient, jnp.moveaxis(kernel_gradient, 0, -2)


convolve.defvjp(_forward, _backward)


class Conv(nn.Module):
  """Computes `nn.Conv` with the fast gradients of `convolve` and unsharded parameters.

  Sharding a codec gains nothing: it has a few million parameters and odd numbers of channels (1 at
  both ends).
  """

  features: int
  kernel_shape: tuple[int, ...]
  strides: tuple[int, ...] | None = None
  padding: str = 'SAME'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    shape = (*self.kernel_shape, x.shape[-1], self.features)
    kernel = self.param(
      'kernel', partitioned(nn.initializers.lecun_normal(), *[None] * len(shape)), shape
    )
    bias_D = self.param('bias', partitioned(nn.initializers.zeros, None), (self.features,))
    strides = self.strides or (1,) * len(self.kernel_shape)
    padding = tuple(lax.padtype_to_pads(x.shape[1:-1], self.kernel_shape, strides, self.padding))
    y = convolve(
      x.astype(self.dtype), kernel.astype(self.dtype), strides, padding, (1,) * len(strides)
    )
    return y + bias_D.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


class CausalConv(nn.Module):
  """Computes a causal convolution [B, N, D] -> [B, N / stride, features].

  N has to be a multiple of `stride`. An output represents a group of `stride` inputs: output n
  depends on inputs up to the last one of its group, (n + 1) * stride - 1.
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
    width = x_BND.shape[-1]
    zeros = length = self.dilation * (self.kernel_size - 1) - (self.stride - 1)
    if length > 0 and self.is_mutable_collection(PAST):
      x_BND, zeros = with_past(self, x_BND, length), 0
    kernel_init = partitioned(self.kernel_init, None, None, None)
    kernel = self.param('kernel', kernel_init, (self.kernel_size, width, self.features))
    x_BND, kernel = x_BND.astype(self.dtype), kernel.astype(self.dtype)
    y_BND = convolve(x_BND, kernel, (self.stride,), ((zeros, 0),), (self.dilation,))
    if self.use_bias:
      bias_D = self.param('bias', partitioned(nn.initializers.zeros, None), (self.features,))
      y_BND += bias_D.astype(self.dtype)[None, None]
    return y_BND


class CausalConvTranspose(nn.Module):
  """Computes a causal transposed convolution [B, N, D] -> [B, N * stride, features].

  The kernel has 2 * stride taps, and the output is trimmed on the right. Each output depends on two
  inputs, so the layer equals a convolution of kernel 2 with `stride` outputs per step. XLA:CPU runs
  this form 5 to 15 times faster than `lax.conv_transpose` (forward and backward, strides 2 and 8).
  """

  features: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BND):
    batch, length, _ = x_BND.shape
    groups_BND = CausalConv(
      self.stride * self.features, 2, use_bias=False, dtype=self.dtype, name='kernel'
    )(x_BND)
    bias_D = self.param('bias', partitioned(nn.initializers.zeros, None), (self.features,))
    y_BND = groups_BND.reshape(batch, length * self.stride, self.features)
    return y_BND + bias_D.astype(self.dtype)[None, None]


class GroupedConv(nn.Module):
  """Computes a strided convolution [B, N, D] -> [B, ceil(N / stride), features] in groups.

  Groups have 4 channels: it equals `nn.Conv(feature_group_count=D // 4)` with the same parameters.
  It uses dense convolutions with block-diagonal kernels, because XLA's partitioner sums the kernel
  gradient of grouped convolutions once too often per replica (docs/log.md), and because they are 2
  to 7 times faster on CPU. The samples of one stride become channels of one step, so that the
  gradient has no zeros between samples, which is 1.5 to 40 times faster.
  """

  features: int
  kernel_size: int
  stride: int
  dtype: Any = jnp.float32

  GROUP = 4
  # Channels of one dense kernel: enough to fill a matrix unit; more would multiply by zeros.
  BLOCK = 64

  @nn.compact
  def __call__(self, x_BND):
    channels = x_BND.shape[-1]
    kernel_init = partitioned(nn.initializers.lecun_normal(), None, None, None)
    kernel = self.param('kernel', kernel_init, (self.kernel_size, self.GROUP, self.features))
    bias_D = self.param('bias', partitioned(nn.initializers.zeros, None), (self.features,))
    num_blocks = max(channels // self.BLOCK, 1)
    blocks = zip(
      jnp.split(self._padded(x_BND), num_blocks, axis=-1), jnp.split(kernel, num_blocks, axis=-1)
    )
    y_BND = jnp.concatenate([self._block(x, block) for x, block in blocks], axis=-1)
    return y_BND + bias_D.astype(self.dtype)[None, None]

  def _padded(self, x_BND):
    """Returns the input, zero-padded such that the kernel reads whole strides."""
    length = x_BND.shape[1]
    steps, taps = -(-length // self.stride), -(-self.kernel_size // self.stride)
    ((before, _),) = lax.padtype_to_pads((length,), (self.kernel_size,), (self.stride,), 'SAME')
    after = (steps + taps - 1) * self.stride - length - before
    return jnp.pad(x_BND, ((0, 0), (before, after), (0, 0)))

  def _block(self, x_BND, kernel):
    batch, length, channels = x_BND.shape
    groups, width = channels // self.GROUP, self.stride * channels
    grouped = kernel.reshape(self.kernel_size, self.GROUP, groups, -1)
    diagonal = jnp.einsum('kigo,gh->khigo', grouped, jnp.eye(groups)).reshape(
      self.kernel_size, channels, -1
    )
    diagonal = jnp.pad(diagonal, ((0, -self.kernel_size % self.stride), (0, 0), (0, 0)))
    kernel, x_BND = (
      diagonal.reshape(-1, width, kernel.shape[-1]),
      x_BND.reshape(batch, length // self.stride, width),
    )
    return convolve(x_BND.astype(self.dtype), kernel.astype(self.dtype), (1,), ((0, 0),), (1,))


def silent_past(module: nn.Module, example: Array) -> Any:
  """Returns the state of a causal module before its first chunk: the collection `PAST`, zeros.

  Args:
    module: the module.
    example: an input of any length, with the batch size and width of the chunks.
  """
  shapes = _past_shapes(module, example.shape, example.dtype)
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


@functools.lru_cache(maxsize=64)
def _past_shapes(module, shape, dtype):
  """Traces the module once for all streams of one kind, or each new stream would wait for it."""
  example = jax.ShapeDtypeStruct(shape, dtype)
  return jax.eval_shape(lambda x: module.init(jax.random.key(0), x), example)[PAST]


def next_chunk(module: nn.Module, params: Any, past: Any, inputs: Array) -> tuple[Array, Any]:
  """Returns the outputs of a causal module for its next chunk, and the state after it.

  Raises:
    UserError: if state and chunk have different numbers of clips.
  """
  num_clips = {leaf.shape[0] for leaf in jax.tree.leaves(past)}
  if num_clips != {len(inputs)}:
    raise UserError(
      f'the chunk has {len(inputs)} clips, the state {sorted(num_clips)}: make a new state for the '
      'clips'
    )
  outputs, updated = module.apply({'params': params, PAST: past}, inputs, mutable=[PAST])
  return outputs, updated[PAST]

"""Layers with the parameters and padding of the sources, fast on CPUs and TPUs."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from audiolm_jax import checks
from audiolm_jax.errors import UserError
from audiolm_jax.stages.base import Key, Variables


class Model(NamedTuple):
  """Holds the `init` function of an imported model; unlike `base.Stage`, it has no loss."""

  init: Callable[[Key], Variables]


# pi as a sum whose first two terms have few bits: their products with integers of a few thousand
# are exact in float32.
PI = (3.140625, 0.0009675025939941406, 1.5099580252808664e-07)
# sin(r)^2 / r^2 as a polynomial in r^2, |r| <= pi / 2, interpolated at Chebyshev points, to 2e-8.
SQUARED_SINE = (
  1.0,
  -0.3333330750465393,
  0.04444318264722824,
  -0.0031724045984447002,
  0.00013935226888861507,
  -3.6315584566182224e-06,
)


def squared_sine(x: Float[Array, '*dims']) -> Float[Array, '*dims']:
  """Returns sin(x)^2 to within 3e-7 for |x| up to 10^4.

  One polynomial on [-pi / 2, pi / 2] suffices, because the period is pi. Nine times as fast on CPU
  as squaring XLA's sine.
  """
  periods = jnp.round(x * (1 / math.pi))
  for part in PI:
    x -= periods * part
  x_squared = jnp.square(x)
  return x_squared * functools.reduce(lambda y, factor: y * x_squared + factor, SQUARED_SINE[::-1])


def layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
  # The fast variance E[x^2] - E[x]^2 is less accurate than that of the sources.
  return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)


class Conv(nn.Module):
  """Convolution [B, N, D] -> [B, N', features] with `padding` zeros on both sides."""

  features: int
  kernel_size: int
  stride: int = 1
  dilation: int = 1
  padding: int = 0
  use_bias: bool = True

  @nn.compact
  def __call__(self, x_BND):
    shape = (self.kernel_size, x_BND.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    y_BND = lax.conv_general_dilated(
      x_BND,
      kernel,
      (self.stride,),
      ((self.padding, self.padding),),
      rhs_dilation=(self.dilation,),
      dimension_numbers=('NWC', 'WIO', 'NWC'),
    )
    return (
      y_BND + self.param('bias', nn.initializers.zeros, (self.features,))
      if self.use_bias
      else y_BND
    )


class CausalConv(nn.Module):
  """Convolution [B, N, D] -> [B, ceil(N / stride), features], padded as in EnCodec and Mimi.

  Padding is on the left, except what a last, incomplete group of `stride` inputs lacks. `mode` is
  that of `jnp.pad`; inputs too short to be reflected are first followed by zeros.
  """

  features: int
  kernel_size: int
  stride: int = 1
  dilation: int = 1
  mode: str = 'constant'
  use_bias: bool = True

  @nn.compact
  def __call__(self, x_BND):
    length = x_BND.shape[1]
    left, right = (self.kernel_size - 1) * self.dilation + 1 - self.stride, -length % self.stride
    zeros = max(0, max(left, right) - length + 1) if self.mode == 'reflect' else 0
    x_BND = jnp.pad(x_BND, ((0, 0), (0, zeros), (0, 0)))
    x_BND = jnp.pad(x_BND, ((0, 0), (left, right), (0, 0)), mode=self.mode)[
      :, : left + length + right
    ]
    conv = Conv(
      self.features,
      self.kernel_size,
      stride=self.stride,
      dilation=self.dilation,
      use_bias=self.use_bias,
      name='conv',
    )
    return conv(x_BND)


class CausalConvTranspose(nn.Module):
  """Transposed convolution [B, N, D] -> [B, N * stride, features], trimmed on the right.

  The kernel has 2 * stride taps.
  """

  features: int
  stride: int

  @nn.compact
  def __call__(self, x_BND):
    return OverlapAdd(self.features, self.stride, trim_start=0, trim_end=self.stride, name='conv')(
      x_BND
    )


class OverlapAdd(nn.Module):
  """Transposed convolution [B, N, D] -> [B, (N + 1) * stride - trims, features].

  The kernel has 2 * stride taps. Each output depends on two inputs, so the layer equals a
  convolution of kernel 2 with `stride` outputs per step (`nn.conv.CausalConvTranspose`).
  """

  features: int
  stride: int
  trim_start: int
  trim_end: int

  @nn.compact
  def __call__(self, x_BND):
    batch, length, width = x_BND.shape
    taps = self.param(
      'taps', nn.initializers.lecun_normal(), (2, width, self.stride, self.features)
    )
    groups_BND = lax.conv_general_dilated(
      x_BND, taps.reshape(2, width, -1), (1,), ((1, 1),), dimension_numbers=('NWC', 'WIO', 'NWC')
    )
    bias_D = self.param('bias', nn.initializers.zeros, (self.features,))
    total = (length + 1) * self.stride
    wave_BND = groups_BND.reshape(batch, total, self.features) + bias_D
    return wave_BND[:, self.trim_start : total - self.trim_end]


def check_length(name: str, hop_length: int, wave_BT: Array):
  """Checks that waveforms are [B, T] with T a positive multiple of the hop length.

  Raises:
    UserError: if they are not.
  """
  checks.shapes(wave_BT=wave_BT)
  num_samples = wave_BT.shape[-1]
  if num_samples == 0 or num_samples % hop_length:
    raise UserError(
      f'waveform has {num_samples:,} samples; {name} needs a positive multiple of '
      f'hop_length={hop_length}: pad with audio.pad_to_multiple'
    )


def aligned(extract: Callable, num_frames: Callable, config: Any, wave_BT: Array) -> Array:
  """Returns features of S = ceil(T / hop_length) frames, aligned with a codec of that hop.

  Trailing zeros of a waveform are treated as padding. Frames that would depend on them repeat the
  features of the last frame that does not.

  Args:
    extract: function (wave_BT, num_samples_B) -> features_BSD of the frames within T samples.
    num_frames: function (config, num_samples_B) -> number of these frames.
    config: has hop_length and frame_length.
    wave_BT: waveforms.
  """
  checks.shapes(wave_BT=wave_BT)
  num_samples = wave_BT.shape[-1]
  length_B = jnp.max(jnp.where(wave_BT != 0, np.arange(1, num_samples + 1), 0), axis=-1)
  length_B = jnp.maximum(length_B, config.frame_length)
  wanted = -(-num_samples // config.hop_length)
  missing = max(0, (wanted - 1) * config.hop_length + config.frame_length - num_samples)
  features_BSD = extract(jnp.pad(wave_BT, ((0, 0), (0, missing))), length_B)
  read_BS = jnp.minimum(np.arange(wanted), num_frames(config, length_B)[:, None] - 1)
  return jnp.take_along_axis(features_BSD, read_BS[..., None], axis=1)


def encoder_inputs(
  config: Any, wave_BT: Array, num_layers: int | None, num_samples_B: Array | None
) -> tuple[int, Array]:
  """Returns the number of layers to run and the number of samples before padding of each row.

  None stands for all layers and all samples.

  Raises:
    UserError: if the encoder has fewer layers, or a waveform is shorter than one frame.
  """
  checks.shapes(wave_BT=wave_BT)
  num_layers = config.num_layers if num_layers is None else num_layers
  if not 0 <= num_layers <= config.num_layers:
    raise UserError(
      f'layer {num_layers}: this model has 0 (before the first) to {config.num_layers}'
    )
  batch, num_samples = wave_BT.shape
  if num_samples < config.frame_length:
    raise UserError(
      f'waveform has {num_samples:,} samples; one frame takes {config.frame_length}: pad it with '
      'zeros'
    )
  return num_layers, jnp.full(batch, num_samples) if num_samples_B is None else num_samples_B


def check_not_empty(wave_BT: Array):
  """Checks that waveforms are [B, T] with T > 0.

  Raises:
    UserError: if they are not.
  """
  checks.shapes(wave_BT=wave_BT)
  if wave_BT.shape[-1] == 0:
    raise UserError('waveform has no samples: give at least one')


def check_levels(available: int, asked: int | None):
  """Checks that a codec has the requested number of quantizer levels.

  Raises:
    UserError: if it does not.
  """
  if asked is not None and not 1 <= asked <= available:
    raise UserError(
      f'{asked} quantizer levels: this codec has num_quantizers={available}; were they made by '
      'another?'
    )


def check_codes(config: Any, codes_BFQ: Array):
  """Checks that codes are [B, F, Q] within the levels and codebooks of the codec.

  Raises:
    UserError: if they are not.
  """
  checks.shapes(codes_BFQ=codes_BFQ)
  check_levels(config.num_quantizers, codes_BFQ.shape[-1])
  checks.ids('codes_BFQ', codes_BFQ, config.codebook_size, padding=False)

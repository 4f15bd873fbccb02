"""SEANet of EnCodec and Mimi: causal convolutions between residual units, with ELU.

Modules are named as their tensors: `layers_3` is entry 3 of the original's list, which includes
activations.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from audiolm_jax.nn.seanet import elu
from audiolm_jax.pretrained.layers import CausalConv, CausalConvTranspose


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeanetConfig:
  strides: tuple[int, ...]  # of the encoder, reversed in the decoder
  num_filters: int  # at the full rate; doubles with each stride
  width: int  # of the embeddings
  kernel_size: int
  last_kernel_size: int
  residual_kernel_size: int
  num_residual_layers: int
  dilation_growth: int
  compress: int
  mode: str  # of the padding
  conv_shortcut: bool
  num_lstm_layers: int  # between the convolutions and the embeddings; 0: none

  @classmethod
  def of(cls, config: Any, **own) -> 'SeanetConfig':
    """Returns the config with the equally named fields of a codec's config, and `own`."""
    names = [field.name for field in dataclasses.fields(cls) if hasattr(config, field.name)]
    return cls(**{name: getattr(config, name) for name in names}, **own)

  def conv(self, features: int, kernel_size: int, name: str, **options) -> CausalConv:
    return CausalConv(features, kernel_size, mode=self.mode, name=name, **options)


class ResidualUnit(nn.Module):
  """Residual unit shortcut(x) + conv1(elu(dilated conv(elu(x))))."""

  config: SeanetConfig
  dilation: int

  @nn.compact
  def __call__(self, x_BND):
    config, width = self.config, x_BND.shape[-1]
    hidden = config.conv(
      width // config.compress, config.residual_kernel_size, 'block_1', dilation=self.dilation
    )(elu(x_BND))
    hidden = config.conv(width, 1, 'block_3')(elu(hidden))
    return hidden + (config.conv(width, 1, 'shortcut')(x_BND) if config.conv_shortcut else x_BND)


class Lstm(nn.Module):
  """Residual LSTM, x + LSTM(x), with PyTorch's parameters.

  The gate order is input, forget, cell, output.
  """

  num_layers: int

  @nn.compact
  def __call__(self, x_BND):
    wave_BND = x_BND
    for layer in range(self.num_layers):
      wave_BND = self._layer(wave_BND, layer)
    return x_BND + wave_BND

  def _layer(self, x_BND, layer):
    batch, _, width = x_BND.shape
    weight = lambda name: self.param(
      f'weight_{name}_l{layer}', nn.initializers.lecun_normal(), (4 * width, width)
    )
    bias = lambda name: self.param(f'bias_{name}_l{layer}', nn.initializers.zeros, (4 * width,))
    inputs_NBG = jnp.moveaxis(x_BND @ weight('ih').T + (bias('ih') + bias('hh')), 1, 0)
    recurrent = weight('hh').T

    def step(state, input_BG):
      hidden_BD, cell_BD = state
      gates = jnp.split(input_BG + hidden_BD @ recurrent, 4, axis=-1)
      cell_BD = nn.sigmoid(gates[1]) * cell_BD + nn.sigmoid(gates[0]) * jnp.tanh(gates[2])
      hidden_BD = nn.sigmoid(gates[3]) * jnp.tanh(cell_BD)
      return (hidden_BD, cell_BD), hidden_BD

    zeros = jnp.zeros((batch, width), x_BND.dtype)
    return jnp.moveaxis(lax.scan(step, (zeros, zeros), inputs_NBG)[1], 0, 1)


class LstmLayer(nn.Module):
  num_layers: int

  @nn.compact
  def __call__(self, x_BND):
    return Lstm(self.num_layers, name='lstm')(x_BND)


class Encoder(nn.Module):
  """Waveform [B, T] -> embeddings [B, ceil(T / product of strides), width]."""

  config: SeanetConfig

  @nn.compact
  def __call__(self, wave_BT):
    config, filters, number = self.config, self.config.num_filters, 1
    x_BND = config.conv(filters, config.kernel_size, 'layers_0')(wave_BT[..., None])
    for stride in config.strides:
      for depth in range(config.num_residual_layers):
        x_BND = ResidualUnit(
          config, config.dilation_growth**depth, name=f'layers_{number + depth}'
        )(x_BND)
      # Count the following activation and convolution.
      number += config.num_residual_layers + 2
      filters *= 2
      x_BND = config.conv(filters, 2 * stride, f'layers_{number - 1}', stride=stride)(elu(x_BND))
    if config.num_lstm_layers:
      x_BND = LstmLayer(config.num_lstm_layers, name=f'layers_{number}')(x_BND)
      number += 1
    return config.conv(config.width, config.last_kernel_size, f'layers_{number + 1}')(elu(x_BND))


class Decoder(nn.Module):
  """Embeddings [B, F, width] -> waveform [B, F * product of strides]."""

  config: SeanetConfig

  @nn.compact
  def __call__(self, z_BFD):
    config, number = self.config, 1
    filters = config.num_filters * 2 ** len(config.strides)
    x_BND = config.conv(filters, config.kernel_size, 'layers_0')(z_BFD)
    if config.num_lstm_layers:
      x_BND = LstmLayer(config.num_lstm_layers, name='layers_1')(x_BND)
      number = 2
    for stride in config.strides[::-1]:
      filters //= 2
      x_BND = CausalConvTranspose(filters, stride, name=f'layers_{number + 1}')(elu(x_BND))
      number += 2
      for depth in range(config.num_residual_layers):
        x_BND = ResidualUnit(
          config, config.dilation_growth**depth, name=f'layers_{number + depth}'
        )(x_BND)
      number += config.num_residual_layers
    return config.conv(1, config.last_kernel_size, f'layers_{number + 1}')(elu(x_BND))[..., 0]

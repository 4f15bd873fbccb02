"""DAC (Kumar et al., 2023, arXiv 2306.06546) from Hugging Face's `DacModel`.

Maps waveform_BT <-> codes_BFQ. `descript/dac_16khz` has AudioLM's acoustic tokens: 16 kHz, 50
frames/s, 12 levels of 1024 codes. It is not causal: padding is on both sides. The `hop_length` in
published config.json files is wrong (512); the product of the strides is used.

Upsampling by an odd stride loses its last sample, so the decoder returns a few samples less than F
* hop_length (8 at 16 kHz); `decode` appends zeros. Modules are named as their tensors (see
`tensors`).
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from audiolm_jax.errors import UserError
from audiolm_jax.nn.quantizer import HIGHEST
from audiolm_jax.pretrained import tensors
from audiolm_jax.pretrained.layers import (
  Conv,
  Model,
  OverlapAdd,
  check_codes,
  check_length,
  check_levels,
  squared_sine,
)
from audiolm_jax.stages.base import CodecFunctions, Variables

MODEL_TYPE = 'dac'
DILATIONS = (1, 3, 9)  # of the residual units at each rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures DAC; the defaults are those of `descript/dac_16khz`."""

  sample_rate: int = 16_000  # Hz
  strides: tuple[int, ...] = (2, 4, 5, 8)  # of the encoder, reversed in the decoder
  encoder_channels: int = 64
  decoder_channels: int = 1536
  num_quantizers: int = 12
  codebook_size: int = 1024
  codebook_dim: int = 8

  @property
  def hop_length(self) -> int:
    """Number of samples per frame."""
    return math.prod(self.strides)

  @property
  def frame_rate(self) -> float:
    """Number of frames per second."""
    return self.sample_rate / self.hop_length

  @property
  def embedding_dim(self) -> int:
    return self.encoder_channels * 2 ** len(self.strides)

  @property
  def context(self) -> int:
    """Number of frames on each side that a frame depends on, in encoder or decoder, rounded up."""
    ends, units = 3, sum(3 * dilation for dilation in DILATIONS)
    # In samples; `step` is one step at the current rate.
    encoder, decoder, step = ends, ends * self.hop_length, 1
    for stride in self.strides:
      encoder += step * (units + 2 * stride)
      decoder += step * (units + stride)
      step *= stride
    return -(-max(encoder + step, decoder + ends) // self.hop_length)

  def make(self) -> Model:
    return Model(lambda key: _init(self, key))

  def codec(self) -> CodecFunctions:
    return CodecFunctions(
      functools.partial(encode, self), functools.partial(decode, self), self.context
    )


def config_from(data: Mapping[str, Any]) -> Config:
  """Returns the config described by a `DacModel`'s config.json.

  Raises:
    UserError: if it asks for something that is not implemented.
  """
  strides = tensors.integers(data, 'downsampling_ratios', (2, 4, 8, 8))
  config = Config(
    sample_rate=tensors.integer(data, 'sampling_rate', 16_000),
    strides=strides,
    encoder_channels=tensors.integer(data, 'encoder_hidden_size', 64),
    decoder_channels=tensors.integer(data, 'decoder_hidden_size', 1536),
    num_quantizers=tensors.integer(data, 'n_codebooks', 9, high=tensors.MAX_LAYERS),
    codebook_size=tensors.integer(data, 'codebook_size', 1024),
    codebook_dim=tensors.integer(data, 'codebook_dim', 8),
  )
  tensors.bounded('the hop length', config.hop_length)
  tensors.bounded('the embedding', config.embedding_dim)
  tensors.require(
    data, {'upsampling_ratios': list(strides[::-1]), 'hidden_size': config.embedding_dim}
  )
  if config.decoder_channels % 2 ** len(strides):
    raise UserError(
      f'decoder_hidden_size={config.decoder_channels} cannot be halved {len(strides)} times'
    )
  return config


def load(folder: pathlib.Path, config: Config) -> Variables:
  """Loads the weights in `folder`.

  Raises:
    UserError: with a parameter diff, if they do not match `config`.
  """
  return Variables(
    tensors.load(folder, jax.eval_shape(config.make().init, jax.random.key(0)).params), {}
  )


class Snake(nn.Module):
  """Activation x + sin(alpha x)^2 / alpha, with one alpha per channel."""

  @nn.compact
  def __call__(self, x_BND):
    alpha_D = self.param('alpha', nn.initializers.ones, (x_BND.shape[-1],))
    return x_BND + squared_sine(alpha_D * x_BND) * (1 / (alpha_D + 1e-9))


class ResidualUnit(nn.Module):
  """Residual unit x + conv1(snake(dilated conv7(snake(x))))."""

  dilation: int

  @nn.compact
  def __call__(self, x_BND):
    width = x_BND.shape[-1]
    hidden_BND = Snake(name='snake1')(x_BND)
    hidden_BND = Conv(width, 7, dilation=self.dilation, padding=3 * self.dilation, name='conv1')(
      hidden_BND
    )
    return x_BND + Conv(width, 1, name='conv2')(Snake(name='snake2')(hidden_BND))


def _residual_units(x_BND):
  for number, dilation in enumerate(DILATIONS, start=1):
    x_BND = ResidualUnit(dilation, name=f'res_unit{number}')(x_BND)
  return x_BND


class EncoderBlock(nn.Module):
  """Three residual units, then a convolution that doubles the width and strides by `stride`."""

  stride: int

  @nn.compact
  def __call__(self, x_BND):
    x_BND = Snake(name='snake1')(_residual_units(x_BND))
    padding = math.ceil(self.stride / 2)
    return Conv(
      2 * x_BND.shape[-1], 2 * self.stride, stride=self.stride, padding=padding, name='conv1'
    )(x_BND)


class DecoderBlock(nn.Module):
  """Transposed convolution that halves the width and upsamples, then three residual units."""

  stride: int

  @nn.compact
  def __call__(self, x_BND):
    x_BND = Snake(name='snake1')(x_BND)
    trim = math.ceil(self.stride / 2)
    x_BND = OverlapAdd(
      x_BND.shape[-1] // 2, self.stride, trim_start=trim, trim_end=trim, name='conv_t1'
    )(x_BND)
    return _residual_units(x_BND)


class Encoder(nn.Module):
  """Waveform [B, T] -> embeddings [B, F, embedding_dim]."""

  config: Config

  @nn.compact
  def __call__(self, wave_BT):
    x_BND = Conv(self.config.encoder_channels, 7, padding=3, name='conv1')(wave_BT[..., None])
    for level, stride in enumerate(self.config.strides):
      x_BND = EncoderBlock(stride, name=f'block_{level}')(x_BND)
    return Conv(self.config.embedding_dim, 3, padding=1, name='conv2')(Snake(name='snake1')(x_BND))


class Decoder(nn.Module):
  """Embeddings [B, F, embedding_dim] -> waveform [B, F * hop_length - loss of odd strides]."""

  config: Config

  @nn.compact
  def __call__(self, z_BFD):
    x_BND = Conv(self.config.decoder_channels, 7, padding=3, name='conv1')(z_BFD)
    for level, stride in enumerate(self.config.strides[::-1]):
      x_BND = DecoderBlock(stride, name=f'block_{level}')(x_BND)
    return jnp.tanh(Conv(1, 7, padding=3, name='conv2')(Snake(name='snake1')(x_BND)))[..., 0]


class VectorQuantizer(nn.Module):
  """One quantizer level: selects the code nearest in direction to the projected input."""

  config: Config

  def setup(self):
    self.in_proj = Conv(self.config.codebook_dim, 1)
    self.out_proj = Conv(self.config.embedding_dim, 1)
    self.codebook = nn.Embed(self.config.codebook_size, self.config.codebook_dim)

  def encode(self, x_BFD):
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    products_BFK = jnp.einsum(
      'bfd,kd->bfk', unit(self.in_proj(x_BFD)), unit(self.codebook.embedding), precision=HIGHEST
    )
    return jnp.argmax(products_BFK, axis=-1).astype(jnp.int32)

  def decode(self, codes_BF):
    return self.out_proj(self.codebook(codes_BF))


class ResidualVectorQuantizer(nn.Module):
  """Embeddings [B, F, D] <-> codes [B, F, Q]; each level quantizes the remaining residual."""

  config: Config

  def setup(self):
    self.quantizers = [VectorQuantizer(self.config) for _ in range(self.config.num_quantizers)]

  def encode(self, z_BFD, num_quantizers):
    codes = []
    for quantizer in self.quantizers[:num_quantizers]:
      codes.append(quantizer.encode(z_BFD))
      z_BFD = z_BFD - quantizer.decode(codes[-1])
    return jnp.stack(codes, axis=-1)

  def decode(self, codes_BFQ):
    return sum(
      quantizer.decode(codes_BFQ[..., level])
      for level, quantizer in enumerate(self.quantizers[: codes_BFQ.shape[-1]])
    )

  def __call__(self, z_BFD):
    return self.decode(self.encode(z_BFD, None))


def _init(config: Config, key: jax.Array) -> Variables:
  keys = jax.random.split(key, 3)
  z_BFD = jnp.zeros((1, 2, config.embedding_dim))
  modules = {
    'encoder': (Encoder(config), jnp.zeros((1, 2 * config.hop_length))),
    'decoder': (Decoder(config), z_BFD),
    'quantizer': (ResidualVectorQuantizer(config), z_BFD),
  }
  return Variables(
    {
      name: module.init(key, x)['params'] for key, (name, (module, x)) in zip(keys, modules.items())
    },
    {},
  )


def encode(
  config: Config,
  variables: Variables,
  wave_BT: Float[Array, 'B T'],
  num_quantizers: int | None = None,
) -> Int[Array, 'B F Q']:
  """Returns the codes of a waveform, F = T / hop_length.

  Args:
    config: sizes of the model.
    variables: its parameters.
    wave_BT: waveforms at `sample_rate`.
    num_quantizers: number of levels; None for all.

  Raises:
    UserError: if T is not a positive multiple of hop_length, or the codec has fewer levels.
  """
  check_length('DAC', config.hop_length, wave_BT)
  check_levels(config.num_quantizers, num_quantizers)
  z_BFD = Encoder(config).apply({'params': variables.params['encoder']}, wave_BT)
  quantizer = ResidualVectorQuantizer(config)
  return quantizer.apply(
    {'params': variables.params['quantizer']}, z_BFD, num_quantizers, method='encode'
  )


def decode(
  config: Config, variables: Variables, codes_BFQ: Int[Array, 'B F Q']
) -> Float[Array, 'B T']:
  """Returns the waveform of the codes of the first levels, T = F * hop_length.

  Raises:
    UserError: if there are more levels than the codec has, or a code exceeds its codebook.
  """
  check_codes(config, codes_BFQ)
  quantizer = ResidualVectorQuantizer(config)
  z_BFD = quantizer.apply({'params': variables.params['quantizer']}, codes_BFQ, method='decode')
  wave_BT = Decoder(config).apply({'params': variables.params['decoder']}, z_BFD)
  lost = codes_BFQ.shape[1] * config.hop_length - wave_BT.shape[-1]
  return jnp.pad(wave_BT, ((0, 0), (0, lost)))

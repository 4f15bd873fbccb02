"""EnCodec (Défossez et al., 2022, arXiv 2210.13438) from Hugging Face's `EncodecModel`.

Maps waveform_BT <-> codes_BFQ. `facebook/encodec_24khz`: 24 kHz, 75 frames/s, 32 levels of 1024
codes, 750 bit/s per level: 1.5 kbit/s are the first 2 levels, 24 kbit/s all 32. Causal:
convolutions and an LSTM. The 32 kHz and 48 kHz models, which are not causal, or stereo with
chunkwise normalization, are refused.

Clips are preceded by their reflection, as in the original.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from audiolm_jax.errors import UserError
from audiolm_jax.nn import quantizer
from audiolm_jax.pretrained import tensors
from audiolm_jax.pretrained.layers import Model, check_codes, check_levels, check_not_empty
from audiolm_jax.pretrained.seanet import Decoder, Encoder, SeanetConfig
from audiolm_jax.stages.base import CodecFunctions, Variables

MODEL_TYPE = 'encodec'
# Tensors of moving averages, needed in training only.
UNUSED = r'quantizer\.layers\.\d+\.codebook\.(cluster_size|embed_avg|inited)'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures EnCodec; the defaults are those of `facebook/encodec_24khz`."""

  sample_rate: int = 24_000  # Hz
  strides: tuple[int, ...] = (2, 4, 5, 8)  # of the encoder, reversed in the decoder
  num_filters: int = 32
  embedding_dim: int = 128
  num_quantizers: int = 32
  codebook_size: int = 1024
  kernel_size: int = 7
  last_kernel_size: int = 7
  residual_kernel_size: int = 3
  num_residual_layers: int = 1
  dilation_growth: int = 2
  compress: int = 2
  conv_shortcut: bool = True
  num_lstm_layers: int = 2

  @property
  def hop_length(self) -> int:
    """Number of samples per frame."""
    return math.prod(self.strides)

  @property
  def frame_rate(self) -> float:
    """Number of frames per second."""
    return self.sample_rate / self.hop_length

  @property
  def seanet(self) -> SeanetConfig:
    return SeanetConfig.of(self, width=self.embedding_dim, mode='reflect')

  def make(self) -> Model:
    return Model(lambda key: _init(self, key))

  def codec(self) -> CodecFunctions:
    return CodecFunctions(functools.partial(encode, self), functools.partial(decode, self))


def config_from(data: Mapping[str, Any]) -> Config:
  """Returns the config described by an `EncodecModel`'s config.json.

  Raises:
    UserError: if it asks for something that is not implemented.
  """
  tensors.require(
    data,
    {
      'use_causal_conv': True,
      'norm_type': 'weight_norm',
      'pad_mode': 'reflect',
      'trim_right_ratio': 1.0,
      'audio_channels': 1,
      'normalize': False,
      'chunk_length_s': None,
    },
  )
  default = Config()
  shortcut = data.get('use_conv_shortcut', True)
  if not isinstance(shortcut, bool):
    raise UserError(f'use_conv_shortcut={str(shortcut)[:80]}; expected true or false')
  config = Config(
    sample_rate=tensors.integer(data, 'sampling_rate', default.sample_rate),
    strides=tensors.integers(data, 'upsampling_ratios', default.strides[::-1])[::-1],
    num_filters=tensors.integer(data, 'num_filters', default.num_filters),
    embedding_dim=tensors.integer(data, 'hidden_size', default.embedding_dim),
    codebook_size=tensors.integer(data, 'codebook_size', default.codebook_size),
    kernel_size=tensors.integer(data, 'kernel_size', default.kernel_size),
    last_kernel_size=tensors.integer(data, 'last_kernel_size', default.last_kernel_size),
    residual_kernel_size=tensors.integer(
      data, 'residual_kernel_size', default.residual_kernel_size
    ),
    num_residual_layers=tensors.integer(
      data, 'num_residual_layers', default.num_residual_layers, high=8
    ),
    dilation_growth=tensors.integer(data, 'dilation_growth_rate', default.dilation_growth, high=16),
    compress=tensors.integer(data, 'compress', default.compress),
    conv_shortcut=shortcut,
    num_lstm_layers=tensors.integer(data, 'num_lstm_layers', default.num_lstm_layers, high=16),
  )
  tensors.bounded('the hop length', config.hop_length)
  tensors.bounded('the width', config.num_filters * 2 ** len(config.strides))
  if config.num_filters % config.compress:
    raise UserError(
      f'num_filters={config.num_filters} is not a multiple of compress={config.compress}'
    )
  if data.get('codebook_dim') not in (None, config.embedding_dim):
    raise UserError(
      f'codebook_dim={str(data["codebook_dim"])[:80]} is not hidden_size={config.embedding_dim}'
    )
  return dataclasses.replace(config, num_quantizers=_levels(data, config))


def _levels(data: Mapping[str, Any], config: Config) -> int:
  """Returns the number of levels of the largest bandwidth."""
  bandwidths = data.get('target_bandwidths', [24.0])
  numbers = isinstance(bandwidths, list) and all(
    type(value) in (int, float) for value in bandwidths
  )
  if not numbers or not bandwidths or not 0 < bandwidths[-1] < 1e4:
    raise UserError(f'target_bandwidths={str(bandwidths)[:80]}; expected a list of kbit/s')
  bits = math.ceil(math.log2(config.codebook_size)) * math.ceil(config.frame_rate)
  levels = int(1000 * bandwidths[-1] // bits) if bits else 0
  return tensors.integer(
    {'levels of target_bandwidths': levels}, 'levels of target_bandwidths', 1, tensors.MAX_LAYERS
  )


def stored(config: Config) -> Any:
  """Returns a file's tensors as a tree of ShapeDtypeStruct, with one codebook per level."""
  params = jax.eval_shape(config.make().init, jax.random.key(0)).params
  vectors_KD = jax.ShapeDtypeStruct(params['codebooks'].shape[1:], jnp.float32)
  levels = {
    f'layers_{level}': {'codebook': {'embed': vectors_KD}} for level in range(config.num_quantizers)
  }
  return {'encoder': params['encoder'], 'decoder': params['decoder'], 'quantizer': levels}


def load(folder: pathlib.Path, config: Config) -> Variables:
  """Loads the weights in `folder`.

  Raises:
    UserError: with a parameter diff, if they do not match `config`.
  """
  params = tensors.load(folder, stored(config), UNUSED)
  levels = params.pop('quantizer')
  vectors = [
    levels[f'layers_{level}']['codebook']['embed'] for level in range(config.num_quantizers)
  ]
  return Variables(params | {'codebooks': jnp.stack(vectors)}, {})


def _init(config: Config, key: jax.Array) -> Variables:
  keys = jax.random.split(key, 3)
  z_BFD = jnp.zeros((1, 1, config.embedding_dim))
  vectors = (config.num_quantizers, config.codebook_size, config.embedding_dim)
  return Variables(
    {
      'encoder': Encoder(config.seanet).init(keys[0], jnp.zeros((1, config.hop_length)))['params'],
      'decoder': Decoder(config.seanet).init(keys[1], z_BFD)['params'],
      'codebooks': jax.random.normal(keys[2], vectors),
    },
    {},
  )


def encode(
  config: Config,
  variables: Variables,
  wave_BT: Float[Array, 'B T'],
  num_quantizers: int | None = None,
) -> Int[Array, 'B F Q']:
  """Returns the codes of a waveform, F = ceil(T / hop_length).

  An incomplete last frame is padded by reflection, as in the original; `audio.pad_to_multiple` pads
  with zeros and avoids a compilation per length.

  Args:
    config: sizes of the model.
    variables: its parameters.
    wave_BT: waveforms at `sample_rate`.
    num_quantizers: number of levels; None for all.

  Raises:
    UserError: if the waveform is empty, or the codec has fewer levels.
  """
  check_not_empty(wave_BT)
  check_levels(config.num_quantizers, num_quantizers)
  z_BFD = Encoder(config.seanet).apply({'params': variables.params['encoder']}, wave_BT)
  return quantizer.encode(variables.params['codebooks'][:num_quantizers], z_BFD)[0]


def decode(
  config: Config, variables: Variables, codes_BFQ: Int[Array, 'B F Q']
) -> Float[Array, 'B T']:
  """Returns the waveform of the codes of the first levels, T = F * hop_length.

  Raises:
    UserError: if there are more levels than the codec has, or a code exceeds its codebook.
  """
  check_codes(config, codes_BFQ)
  z_BFD = quantizer.decode(variables.params['codebooks'], codes_BFQ)
  return Decoder(config.seanet).apply({'params': variables.params['decoder']}, z_BFD)

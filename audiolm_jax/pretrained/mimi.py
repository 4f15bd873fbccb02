"""Mimi (Défossez et al., 2024, arXiv 2410.00037) from Hugging Face's `MimiModel`.

Maps waveform_BT <-> codes_BFQ. `kyutai/mimi`: 24 kHz, 12.5 frames/s, 32 levels of 2048 codes, the
first distilled from WavLM ("semantic"). SEANet at 25 frames/s, a causal Transformer over the last
250 frames, and downsampling by 2. The first level and the other levels quantize the same embedding
in parallel; the others are residual among themselves.
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
from audiolm_jax.nn import quantizer
from audiolm_jax.nn.attention import attend
from audiolm_jax.pretrained import tensors
from audiolm_jax.pretrained.layers import (
  CausalConv,
  Conv,
  Model,
  check_codes,
  check_levels,
  check_not_empty,
  layer_norm,
)
from audiolm_jax.pretrained.seanet import Decoder, Encoder, SeanetConfig
from audiolm_jax.stages.base import CodecFunctions, Variables

MODEL_TYPE = 'mimi'
UNUSED = r'quantizer\..*\.codebook\.initialized'
FRAME_STRIDE = 2  # SEANet frames per code frame
MIN_USAGE = 1e-5  # minimum count of a code, the divisor of its vector sum
QUANTIZERS = ('semantic_residual_vector_quantizer', 'acoustic_residual_vector_quantizer')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures Mimi; the defaults are those of `kyutai/mimi`."""

  sample_rate: int = 24_000  # Hz
  strides: tuple[int, ...] = (4, 5, 6, 8)  # of the encoder, reversed in the decoder
  num_filters: int = 64
  width: int = 512  # of the embeddings and the Transformers
  num_quantizers: int = 32
  num_semantic: int = 1  # number of semantic levels, the first ones
  codebook_size: int = 2048
  codebook_dim: int = 256
  kernel_size: int = 7
  last_kernel_size: int = 3
  residual_kernel_size: int = 3
  num_residual_layers: int = 1
  dilation_growth: int = 2
  compress: int = 2
  conv_shortcut: bool = False
  num_layers: int = 8
  num_heads: int = 8
  mlp_width: int = 2048
  window: int = 250  # SEANet frames that a frame attends to, including itself
  rope_theta: float = 10_000.0
  epsilon: float = 1e-5  # of the layer norms

  @property
  def hop_length(self) -> int:
    """Number of samples per frame."""
    return FRAME_STRIDE * math.prod(self.strides)

  @property
  def frame_rate(self) -> float:
    """Number of frames per second."""
    return self.sample_rate / self.hop_length

  @property
  def seanet(self) -> SeanetConfig:
    return SeanetConfig.of(self, mode='constant', num_lstm_layers=0)

  def make(self) -> Model:
    return Model(lambda key: _init(self, key))

  def codec(self) -> CodecFunctions:
    return CodecFunctions(functools.partial(encode, self), functools.partial(decode, self))


def config_from(data: Mapping[str, Any]) -> Config:
  """Returns the config described by a `MimiModel`'s config.json.

  Raises:
    UserError: if it asks for something that is not implemented.
  """
  default, count = Config(), tensors.integer
  tensors.require(
    data,
    {
      'use_causal_conv': True,
      'pad_mode': 'constant',
      'trim_right_ratio': 1.0,
      'audio_channels': 1,
      'hidden_act': 'gelu',
      'attention_bias': False,
      'use_conv_shortcut': False,
    },
  )
  config = Config(
    sample_rate=count(data, 'sampling_rate', default.sample_rate),
    strides=tensors.integers(data, 'upsampling_ratios', default.strides[::-1])[::-1],
    num_filters=count(data, 'num_filters', default.num_filters),
    width=count(data, 'hidden_size', default.width),
    num_quantizers=count(data, 'num_quantizers', default.num_quantizers, high=tensors.MAX_LAYERS),
    num_semantic=count(
      data, 'num_semantic_quantizers', default.num_semantic, high=tensors.MAX_LAYERS
    ),
    codebook_size=count(data, 'codebook_size', default.codebook_size),
    codebook_dim=count(data, 'codebook_dim', default.codebook_dim),
    kernel_size=count(data, 'kernel_size', default.kernel_size),
    last_kernel_size=count(data, 'last_kernel_size', default.last_kernel_size),
    residual_kernel_size=count(data, 'residual_kernel_size', default.residual_kernel_size),
    num_residual_layers=count(data, 'num_residual_layers', default.num_residual_layers, high=8),
    dilation_growth=count(data, 'dilation_growth_rate', default.dilation_growth, high=16),
    compress=count(data, 'compress', default.compress),
    num_layers=count(data, 'num_hidden_layers', default.num_layers, high=tensors.MAX_LAYERS),
    num_heads=count(data, 'num_attention_heads', default.num_heads),
    mlp_width=count(data, 'intermediate_size', default.mlp_width),
    window=count(data, 'sliding_window', default.window),
    rope_theta=_rope_theta(data, default.rope_theta),
    epsilon=tensors.positive(data, 'norm_eps', default.epsilon, high=1.0),
  )
  _check(data, config)
  return config


def _rope_theta(data: Mapping[str, Any], default: float) -> float:
  """Returns the base of the rotary positions, which newer files store in a nested object."""
  parameters = data.get('rope_parameters') or data
  if not isinstance(parameters, dict):
    raise UserError(f'rope_parameters={str(parameters)[:80]}; expected an object')
  tensors.require(parameters, {'rope_type': 'default'})
  return tensors.positive(parameters, 'rope_theta', default, high=1e9)


def _check(data: Mapping[str, Any], config: Config):
  """Checks that sizes are consistent and implemented.

  Raises:
    UserError: if they are not.
  """
  tensors.bounded('the hop length', config.hop_length)
  tensors.bounded('the widest convolution', config.num_filters * 2 ** len(config.strides))
  if config.num_semantic >= config.num_quantizers:
    raise UserError(
      f'num_semantic_quantizers={config.num_semantic} is not below '
      f'num_quantizers={config.num_quantizers}'
    )
  if config.width % (2 * config.num_heads):
    raise UserError(
      f'hidden_size={config.width} is not an even width for each of {config.num_heads} heads'
    )
  if config.num_filters % config.compress:
    raise UserError(
      f'num_filters={config.num_filters} is not a multiple of compress={config.compress}'
    )
  if config.width == config.codebook_dim:
    raise UserError(
      f'codebook_dim={config.codebook_dim} is hidden_size: only codebooks between projections are '
      'implemented'
    )
  expected = {
    'upsample_groups': config.width,
    'num_key_value_heads': config.num_heads,
    'vector_quantization_hidden_dimension': config.codebook_dim,
  }
  tensors.require(data, expected)
  for name, value in (
    ('head_dim', config.width // config.num_heads),
    ('frame_rate', config.frame_rate),
  ):
    if data.get(name) not in (None, value):
      raise UserError(f'{name}={str(data[name])[:80]}, only {value} is implemented')


def stored(config: Config) -> Any:
  """Returns a file's tensors as a tree of ShapeDtypeStruct, with sums and counts of codes.

  Their quotients are the code vectors.
  """
  params = jax.eval_shape(config.make().init, jax.random.key(0)).params
  size, dim = config.codebook_size, config.codebook_dim
  book = {
    'embed_sum': jax.ShapeDtypeStruct((size, dim), jnp.float32),
    'cluster_usage': jax.ShapeDtypeStruct((size,), jnp.float32),
  }
  levels = {}
  for name, module in _quantizers(config).items():
    levels[name] = {
      part: leaf for part, leaf in params['quantizer'][name].items() if part != 'vectors'
    }
    levels[name] |= {
      f'layers_{level}': {'codebook': book} for level in range(module.num_quantizers)
    }
  return params | {'quantizer': levels}


def load(folder: pathlib.Path, config: Config) -> Variables:
  """Loads the weights in `folder`.

  Raises:
    UserError: with a parameter diff, if they do not match `config`.
  """
  params = tensors.load(folder, stored(config), UNUSED)
  for name, module in _quantizers(config).items():
    books = [
      params['quantizer'][name].pop(f'layers_{level}')['codebook']
      for level in range(module.num_quantizers)
    ]
    vectors = [
      book['embed_sum'] / jnp.maximum(book['cluster_usage'], MIN_USAGE)[:, None] for book in books
    ]
    params['quantizer'][name]['vectors'] = jnp.stack(vectors)
  return Variables(params, {})


class LayerScale(nn.Module):
  @nn.compact
  def __call__(self, x_BSD):
    return x_BSD * self.param('factors', nn.initializers.ones, (x_BSD.shape[-1],))


class Attention(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BSD):
    config, length = self.config, x_BSD.shape[1]
    heads = (*x_BSD.shape[:-1], config.num_heads, -1)
    query, key, value = (
      _dense(config.width, name)(x_BSD).reshape(heads) for name in ('q_proj', 'k_proj', 'v_proj')
    )
    distance = jnp.arange(length)[:, None] - jnp.arange(length)
    mask = (distance >= 0) & (distance < config.window)
    mixed = attend(
      _rotate(query, config.rope_theta),
      _rotate(key, config.rope_theta),
      value,
      mask=mask[None, None],
    )
    return _dense(config.width, 'o_proj')(mixed.reshape(x_BSD.shape))


def _rotate(x_BSHD, theta: float):
  """Rotates each pair of dimensions (d, d + D / 2) by its frequency times the position."""
  half = x_BSHD.shape[-1] // 2
  frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_SD = jnp.arange(x_BSHD.shape[1], dtype=jnp.float32)[:, None] * frequencies
  cos, sin = jnp.cos(angle_SD)[:, None], jnp.sin(angle_SD)[:, None]
  first, second = x_BSHD[..., :half], x_BSHD[..., half:]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class FeedForward(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BSD):
    hidden = nn.gelu(_dense(self.config.mlp_width, 'fc1')(x_BSD), approximate=False)
    return _dense(self.config.width, 'fc2')(hidden)


class Layer(nn.Module):
  """Pre-norm Transformer layer with layer scale."""

  config: Config

  @nn.compact
  def __call__(self, x_BSD):
    mixed = Attention(self.config, name='self_attn')(
      layer_norm(self.config.epsilon, 'input_layernorm')(x_BSD)
    )
    x_BSD = x_BSD + LayerScale(name='self_attn_layer_scale')(mixed)
    hidden = FeedForward(self.config, name='mlp')(
      layer_norm(self.config.epsilon, 'post_attention_layernorm')(x_BSD)
    )
    return x_BSD + LayerScale(name='mlp_layer_scale')(hidden)


class Transformer(nn.Module):
  """Causal Transformer [B, S, D] -> [B, S, D] with attention over the last `window` positions."""

  config: Config

  @nn.compact
  def __call__(self, x_BSD):
    for number in range(self.config.num_layers):
      x_BSD = Layer(self.config, name=f'layers_{number}')(x_BSD)
    return x_BSD


class ResidualVectorQuantizer(nn.Module):
  """Embeddings [B, F, D] <-> codes [B, F, Q] of `num_quantizers` levels, with two projections."""

  config: Config
  num_quantizers: int

  def setup(self):
    self.input_proj = Conv(self.config.codebook_dim, 1, use_bias=False)
    self.output_proj = Conv(self.config.width, 1, use_bias=False)
    shape = (self.num_quantizers, self.config.codebook_size, self.config.codebook_dim)
    self.vectors = self.param('vectors', nn.initializers.normal(1.0), shape)

  def encode(self, z_BFD, num_quantizers):
    return quantizer.encode(self.vectors[:num_quantizers], self.input_proj(z_BFD))[0]

  def decode(self, codes_BFQ):
    return self.output_proj(quantizer.decode(self.vectors, codes_BFQ))

  def __call__(self, z_BFD):
    return self.decode(self.encode(z_BFD, None))


class UpsampleConv(nn.Module):
  """Depthwise transposed convolution of kernel 4, [B, F, D] -> [B, 2 F, D], trimmed right."""

  @nn.compact
  def __call__(self, z_BFD):
    batch, length, width = z_BFD.shape
    taps = self.param('depthwise', nn.initializers.lecun_normal(), (2 * FRAME_STRIDE, width))
    before_BFD = jnp.pad(z_BFD, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    phases = [z_BFD * taps[n] + before_BFD * taps[n + FRAME_STRIDE] for n in range(FRAME_STRIDE)]
    return jnp.stack(phases, axis=2).reshape(batch, FRAME_STRIDE * length, width)


class Upsample(nn.Module):
  @nn.compact
  def __call__(self, z_BFD):
    return UpsampleConv(name='conv')(z_BFD)


def _dense(features: int, name: str) -> nn.Dense:
  return nn.Dense(features, use_bias=False, name=name)


def _downsample(config: Config) -> CausalConv:
  """Convolution [B, N, D] -> [B, ceil(N / 2), D]; the padding repeats the first frame."""
  return CausalConv(
    config.width, 2 * FRAME_STRIDE, stride=FRAME_STRIDE, mode='edge', use_bias=False
  )


def _quantizers(config: Config) -> dict[str, ResidualVectorQuantizer]:
  levels = (config.num_semantic, config.num_quantizers - config.num_semantic)
  return {name: ResidualVectorQuantizer(config, count) for name, count in zip(QUANTIZERS, levels)}


def _init(config: Config, key: jax.Array) -> Variables:
  keys = iter(jax.random.split(key, 8))
  z_BFD = jnp.zeros((1, 2, config.width))
  modules = {
    'encoder': (Encoder(config.seanet), jnp.zeros((1, config.hop_length))),
    'encoder_transformer': (Transformer(config), z_BFD),
    'downsample': (_downsample(config), z_BFD),
    'upsample': (Upsample(), z_BFD),
    'decoder_transformer': (Transformer(config), z_BFD),
    'decoder': (Decoder(config.seanet), z_BFD),
  }
  params = {name: module.init(next(keys), x)['params'] for name, (module, x) in modules.items()}
  books = {
    name: module.init(next(keys), z_BFD)['params'] for name, module in _quantizers(config).items()
  }
  return Variables(params | {'quantizer': books}, {})


def encode(
  config: Config,
  variables: Variables,
  wave_BT: Float[Array, 'B T'],
  num_quantizers: int | None = None,
) -> Int[Array, 'B F Q']:
  """Returns the codes of a waveform, F = ceil(T / hop_length).

  An incomplete last frame is padded layer by layer, as in the original; `audio.pad_to_multiple`
  pads with zeros and avoids a compilation per length.

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
  total = config.num_quantizers if num_quantizers is None else num_quantizers
  counts = (min(total, config.num_semantic), total - config.num_semantic)
  z_BFD = embeddings(config, variables, wave_BT)
  codes = [
    module.apply({'params': variables.params['quantizer'][name]}, z_BFD, count, method='encode')
    for (name, module), count in zip(_quantizers(config).items(), counts)
    if count > 0
  ]
  return jnp.concatenate(codes, axis=-1)


def embeddings(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B T']
) -> Float[Array, 'B F D']:
  """Returns the embeddings before quantization."""
  apply = lambda module, name, x: module.apply({'params': variables.params[name]}, x)
  x_BND = apply(Encoder(config.seanet), 'encoder', wave_BT)
  x_BND = apply(Transformer(config), 'encoder_transformer', x_BND)
  return apply(_downsample(config), 'downsample', x_BND)


def decode(
  config: Config, variables: Variables, codes_BFQ: Int[Array, 'B F Q']
) -> Float[Array, 'B T']:
  """Returns the waveform of the codes of the first levels, T = F * hop_length.

  Raises:
    UserError: if there are more levels than the codec has, or a code exceeds its codebook.
  """
  check_codes(config, codes_BFQ)
  parts = (codes_BFQ[..., : config.num_semantic], codes_BFQ[..., config.num_semantic :])
  z_BFD = sum(
    module.apply({'params': variables.params['quantizer'][name]}, part, method='decode')
    for (name, module), part in zip(_quantizers(config).items(), parts)
    if part.shape[-1]
  )
  apply = lambda module, name, x: module.apply({'params': variables.params[name]}, x)
  x_BND = apply(Upsample(), 'upsample', z_BFD)
  x_BND = apply(Transformer(config), 'decoder_transformer', x_BND)
  return apply(Decoder(config.seanet), 'decoder', x_BND)

"""HuBERT base (Hsu et al., 2021, arXiv 2106.07447) from Hugging Face's `HubertModel`.

Maps waveform_BT -> features_BSD. `facebook/hubert-base-ls960` makes 50 frames/s of width 768 from
16 kHz; the rate follows from the config's strides. Frame s depends on `frame_length` samples from s
* hop_length on, before the Transformer mixes all frames. Waveforms need no normalization, because
the first convolution has no bias and each of its channels is normalized over time.

With `num_samples_B`, padding has no influence: each row of a batch equals a run of its own. (The
original normalizes over padding too, so that rows depend on the longest.)
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from audiolm_jax.errors import UserError
from audiolm_jax.nn.attention import attend
from audiolm_jax.pretrained import tensors
from audiolm_jax.pretrained.layers import Conv, Model, aligned, encoder_inputs, layer_norm
from audiolm_jax.stages.base import Variables

MODEL_TYPE = 'hubert'
UNUSED = r'masked_spec_embed'  # replaces masked frames in training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures HuBERT; the defaults are those of `facebook/hubert-base-ls960`."""

  sample_rate: int = 16_000  # Hz, of all published HuBERTs; not in config.json
  conv_channels: tuple[int, ...] = (512,) * 7
  conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
  conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
  position_kernel: int = 128  # frames
  position_groups: int = 16
  num_layers: int = 12
  width: int = 768
  num_heads: int = 12
  mlp_width: int = 3072
  epsilon: float = 1e-5  # of the layer norms

  @property
  def hop_length(self) -> int:
    """Number of samples from one frame to the next."""
    return math.prod(self.conv_strides)

  @property
  def frame_rate(self) -> float:
    """Number of frames per second."""
    return self.sample_rate / self.hop_length

  @property
  def frame_length(self) -> int:
    """Number of samples a frame depends on, before the Transformer."""
    length = 1
    for kernel, stride in zip(self.conv_kernels[::-1], self.conv_strides[::-1]):
      length = (length - 1) * stride + kernel
    return length

  def semantic_features(self, variables: Variables, wave_BT: Array, layer: int) -> Array:
    """Returns `features` of ceil(T / hop_length) frames; see `layers.aligned`."""
    extract = lambda wave_BT, num_samples_B: features(
      self, variables, wave_BT, layer, num_samples_B
    )
    return aligned(extract, num_frames, self, wave_BT)

  def make(self) -> Model:
    return Model(lambda key: _init(self, key))


def config_from(data: Mapping[str, Any]) -> Config:
  """Returns the config described by a `HubertModel`'s config.json.

  Raises:
    UserError: if it asks for something that is not implemented.
  """
  tensors.require(
    data,
    {
      'feat_extract_norm': 'group',
      'do_stable_layer_norm': False,
      'conv_bias': False,
      'conv_pos_batch_norm': False,
      'feat_proj_layer_norm': True,
      'hidden_act': 'gelu',
      'feat_extract_activation': 'gelu',
    },
  )
  default = Config()
  config = Config(
    conv_channels=tensors.integers(data, 'conv_dim', default.conv_channels),
    conv_kernels=tensors.integers(data, 'conv_kernel', default.conv_kernels),
    conv_strides=tensors.integers(data, 'conv_stride', default.conv_strides),
    position_kernel=tensors.integer(data, 'num_conv_pos_embeddings', default.position_kernel),
    position_groups=tensors.integer(data, 'num_conv_pos_embedding_groups', default.position_groups),
    num_layers=tensors.integer(
      data, 'num_hidden_layers', default.num_layers, high=tensors.MAX_LAYERS
    ),
    width=tensors.integer(data, 'hidden_size', default.width),
    num_heads=tensors.integer(data, 'num_attention_heads', default.num_heads),
    mlp_width=tensors.integer(data, 'intermediate_size', default.mlp_width),
    epsilon=tensors.positive(data, 'layer_norm_eps', default.epsilon, high=1.0),
  )
  if not len(config.conv_channels) == len(config.conv_kernels) == len(config.conv_strides):
    raise UserError('conv_dim, conv_kernel and conv_stride have different lengths')
  tensors.bounded('the samples of a frame', config.frame_length)
  divisors = {
    'num_attention_heads': config.num_heads,
    'num_conv_pos_embedding_groups': config.position_groups,
  }
  for name, parts in divisors.items():
    if config.width % parts:
      raise UserError(f'hidden_size={config.width} is not a multiple of {name}={parts}')
  return config


def load(folder: pathlib.Path, config: Config) -> Variables:
  """Loads the weights in `folder`.

  Raises:
    UserError: with a parameter diff, if they do not match `config`.
  """
  template = jax.eval_shape(config.make().init, jax.random.key(0)).params
  return Variables(tensors.load(folder, template, UNUSED), {})


class ConvLayer(nn.Module):
  """Unpadded convolution without bias, optional norm of each channel over time, and GELU."""

  features: int
  kernel_size: int
  stride: int
  normalized: bool

  @nn.compact
  def __call__(self, x_BND, length_B):
    """Returns the outputs, normalized over those that depend on `length_B` inputs only."""
    x_BND = Conv(self.features, self.kernel_size, stride=self.stride, use_bias=False, name='conv')(
      x_BND
    )
    if self.normalized:
      x_BND = OverTimeNorm(name='layer_norm')(
        x_BND, (length_B - self.kernel_size) // self.stride + 1
      )
    return nn.gelu(x_BND, approximate=False)


class OverTimeNorm(nn.Module):
  """Normalizes each channel over its first `length_B` steps, then applies scale and bias."""

  @nn.compact
  def __call__(self, x_BND, length_B):
    scale_D = self.param('scale', nn.initializers.ones, (x_BND.shape[-1],))
    bias_D = self.param('bias', nn.initializers.zeros, (x_BND.shape[-1],))
    inside_BN1 = (jnp.arange(x_BND.shape[1]) < length_B[:, None])[..., None]
    count_B11 = jnp.maximum(length_B, 1)[:, None, None]
    mean = lambda y_BND: jnp.sum(y_BND, axis=1, keepdims=True, where=inside_BN1) / count_B11
    mean_B1D = mean(x_BND)
    variance_B1D = mean(jnp.square(x_BND - mean_B1D))
    # The epsilon of this norm does not follow the config in the original, either.
    return (x_BND - mean_B1D) * (jax.lax.rsqrt(variance_B1D + 1e-5) * scale_D) + bias_D


class FeatureExtractor(nn.Module):
  """Waveform [B, T] with `num_samples_B` samples before padding -> [B, S, conv_channels[-1]]."""

  config: Config

  @nn.compact
  def __call__(self, wave_BT, num_samples_B):
    x_BND = wave_BT[..., None]
    shapes = zip(self.config.conv_channels, self.config.conv_kernels, self.config.conv_strides)
    for level, shape in enumerate(shapes):
      x_BND = ConvLayer(*shape, normalized=level == 0, name=f'conv_layers_{level}')(
        x_BND, num_samples_B
      )
    return x_BND


class FeatureProjection(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BSD):
    return nn.Dense(self.config.width, name='projection')(
      layer_norm(self.config.epsilon, 'layer_norm')(x_BSD)
    )


class PositionalConv(nn.Module):
  """Grouped convolution over 128 centred frames, as a position embedding."""

  config: Config

  @nn.compact
  def __call__(self, x_BSD):
    before = self.config.position_kernel // 2
    padding = ((before, self.config.position_kernel - 1 - before),)
    conv = nn.Conv(
      self.config.width,
      (self.config.position_kernel,),
      padding=padding,
      feature_group_count=self.config.position_groups,
      name='conv',
    )
    return nn.gelu(conv(x_BSD), approximate=False)


class Attention(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BSD, mask):
    heads = (*x_BSD.shape[:-1], self.config.num_heads, -1)
    query, key, value = (
      nn.Dense(self.config.width, name=name)(x_BSD).reshape(heads)
      for name in ('q_proj', 'k_proj', 'v_proj')
    )
    mixed_BSD = attend(query, key, value, mask=mask).reshape(x_BSD.shape)
    return nn.Dense(self.config.width, name='out_proj')(mixed_BSD)


class FeedForward(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BSD):
    hidden = nn.gelu(
      nn.Dense(self.config.mlp_width, name='intermediate_dense')(x_BSD), approximate=False
    )
    return nn.Dense(self.config.width, name='output_dense')(hidden)


class Layer(nn.Module):
  """Post-norm Transformer layer."""

  config: Config

  @nn.compact
  def __call__(self, x_BSD, mask):
    attended_BSD = x_BSD + Attention(self.config, name='attention')(x_BSD, mask)
    x_BSD = layer_norm(self.config.epsilon, 'layer_norm')(attended_BSD)
    x_BSD = x_BSD + FeedForward(self.config, name='feed_forward')(x_BSD)
    return layer_norm(self.config.epsilon, 'final_layer_norm')(x_BSD)


class Encoder(nn.Module):
  """[B, S, D] -> the input of the first layer and the output of each of `num_layers` layers."""

  config: Config

  @nn.compact
  def __call__(self, x_BSD, mask_BS, num_layers):
    x_BSD = jnp.where(mask_BS[..., None], x_BSD, 0)
    x_BSD = x_BSD + PositionalConv(self.config, name='pos_conv_embed')(x_BSD)
    states = [layer_norm(self.config.epsilon, 'layer_norm')(x_BSD)]
    for number in range(num_layers):
      states.append(Layer(self.config, name=f'layers_{number}')(states[-1], mask_BS[:, None, None]))
    return states


def _init(config: Config, key: jax.Array) -> Variables:
  keys = jax.random.split(key, 3)
  channels = jnp.zeros((1, 2, config.conv_channels[-1]))
  projected = jnp.zeros((1, 2, config.width))
  return Variables(
    {
      'feature_extractor': FeatureExtractor(config).init(
        keys[0], jnp.zeros((1, config.frame_length)), jnp.full(1, config.frame_length)
      )['params'],
      'feature_projection': FeatureProjection(config).init(keys[1], channels)['params'],
      'encoder': Encoder(config).init(
        keys[2], projected, jnp.ones((1, 2), bool), config.num_layers
      )['params'],
    },
    {},
  )


def num_frames(config: Config, num_samples: Any) -> Any:
  """Returns the number of frames of `num_samples` samples (an integer or an integer array)."""
  return jnp.maximum(0, (num_samples - config.frame_length) // config.hop_length + 1)


def hidden_states(
  config: Config,
  variables: Variables,
  wave_BT: Float[Array, 'B T'],
  num_layers: int | None = None,
  num_samples_B: Int[Array, 'B'] | None = None,
) -> list[Float[Array, 'B S D']]:
  """Returns the input of the first Transformer layer and the outputs of the first `num_layers`.

  Args:
    config: sizes of the model.
    variables: its parameters.
    wave_BT: waveforms at `sample_rate`; T is at least `frame_length`.
    num_layers: number of layers to run; None for all.
    num_samples_B: number of samples before padding; frames that include padding are meaningless and
      have no influence.

  Raises:
    UserError: if T is too short, or the model has fewer layers.
  """
  num_layers, num_samples_B = encoder_inputs(config, wave_BT, num_layers, num_samples_B)
  apply = lambda module, name, *args: module.apply({'params': variables.params[name]}, *args)
  x_BSD = apply(FeatureExtractor(config), 'feature_extractor', wave_BT, num_samples_B)
  x_BSD = apply(FeatureProjection(config), 'feature_projection', x_BSD)
  mask_BS = jnp.arange(x_BSD.shape[1]) < num_frames(config, num_samples_B)[:, None]
  return apply(Encoder(config), 'encoder', x_BSD, mask_BS, num_layers)


def features(
  config: Config,
  variables: Variables,
  wave_BT: Float[Array, 'B T'],
  layer: int,
  num_samples_B: Int[Array, 'B'] | None = None,
) -> Float[Array, 'B S D']:
  """Returns the output of Transformer layer `layer`, from 1; 0 is the input of the first.

  See `hidden_states`.
  """
  return hidden_states(config, variables, wave_BT, layer, num_samples_B)[-1]

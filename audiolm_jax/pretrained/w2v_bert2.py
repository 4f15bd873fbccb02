"""w2v-BERT 2.0 (Meta, 2023, arXiv 2312.05187) from Hugging Face's `Wav2Vec2BertModel`.

Maps waveform_BT -> features_BSD. `facebook/w2v-bert-2.0` makes 50 frames/s of width 1024 from 16
kHz, trained on 4.5 million hours in 143 languages. Its input is Kaldi's log-mel (25 ms windows
every 10 ms, 80 bands), normalized to zero mean and unit variance per band and utterance, with two
consecutive frames stacked: `log_mel` equals `SeamlessM4TFeatureExtractor`. Frame s depends on
`frame_length` samples from s * hop_length on, before the blocks mix the frames.

A Conformer with causal depthwise convolutions and attention biased by the distance of two frames,
clipped to 64 back and 8 ahead. Padding has no influence: each row of a batch equals a run of its
own.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from audiolm_jax import audio
from audiolm_jax.errors import UserError
from audiolm_jax.nn.attention import attend
from audiolm_jax.nn.conformer import convolve_depthwise
from audiolm_jax.pretrained import tensors
from audiolm_jax.pretrained.layers import Model, aligned, encoder_inputs, layer_norm
from audiolm_jax.stages.base import Variables

MODEL_TYPE = 'wav2vec2-bert'
UNUSED = r'masked_spec_embed'  # replaces masked frames in training
WINDOW, MEL_HOP, FFT = 400, 160, 512  # samples
LOWEST, HIGHEST = 20.0, 8000.0  # range of the mel bands in Hz
FLOOR = 2.0**-23  # minimum power of a mel band before the logarithm, for 16-bit samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures w2v-BERT 2.0; the defaults are those of `facebook/w2v-bert-2.0`."""

  sample_rate: int = 16_000  # Hz, that of the mel bands; not in config.json
  stacked: int = 2  # log-mel frames of 10 ms per frame
  num_mels: int = 80
  num_layers: int = 24
  width: int = 1024
  num_heads: int = 16
  mlp_width: int = 4096
  kernel_size: int = 31  # of the depthwise convolution, in frames
  farthest_left: int = 64  # frames; larger distances are clipped
  farthest_right: int = 8  # frames
  epsilon: float = 1e-5  # of the layer norms

  @property
  def hop_length(self) -> int:
    """Number of samples from one frame to the next."""
    return self.stacked * MEL_HOP

  @property
  def frame_rate(self) -> float:
    """Number of frames per second."""
    return self.sample_rate / self.hop_length

  @property
  def frame_length(self) -> int:
    """Number of samples a frame depends on, before the blocks."""
    return WINDOW + (self.stacked - 1) * MEL_HOP

  def semantic_features(self, variables: Variables, wave_BT: Array, layer: int) -> Array:
    """Returns `features` of ceil(T / hop_length) frames; see `layers.aligned`."""
    extract = lambda wave_BT, num_samples_B: features(
      self, variables, wave_BT, layer, num_samples_B
    )
    return aligned(extract, num_frames, self, wave_BT)

  def make(self) -> Model:
    return Model(lambda key: _init(self, key))


def config_from(data: Mapping[str, Any]) -> Config:
  """Returns the config described by a `Wav2Vec2BertModel`'s config.json.

  Raises:
    UserError: if it asks for something that is not implemented.
  """
  tensors.require(
    data,
    {
      'hidden_act': 'swish',
      'position_embeddings_type': 'relative_key',
      'add_adapter': False,
      'use_intermediate_ffn_before_adapter': False,
    },
  )
  default = Config()
  inputs = tensors.integer(data, 'feature_projection_input_dim', default.stacked * default.num_mels)
  if inputs % default.stacked:
    raise UserError(
      f'feature_projection_input_dim={inputs}; expected {default.stacked} log-mel frames side by '
      'side'
    )
  config = Config(
    num_mels=inputs // default.stacked,
    num_layers=tensors.integer(
      data, 'num_hidden_layers', default.num_layers, high=tensors.MAX_LAYERS
    ),
    width=tensors.integer(data, 'hidden_size', default.width),
    num_heads=tensors.integer(data, 'num_attention_heads', default.num_heads),
    mlp_width=tensors.integer(data, 'intermediate_size', default.mlp_width),
    kernel_size=tensors.integer(data, 'conv_depthwise_kernel_size', default.kernel_size, high=1023),
    farthest_left=tensors.integer(data, 'left_max_position_embeddings', default.farthest_left),
    farthest_right=tensors.integer(data, 'right_max_position_embeddings', default.farthest_right),
    epsilon=tensors.positive(data, 'layer_norm_eps', default.epsilon, high=1.0),
  )
  if config.width % config.num_heads:
    raise UserError(
      f'hidden_size={config.width} is not a multiple of num_attention_heads={config.num_heads}'
    )
  if config.kernel_size % 2 == 0:
    raise UserError(f'conv_depthwise_kernel_size={config.kernel_size}; expected an odd number')
  return config


def load(folder: pathlib.Path, config: Config) -> Variables:
  """Loads the weights in `folder`.

  Raises:
    UserError: with a parameter diff, if they do not match `config`.
  """
  template = jax.eval_shape(config.make().init, jax.random.key(0)).params
  return Variables(tensors.load(folder, template, UNUSED), {})


@functools.cache
def _mel_filters(sample_rate: int, num_mels: int) -> np.ndarray:
  """Returns Kaldi's mel filters [FFT // 2 + 1, num_mels]: triangles of height 1 in mel."""
  mel = lambda hertz: 1127 * np.log1p(hertz / 700)
  edges_N = np.linspace(mel(LOWEST), mel(HIGHEST), num_mels + 2)
  bins_N1 = mel(np.arange(FFT // 2 + 1) * sample_rate / FFT)[:, None]
  low, centre, high = edges_N[:-2], edges_N[1:-1], edges_N[2:]
  triangles = np.minimum((bins_N1 - low) / (centre - low), (high - bins_N1) / (high - centre))
  return np.maximum(triangles, 0).astype(np.float32)


@functools.cache
def _front_end() -> tuple[np.ndarray, ...]:
  """Returns the matrix [WINDOW, 2 (FFT / 2 + 1)] of a frame's halved spectrum, and its `_slices`.

  It combines linear steps: mean removal, pre-emphasis (0.97), Povey's window and the Fourier
  transform, with real and imaginary parts as separate columns.
  """
  centre_NN = np.eye(WINDOW) - 1 / WINDOW
  filter_NN = np.eye(WINDOW) - 0.97 * np.eye(WINDOW, k=1)
  filter_NN[0, 0] = 0.03
  window_N = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))) ** 0.85
  angle_NN = 2 * np.pi / FFT * np.arange(WINDOW)[:, None] * np.arange(FFT // 2 + 1)
  transform = window_N[:, None] * np.concatenate([np.cos(angle_NN), np.sin(angle_NN)], axis=1)
  matrix = centre_NN @ filter_NN @ transform / 2  # within [-1, 1]
  return tuple(part.astype(np.float32) for part in (matrix, *_slices(matrix, np)))


def _slices(x, numpy):
  """Returns x in [-1, 1] as a sum of two 8-bit numbers, each on its own grid, and the rest."""
  first = numpy.round(x * 2**7) / 2**7
  second = numpy.round((x - first) * 2**15) / 2**15
  return first, second, x - first - second


def _spectrum(frames_BFN: Float[Array, 'B F N']) -> Float[Array, 'B F K']:
  """Returns real and imaginary parts, with errors far below float32's of the strongest frequency.

  The original computes in float64, and the logarithm makes noise below a voice visible. A sum of
  400 products of two 8-bit numbers is exact in float32 in any order, so that only small terms are
  rounded.
  """
  matrix, matrix_1, matrix_2, matrix_3 = _front_end()
  largest_BF1 = jnp.maximum(jnp.max(jnp.abs(frames_BFN), axis=-1, keepdims=True), 1e-30)
  exponent_BF1 = jax.lax.bitcast_convert_type(largest_BF1, jnp.int32) & 0x7F80_0000
  # Division by a power of two is exact.
  scale_BF1 = 2 * jax.lax.bitcast_convert_type(exponent_BF1, jnp.float32)
  x_1, x_2, x_3 = _slices(frames_BFN / scale_BF1, jnp)
  product = functools.partial(jnp.matmul, precision='highest')
  small = product(x_3, matrix) + product(x_1 + x_2, matrix_3) + product(x_2, matrix_2)
  return (product(x_1, matrix_1) + (product(x_1, matrix_2) + product(x_2, matrix_1) + small)) * (
    2 * scale_BF1
  )


def log_mel(
  config: Config, wave_BT: Float[Array, 'B T'], num_samples_B: Int[Array, 'B'] | None = None
) -> Float[Array, 'B S N']:
  """Returns normalized log-mel frames, `stacked` per frame: N = stacked * num_mels.

  Frames that include padding are 0.
  """
  frames_BFN = audio.frame(wave_BT * 2.0**15, WINDOW, MEL_HOP)
  real_BFN, imaginary_BFN = jnp.split(_spectrum(frames_BFN), 2, axis=-1)
  power_BFN = jnp.square(real_BFN) + jnp.square(imaginary_BFN)
  mels_BFM = jnp.matmul(
    power_BFN, _mel_filters(config.sample_rate, config.num_mels), precision='highest'
  )
  log_BFM = jnp.log(jnp.maximum(mels_BFM, FLOOR))

  batch, length, _ = log_BFM.shape
  num_samples_B = jnp.full(*wave_BT.shape) if num_samples_B is None else num_samples_B
  num_B = (num_samples_B - WINDOW) // MEL_HOP + 1
  inside_BF1 = (jnp.arange(length) < num_B[:, None])[..., None]
  moment = lambda x_BFM, count_B: (
    jnp.sum(x_BFM, axis=1, keepdims=True, where=inside_BF1) / count_B[:, None, None]
  )
  for _ in range(2):  # removes the rounding error of the first mean, of large numbers
    log_BFM -= moment(log_BFM, jnp.maximum(num_B, 1))
  log_BFM *= jax.lax.rsqrt(moment(jnp.square(log_BFM), jnp.maximum(num_B - 1, 1)) + 1e-7)
  log_BFM = jnp.where(inside_BF1, log_BFM, 0)
  whole = length // config.stacked
  return log_BFM[:, : whole * config.stacked].reshape(batch, whole, -1)


class FeatureProjection(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BSN):
    return nn.Dense(self.config.width, name='projection')(
      layer_norm(self.config.epsilon, 'layer_norm')(x_BSN)
    )


class FeedForward(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BSD):
    hidden = nn.silu(nn.Dense(self.config.mlp_width, name='intermediate_dense')(x_BSD))
    return nn.Dense(self.config.width, name='output_dense')(hidden)


class Attention(nn.Module):
  """Self-attention with a bias q_l . e(n - l) for the distance from frame l to frame n."""

  config: Config

  @nn.compact
  def __call__(self, x_BSD, mask):
    c = self.config
    heads = (*x_BSD.shape[:-1], c.num_heads, -1)
    query, key, value = (
      nn.Dense(c.width, name=name)(x_BSD).reshape(heads)
      for name in ('linear_q', 'linear_k', 'linear_v')
    )
    size = c.width // c.num_heads
    distances = nn.Embed(
      c.farthest_left + c.farthest_right + 1, size, name='distance_embedding'
    ).embedding
    by_distance_BHSN = jnp.einsum('bshd,nd->bhsn', query * size**-0.5, distances)
    bias_BHSS = spread(by_distance_BHSN, c.farthest_left)
    mixed_BSD = attend(query, key, value, bias=bias_BHSS, mask=mask).reshape(x_BSD.shape)
    return nn.Dense(c.width, name='linear_out')(mixed_BSD)


def spread(by_distance_BHLN: Float[Array, 'B H L N'], left: int) -> Float[Array, 'B H L L']:
  """Returns result[l, m] = by_distance[l, clip(m - l, -left, N - 1 - left) + left]."""
  place_L, size = np.arange(by_distance_BHLN.shape[2]), by_distance_BHLN.shape[3]
  distance_LL = np.clip(place_L - place_L[:, None], -left, size - 1 - left)
  return jnp.take_along_axis(by_distance_BHLN, (distance_LL + left)[None, None], axis=-1)


class PointwiseConv(nn.Module):
  features: int

  @nn.compact
  def __call__(self, x_BSD):
    kernel = self.param(
      'kernel', nn.initializers.lecun_normal(), (1, x_BSD.shape[-1], self.features)
    )
    return x_BSD @ kernel.reshape(-1, self.features)


class DepthwiseConv(nn.Module):
  """Causal depthwise convolution; frame s depends on frames s - kernel_size + 1 to s."""

  kernel_size: int

  @nn.compact
  def __call__(self, x_BSD):
    kernel = self.param(
      'kernel', nn.initializers.lecun_normal(), (self.kernel_size, 1, x_BSD.shape[-1])
    )
    # A causal convolution is a centred one of inputs delayed by half a kernel.

    delayed = jnp.pad(x_BSD, ((0, 0), (self.kernel_size // 2, 0), (0, 0)))
    return convolve_depthwise(delayed, kernel[:, 0])[:, : x_BSD.shape[1]]


class ConvolutionModule(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BSD, mask_BS):
    c = self.config
    x_BSD = jnp.where(mask_BS[..., None], layer_norm(c.epsilon, 'layer_norm')(x_BSD), 0)
    value, gate = jnp.split(PointwiseConv(2 * c.width, name='pointwise_conv1')(x_BSD), 2, axis=-1)
    x_BSD = DepthwiseConv(c.kernel_size, name='depthwise_conv')(value * jax.nn.sigmoid(gate))
    x_BSD = nn.silu(layer_norm(c.epsilon, 'depthwise_layer_norm')(x_BSD))
    return PointwiseConv(c.width, name='pointwise_conv2')(x_BSD)


class Layer(nn.Module):
  """Conformer block: half feed-forward, attention, convolution, half feed-forward, layer norm.

  All but the last are residual.
  """

  config: Config

  @nn.compact
  def __call__(self, x_BSD, mask_BS):
    norm = lambda name: layer_norm(self.config.epsilon, name)
    x_BSD = x_BSD + 0.5 * FeedForward(self.config, name='ffn1')(norm('ffn1_layer_norm')(x_BSD))
    attention = Attention(self.config, name='self_attn')
    x_BSD = x_BSD + attention(norm('self_attn_layer_norm')(x_BSD), mask_BS[:, None, None])
    x_BSD = x_BSD + ConvolutionModule(self.config, name='conv_module')(x_BSD, mask_BS)
    x_BSD = x_BSD + 0.5 * FeedForward(self.config, name='ffn2')(norm('ffn2_layer_norm')(x_BSD))
    return norm('final_layer_norm')(x_BSD)


class Encoder(nn.Module):
  """[B, S, D] -> the input of the first block and the output of each of `num_layers` blocks."""

  config: Config

  @nn.compact
  def __call__(self, x_BSD, mask_BS, num_layers):
    states = [jnp.where(mask_BS[..., None], x_BSD, 0)]
    for number in range(num_layers):
      states.append(Layer(self.config, name=f'layers_{number}')(states[-1], mask_BS))
    return states


def _init(config: Config, key: jax.Array) -> Variables:
  keys = jax.random.split(key)
  stacked = jnp.zeros((1, 2, config.stacked * config.num_mels))
  projected = jnp.zeros((1, 2, config.width))
  return Variables(
    {
      'feature_projection': FeatureProjection(config).init(keys[0], stacked)['params'],
      'encoder': Encoder(config).init(
        keys[1], projected, jnp.ones((1, 2), bool), config.num_layers
      )['params'],
    },
    {},
  )


def num_frames(config: Config, num_samples: Any) -> Any:
  """Returns the number of frames of `num_samples` samples (an integer or an integer array)."""
  return jnp.maximum(0, (num_samples - WINDOW) // MEL_HOP + 1) // config.stacked


def hidden_states(
  config: Config,
  variables: Variables,
  wave_BT: Float[Array, 'B T'],
  num_layers: int | None = None,
  num_samples_B: Int[Array, 'B'] | None = None,
) -> list[Float[Array, 'B S D']]:
  """Returns the input of the first block and the outputs of the first `num_layers`.

  Args:
    config: sizes of the model.
    variables: its parameters.
    wave_BT: waveforms at `sample_rate`; T is at least `frame_length`.
    num_layers: number of blocks to run; None for all.
    num_samples_B: number of samples before padding; frames that include padding are meaningless and
      have no influence.

  Raises:
    UserError: if T is too short, or the model has fewer blocks.
  """
  num_layers, num_samples_B = encoder_inputs(config, wave_BT, num_layers, num_samples_B)
  apply = lambda module, name, *args: module.apply({'params': variables.params[name]}, *args)
  x_BSD = apply(
    FeatureProjection(config), 'feature_projection', log_mel(config, wave_BT, num_samples_B)
  )
  mask_BS = jnp.arange(x_BSD.shape[1]) < num_frames(config, num_samples_B)[:, None]
  return apply(Encoder(config), 'encoder', x_BSD, mask_BS, num_layers)


def features(
  config: Config,
  variables: Variables,
  wave_BT: Float[Array, 'B T'],
  layer: int,
  num_samples_B: Int[Array, 'B'] | None = None,
) -> Float[Array, 'B S D']:
  """Returns the output of block `layer`, from 1; 0 is the input of the first.

  See `hidden_states`.
  """
  return hidden_states(config, variables, wave_BT, layer, num_samples_B)[-1]

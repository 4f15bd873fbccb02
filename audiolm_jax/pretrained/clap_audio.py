"""CLAP's audio tower: HTSAT (Chen et al., 2022, arXiv 2202.00874) on a folded log-mel spectrogram.

HTSAT is a Swin Transformer. Ten seconds at 48 kHz give 1001 frames of 64 mel bands in decibels:
`log_mel` equals `ClapFeatureExtractor` except for an FFT in float32, visible where a band is 100 dB
below another (0.04 dB around a pure tone).

The spectrogram is stretched to 1024 frames and cut into 4 segments of time, which are stacked to
256 x 256 (the lowest band of the first segment on top) and cut into patches of 4 x 4. Attention
runs within windows of 8 x 8 patches, shifted by half a window in every second block; between
stages, 2 x 2 patches merge into one of twice the width. The output is the mean of all patches.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from audiolm_jax import audio
from audiolm_jax.errors import UserError
from audiolm_jax.nn.attention import attend
from audiolm_jax.pretrained import tensors
from audiolm_jax.pretrained.layers import layer_norm

SAMPLE_RATE, CLIP = 48_000, 480_000  # Hz; samples per window, in all published models
WINDOW, MEL_HOP = 1024, 480  # samples
FRAMES = 1 + CLIP // MEL_HOP
# Range of the mel bands in Hz, as in all published preprocessor_config.json files.
LOWEST, HIGHEST = 50.0, 14_000.0
FLOOR = 1e-10  # minimum power of a mel band before the logarithm
EPSILON = 1e-5  # of norms that do not follow the config
FAR = -100.0  # added to scores of patches in one shifted window that are not adjacent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures the audio tower; the defaults are those of `laion/clap-htsat-unfused`.

  The larger models have width=128, depths=(2, 2, 12, 2).
  """

  num_mels: int = 64
  size: int = 256  # of the folded spectrogram, which is square
  patch: int = 4
  width: int = 96  # of the first stage; doubles with each stage
  depths: tuple[int, ...] = (2, 2, 6, 2)
  num_heads: tuple[int, ...] = (4, 8, 16, 32)
  window: int = 8  # patches
  mlp_ratio: float = 4.0
  epsilon: float = 1e-5  # of a block's layer norms

  @property
  def pieces(self) -> int:
    """Number of stacked segments of time."""
    return self.size // self.num_mels

  @property
  def output_width(self) -> int:
    return self.width * 2 ** (len(self.depths) - 1)


def config_from(data: Mapping[str, Any]) -> Config:
  """Returns the config described by `audio_config` of a config.json.

  Raises:
    UserError: if it asks for something that is not implemented.
  """
  if data.get('enable_fusion', False):
    raise UserError(
      'enable_fusion=True: fusion of a shrunken clip with random crops is not '
      'implemented; take one that is not fused, such as laion/clap-htsat-unfused or '
      'laion/larger_clap_music'
    )
  default = Config()
  config = Config(
    num_mels=tensors.integer(data, 'num_mel_bins', default.num_mels),
    size=tensors.integer(data, 'spec_size', default.size),
    patch=tensors.integer(data, 'patch_size', default.patch),
    width=tensors.integer(data, 'patch_embeds_hidden_size', default.width),
    depths=tensors.integers(data, 'depths', default.depths),
    num_heads=tensors.integers(data, 'num_attention_heads', default.num_heads),
    window=tensors.integer(data, 'window_size', default.window),
    mlp_ratio=tensors.positive(data, 'mlp_ratio', default.mlp_ratio, high=100.0),
    epsilon=tensors.positive(data, 'layer_norm_eps', default.epsilon, high=1.0),
  )
  stages = len(config.depths)
  if len(config.num_heads) != stages:
    raise UserError(
      f'depths={config.depths} and num_attention_heads={config.num_heads} have different lengths'
    )
  tensors.bounded('the width of the last stage', config.output_width)
  if sum(config.depths) > tensors.MAX_LAYERS:
    raise UserError(f'depths={config.depths} are more than {tensors.MAX_LAYERS} layers')
  tensors.require(
    data,
    {
      'patch_stride': [config.patch] * 2,
      'patch_embed_input_channels': 1,
      'enable_patch_layer_norm': True,
      'flatten_patch_embeds': True,
      'qkv_bias': True,
      'hidden_act': 'gelu',
      'hidden_size': config.output_width,
    },
  )
  if config.size % config.num_mels or config.pieces * config.size < FRAMES:
    raise UserError(
      f'spec_size={config.size} does not hold {FRAMES} frames of num_mel_bins={config.num_mels} in '
      'whole pieces'
    )
  if config.size % (config.patch * config.window * 2 ** (stages - 1)):
    raise UserError(
      f'spec_size={config.size} in patches of {config.patch} is no multiple of '
      f'window_size={config.window} in each of {stages} stages'
    )
  for stage, heads in enumerate(config.num_heads):
    if config.width * 2**stage % heads:
      raise UserError(
        f'stage {stage} of width {config.width * 2**stage} is no multiple of its {heads} heads'
      )
  return config


def log_mel(config: Config, wave_BT: Float[Array, 'B 480000']) -> Float[Array, 'B F M']:
  """Returns mel bands in decibels, F = 1001.

  Frame f is centred at sample f * MEL_HOP; ends are padded by reflection.
  """
  spectrum_BFN = audio.stft(
    jnp.pad(wave_BT, ((0, 0), (WINDOW // 2,) * 2), mode='reflect'), WINDOW, MEL_HOP
  )
  power_BFN = jnp.square(spectrum_BFN.real) + jnp.square(spectrum_BFN.imag)
  filters_NM = audio.mel_filterbank(SAMPLE_RATE, WINDOW, config.num_mels, LOWEST, HIGHEST)
  return 10 * jnp.log10(jnp.maximum(jnp.matmul(power_BFN, filters_NM, precision='highest'), FLOOR))


@functools.cache
def _cubic_taps(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns indices and weights [4, wanted] of cubic interpolation (a = -0.75) of `size` points.

  Positions are rounded to float32, as in the original.
  """
  place_N = np.arange(wanted, dtype=np.float32) * (np.float32(size - 1) / np.float32(wanted - 1))
  index_N = np.floor(place_N).astype(np.int32)
  after_N = place_N - index_N
  near = lambda x: (1.25 * x - 2.25) * x * x + 1  # up to 1 away
  far = lambda x: ((-0.75 * x + 3.75) * x - 6) * x + 3  # from 1 to 2
  weights = np.stack([far(after_N + 1), near(after_N), near(1 - after_N), far(2 - after_N)])
  return np.clip(index_N + np.arange(-1, 3)[:, None], 0, size - 1), weights.astype(np.float32)


def fold(config: Config, mels_BFM: Float[Array, 'B F M']) -> Float[Array, 'B size size']:
  """Stretches the spectrogram in time and stacks its segments.

  The axes are (segment and band, time within a segment).
  """
  index, weights = _cubic_taps(mels_BFM.shape[1], config.pieces * config.size)
  stretched_BFM = sum(
    mels_BFM[:, points] * factors[:, None] for points, factors in zip(index, weights)
  )
  pieces = stretched_BFM.reshape(-1, config.pieces, config.size, config.num_mels)
  return pieces.swapaxes(2, 3).reshape(-1, config.size, config.size)


class BandNorm(nn.Module):
  """Normalizes each mel band by the statistics of training."""

  @nn.compact
  def __call__(self, mels_BFM):
    shape = (mels_BFM.shape[-1],)
    mean_M = self.param('running_mean', nn.initializers.zeros, shape)
    variance_M = self.param('running_var', nn.initializers.ones, shape)
    scale_M, bias_M = (
      self.param('scale', nn.initializers.ones, shape),
      self.param('bias', nn.initializers.zeros, shape),
    )
    return (mels_BFM - mean_M) / jnp.sqrt(variance_M + EPSILON) * scale_M + bias_M


class Patches(nn.Module):
  """Linear patch embedding, [B, H, W] -> [B, H / patch, W / patch, width]."""

  config: Config

  @nn.compact
  def __call__(self, picture_BHW):
    size, parts = self.config.patch, self.config.size // self.config.patch
    # Axes of the kernel are (across, down).
    kernel = self.param(
      'kernel', nn.initializers.lecun_normal(), (size, size, 1, self.config.width)
    )
    x = (
      picture_BHW.reshape(-1, parts, size, parts, size)
      .transpose(0, 1, 3, 4, 2)
      .reshape(-1, parts, parts, size**2)
    )
    return x @ kernel.reshape(size**2, -1) + self.param(
      'bias', nn.initializers.zeros, (self.config.width,)
    )


class PatchEmbedding(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, picture_BHW):
    return layer_norm(EPSILON, 'norm')(Patches(self.config, name='proj')(picture_BHW))


def _relative_index(window: int) -> np.ndarray:
  """Returns the table row [N, N] of the relative position of each pair of patches in a window."""
  place_N2 = np.stack(
    np.meshgrid(np.arange(window), np.arange(window), indexing='ij'), axis=-1
  ).reshape(-1, 2)
  apart_NN2 = place_N2[:, None] - place_N2 + window - 1
  return apart_NN2[..., 0] * (2 * window - 1) + apart_NN2[..., 1]


@functools.cache
def _joins(side: int, window: int, shift: int) -> np.ndarray:
  """Returns the mask [W, N, N] of shifted windows: FAR for pairs not adjacent in the picture."""
  region_N = (np.arange(side) >= side - window).astype(int) + (np.arange(side) >= side - shift)
  region_WN = _windows((region_N[:, None] * 3 + region_N)[None, ..., None], window)[..., 0]
  return np.where(region_WN[:, None] == region_WN[:, :, None], 0, FAR).astype(np.float32)


def _windows(x_BHWD, window: int):
  """Splits [B, H, W, D] into windows [H W B / N, N, D], window by window over all batch rows."""
  batch, side, _, width = x_BHWD.shape
  x = x_BHWD.reshape(batch, side // window, window, side // window, window, width).transpose(
    1, 3, 0, 2, 4, 5
  )
  return x.reshape(-1, window**2, width)


def _picture(x_WND, side: int, window: int):
  """Inverts `_windows`."""
  x = x_WND.reshape(side // window, side // window, -1, window, window, x_WND.shape[-1]).transpose(
    2, 0, 3, 1, 4, 5
  )
  return x.reshape(-1, side, side, x_WND.shape[-1])


class WindowAttention(nn.Module):
  """Self-attention within windows, with a learned bias per relative position."""

  num_heads: int
  window: int

  @nn.compact
  def __call__(self, x_WND, joins):
    width = x_WND.shape[-1]
    heads = (*x_WND.shape[:-1], self.num_heads, -1)
    query, key, value = (
      nn.Dense(width, name=name)(x_WND).reshape(heads) for name in ('query', 'key', 'value')
    )
    shape = ((2 * self.window - 1) ** 2, self.num_heads)
    table = self.param('relative_position_bias_table', nn.initializers.normal(0.02), shape)
    bias_1HNN = table[_relative_index(self.window)].transpose(2, 0, 1)[None]
    bias = bias_1HNN if joins is None else bias_1HNN + joins[:, None]
    return attend(query, key, value, bias=bias).reshape(x_WND.shape)


class Inner(nn.Module):
  """Linear layer named `<name>.dense`."""

  features: int

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.features, name='dense')(x)


class Attention(nn.Module):
  num_heads: int
  window: int

  @nn.compact
  def __call__(self, x_WND, joins):
    mixed_WND = WindowAttention(self.num_heads, self.window, name='self')(x_WND, joins)
    return Inner(x_WND.shape[-1], name='output')(mixed_WND)


class Block(nn.Module):
  """Pre-norm Swin block; `moved` shifts the windows by half a window."""

  config: Config
  num_heads: int
  moved: bool

  @nn.compact
  def __call__(self, x_BHWD):
    _, side, _, width = x_BHWD.shape
    window = self.config.window
    shift = window // 2 if self.moved and side > window else 0
    y_BHWD = layer_norm(self.config.epsilon, 'layernorm_before')(x_BHWD)
    y_BHWD = jnp.roll(y_BHWD, (-shift, -shift), axis=(1, 2))
    joins = _joins(side, window, shift) if shift else None
    y_WND = Attention(self.num_heads, window, name='attention')(_windows(y_BHWD, window), joins)
    x_BHWD = x_BHWD + jnp.roll(_picture(y_WND, side, window), (shift, shift), axis=(1, 2))
    y_BHWD = layer_norm(self.config.epsilon, 'layernorm_after')(x_BHWD)
    y_BHWD = Inner(int(self.config.mlp_ratio * width), name='intermediate')(y_BHWD)
    return x_BHWD + Inner(width, name='output')(nn.gelu(y_BHWD, approximate=False))


class Merge(nn.Module):
  """Merges patches, [B, H, W, D] -> [B, H / 2, W / 2, 2 D].

  Of four patches, the lower one is second, the right one third.
  """

  @nn.compact
  def __call__(self, x_BHWD):
    batch, side, _, width = x_BHWD.shape
    x = x_BHWD.reshape(batch, side // 2, 2, side // 2, 2, width).transpose(0, 1, 3, 4, 2, 5)
    x = x.reshape(batch, side // 2, side // 2, 4 * width)
    return nn.Dense(2 * width, use_bias=False, name='reduction')(layer_norm(EPSILON, 'norm')(x))


class Stage(nn.Module):
  config: Config
  number: int

  @nn.compact
  def __call__(self, x_BHWD):
    for number in range(self.config.depths[self.number]):
      block = Block(
        self.config,
        self.config.num_heads[self.number],
        moved=number % 2 == 1,
        name=f'blocks_{number}',
      )
      x_BHWD = block(x_BHWD)
    return (
      x_BHWD if self.number == len(self.config.depths) - 1 else Merge(name='downsample')(x_BHWD)
    )


class Encoder(nn.Module):
  """Log-mel frames [B, F, M] -> the mean patch [B, D], and the states of each stage.

  The states are the input of each stage and the output of the last one.
  """

  config: Config

  @nn.compact
  def __call__(self, mels_BFM):
    picture_BHW = fold(self.config, BandNorm(name='batch_norm')(mels_BFM))
    states = [PatchEmbedding(self.config, name='patch_embed')(picture_BHW)]
    for number in range(len(self.config.depths)):
      states.append(Stage(self.config, number, name=f'layers_{number}')(states[-1]))
    return jnp.mean(layer_norm(EPSILON, 'norm')(states[-1]), axis=(1, 2)), states

"""SEANet, SoundStream's encoder and decoder: causal, ELU, no normalization.

Unlike the original SEANet, it has no skip connections from encoder to decoder. `MelEncoder` may
replace the encoder.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from audiolm_jax import audio, checks
from audiolm_jax.nn.conv import CausalConv, CausalConvTranspose, with_past

DILATIONS = (1, 3, 9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SEANet:
  """Configures encoder and decoder.

  Raises:
    UserError: if a field is illegal.
  """

  strides: tuple[int, ...] = (2, 4, 5, 8)
  stem_stride: int = 1  # of the first and last convolution; see `Encoder`
  encoder_channels: int = 32
  decoder_channels: int = 32
  mel_encoder: bool = False  # the paper's ablation: a mel filterbank replaces the encoder

  def __post_init__(self):
    checks.fields(
      self,
      strides=checks.each(checks.WHOLE),
      stem_stride=checks.WHOLE,
      encoder_channels=checks.WHOLE,
      decoder_channels=checks.WHOLE,
      mel_encoder=checks.FLAG,
    )

  @property
  def lookahead(self) -> int:
    """Number of frames after its own that the encoder sees for a frame: none."""
    return 0

  @property
  def hop_length(self) -> int:
    """Number of samples per frame."""
    return self.stem_stride * math.prod(self.strides)

  @property
  def encoder_past(self) -> int:
    """Number of frames before a frame that the encoder reads for it, rounded up."""
    if self.mel_encoder:
      return MelEncoder.WINDOW - 1
    # In samples; `step` is one step at the current rate.
    reach, step = max(7, 2 * self.stem_stride) - self.stem_stride, self.stem_stride
    for stride in self.strides:
      reach += step * (2 * sum(DILATIONS) + stride)
      step *= stride
    return -(-(reach + 2 * step) // self.hop_length)

  def encoder(self, embedding_dim: int, sample_rate: int, dtype: Any) -> nn.Module:
    """Returns the network wave_BT -> z_BFD."""
    if self.mel_encoder:
      return MelEncoder(embedding_dim, sample_rate, self.hop_length)
    return Encoder(self.encoder_channels, self.strides, embedding_dim, dtype, self.stem_stride)

  def decoder(self, dtype: Any) -> nn.Module:
    """Returns the network z_BFD -> wave_BT."""
    return Decoder(self.decoder_channels, self.strides, dtype, self.stem_stride)


def elu(x: jnp.ndarray) -> jnp.ndarray:
  """Returns x where positive, else exp(x) - 1, in float32 within 6e-8 of `jax.nn.elu`.

  `jax.nn.elu` uses expm1, which XLA:CPU does not vectorize: it took an eighth of a forward pass.
  """
  x32 = x.astype(jnp.float32)
  return jnp.where(x32 > 0, x32, jnp.exp(jnp.minimum(x32, 0)) - 1).astype(x.dtype)


class ResidualUnit(nn.Module):
  """Computes x + conv1(elu(dilated conv3(elu(x)))) at full width.

  The paper's figure shows kernel 7, but that exceeds its parameter table by a fifth. Kernel 3 at
  full width and kernel 7 with half the width inside both match the table, with 4 N^2 parameters.
  Kernel 3 runs 1.5 to 2.5 times faster on XLA:CPU, and its width suits matrix units. The last
  convolution is initialized to 0, so that the network, which has no normalization, is nearly linear
  at first; it then learns phase within hundreds of steps.
  """

  dilation: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BND):
    width = x_BND.shape[-1]
    hidden_BND = CausalConv(width, 3, dilation=self.dilation, dtype=self.dtype, name='dilated')(
      elu(x_BND)
    )
    pointwise = CausalConv(
      width, 1, kernel_init=nn.initializers.zeros, dtype=self.dtype, name='pointwise'
    )
    return x_BND + pointwise(elu(hidden_BND))


class Encoder(nn.Module):
  """Encodes waveforms [B, T] as [B, T / (stem_stride * prod(strides)), embedding_dim].

  The width doubles at each stride. A `stem_stride` above 1 (the paper's) avoids layers at the full
  rate: they have few channels, much memory traffic, and take most of the time.
  """

  channels: int
  strides: Sequence[int]
  embedding_dim: int
  dtype: Any = jnp.float32
  stem_stride: int = 1

  @nn.compact
  def __call__(self, wave_BT):
    kernel = max(7, 2 * self.stem_stride)
    stem = CausalConv(self.channels, kernel, stride=self.stem_stride, dtype=self.dtype, name='stem')
    x_BND = stem(wave_BT[..., None])
    for level, stride in enumerate(self.strides):
      for dilation in DILATIONS:
        x_BND = ResidualUnit(dilation, self.dtype, name=f'level{level}_dilation{dilation}')(x_BND)
      width = 2 * x_BND.shape[-1]
      x_BND = CausalConv(width, 2 * stride, stride=stride, dtype=self.dtype, name=f'down{level}')(
        elu(x_BND)
      )
    return CausalConv(self.embedding_dim, 3, dtype=self.dtype, name='head')(elu(x_BND)).astype(
      jnp.float32
    )


class MelEncoder(nn.Module):
  """Encodes waveforms [B, T] as log-mel frames [B, T / hop_length, num_mels], without parameters.

  Frame f covers the last WINDOW hops before sample (f + 1) * hop_length, so that it is causal.
  """

  num_mels: int
  sample_rate: int
  hop_length: int

  WINDOW = 4

  @nn.compact
  def __call__(self, wave_BT):
    wave_BT = with_past(self, wave_BT, (self.WINDOW - 1) * self.hop_length)
    window = self.WINDOW * self.hop_length
    return audio.log_mel_spectrogram(
      wave_BT,
      sample_rate=self.sample_rate,
      window_length=window,
      hop_length=self.hop_length,
      num_mels=self.num_mels,
      fft_length=max(window, 1024),
    )


class Decoder(nn.Module):
  """Decodes embeddings [B, F, D] to waveforms [B, T]; `strides` are in the encoder's order."""

  channels: int
  strides: Sequence[int]
  dtype: Any = jnp.float32
  stem_stride: int = 1

  @nn.compact
  def __call__(self, z_BFD):
    x_BND = CausalConv(self.channels * 2 ** len(self.strides), 7, dtype=self.dtype, name='stem')(
      z_BFD
    )
    for level, stride in reversed(list(enumerate(self.strides))):
      width = x_BND.shape[-1] // 2
      x_BND = CausalConvTranspose(width, stride, self.dtype, name=f'up{level}')(elu(x_BND))
      for dilation in DILATIONS:
        x_BND = ResidualUnit(dilation, self.dtype, name=f'level{level}_dilation{dilation}')(x_BND)
    if self.stem_stride == 1:
      head = CausalConv(1, 7, dtype=self.dtype, name='head')
    else:
      head = CausalConvTranspose(1, self.stem_stride, self.dtype, name='head')
    return head(elu(x_BND))[..., 0].astype(jnp.float32)

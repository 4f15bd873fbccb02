"""The SEANet encoder and decoder of SoundStream: causal, ELU, no normalization, no skips between the two."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from audiolm_jax.nn.conv import CausalConv, CausalConvTranspose

DILATIONS = (1, 3, 9)


class ResidualUnit(nn.Module):
  """x + conv1(elu(dilated conv3(elu(x)))), full width.

  The paper's figure prints kernel 7, but full width at kernel 7 exceeds its parameter table by a fifth. Kernel 3 at
  full width and kernel 7 with a half-width middle have the same count (4 N^2) and both fit. We take the first:
  XLA:CPU runs it 1.5 to 2.5 times faster, and twice the width suits a matrix unit. The last convolution starts at 0, so
  that the stack without normalization starts nearly linear: it then learns phase within hundreds of steps.
  """

  dilation: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BND):
    width = x_BND.shape[-1]
    hidden_BND = CausalConv(width, 3, dilation=self.dilation, dtype=self.dtype, name='dilated')(nn.elu(x_BND))
    pointwise = CausalConv(width, 1, kernel_init=nn.initializers.zeros, dtype=self.dtype, name='pointwise')
    return x_BND + pointwise(nn.elu(hidden_BND))


class Encoder(nn.Module):
  """Waveform [B, T] -> embeddings [B, T / (stem_stride * prod(strides)), embedding_dim]; each stride doubles the width.

  stem_stride: samples that the first convolution takes as one step. 1 is the paper; 8 spares the layers at the full rate,
  which have few channels, much memory traffic, and most of the time.
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
      x_BND = CausalConv(width, 2 * stride, stride=stride, dtype=self.dtype, name=f'down{level}')(nn.elu(x_BND))
    return CausalConv(self.embedding_dim, 3, dtype=self.dtype, name='head')(nn.elu(x_BND)).astype(jnp.float32)


class Decoder(nn.Module):
  """Embeddings [B, F, D] -> waveform [B, T]; mirrors `Encoder`, strides in the encoder's order."""

  channels: int
  strides: Sequence[int]
  dtype: Any = jnp.float32
  stem_stride: int = 1

  @nn.compact
  def __call__(self, z_BFD):
    x_BND = CausalConv(self.channels * 2 ** len(self.strides), 7, dtype=self.dtype, name='stem')(z_BFD)
    for level, stride in reversed(list(enumerate(self.strides))):
      width = x_BND.shape[-1] // 2
      x_BND = CausalConvTranspose(width, stride, self.dtype, name=f'up{level}')(nn.elu(x_BND))
      for dilation in DILATIONS:
        x_BND = ResidualUnit(dilation, self.dtype, name=f'level{level}_dilation{dilation}')(x_BND)
    if self.stem_stride == 1:
      head = CausalConv(1, 7, dtype=self.dtype, name='head')
    else:
      head = CausalConvTranspose(1, self.stem_stride, self.dtype, name='head')
    return head(nn.elu(x_BND))[..., 0].astype(jnp.float32)

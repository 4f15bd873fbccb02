"""Discriminators of SoundStream (section III-D): one on the complex STFT, three on the waveform."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from audiolm_jax import audio, checks
from audiolm_jax.nn.conv import Conv, GroupedConv

# (width multiplier, stride in time, stride in frequency) of the spectral residual units.
SPECTRAL_UNITS = ((2, 1, 2), (2, 2, 2), (1, 1, 2), (2, 2, 2), (1, 1, 2), (2, 2, 2))


class DiscriminatorOutput(NamedTuple):
  """Holds logits over time (positive for real audio), and hidden layers for feature matching."""

  logits_BN: Float[Array, 'B N']
  features: Sequence[Array]


def _activate(x):
  # The paper states no slope; this one is MelGAN's, which it cites for waveform discriminators.
  return nn.leaky_relu(x, 0.2)


class SpectralDiscriminator(nn.Module):
  """Discriminates waveforms [B, T] by their STFT; returns one logit per 8 hops.

  Real and imaginary parts are two channels. The highest bin is dropped, so that six strides of 2
  leave window_length / 128 bins. The spectrum is divided by the square root of the window length,
  because its loudest bins would reach hundreds.
  """

  channels: int = 32
  window_length: int = 1024
  hop_length: int = 256
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, wave_BT) -> DiscriminatorOutput:
    spectrum_BFN = (
      audio.stft(wave_BT, self.window_length, self.hop_length)[..., :-1] / self.window_length**0.5
    )
    x = jnp.stack([spectrum_BFN.real, spectrum_BFN.imag], axis=-1)
    x = _activate(Conv(self.channels, (7, 7), dtype=self.dtype, name='stem')(x))
    features = [x]
    for index, (multiplier, stride_time, stride_frequency) in enumerate(SPECTRAL_UNITS):
      width, strides = x.shape[-1], (stride_time, stride_frequency)
      hidden = _activate(Conv(width, (3, 3), dtype=self.dtype, name=f'unit{index}_conv')(x))
      kernel = (stride_time + 2, stride_frequency + 2)
      hidden = Conv(
        multiplier * width, kernel, strides=strides, dtype=self.dtype, name=f'unit{index}_down'
      )(hidden)
      shortcut = Conv(
        multiplier * width, (1, 1), strides=strides, dtype=self.dtype, name=f'unit{index}_shortcut'
      )(x)
      x = _activate(hidden + shortcut)
      features.append(x)
    logits = Conv(1, (1, x.shape[2]), padding='VALID', dtype=self.dtype, name='logits')(x)
    return DiscriminatorOutput(logits[:, :, 0, 0].astype(jnp.float32), features)


class WaveformDiscriminator(nn.Module):
  """Discriminates waveforms [B, T] by MelGAN's grouped convolutions; one logit per 256 samples.

  The paper states neither padding nor normalization; here, padding is zero instead of MelGAN's
  reflection, and there is no weight normalization.
  """

  channels: int = 16
  max_channels: int = 1024
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, wave_BT) -> DiscriminatorOutput:
    x = _activate(Conv(self.channels, (15,), dtype=self.dtype, name='stem')(wave_BT[..., None]))
    features = [x]
    for index in range(4):
      width = min(4 * x.shape[-1], self.max_channels)
      x = _activate(GroupedConv(width, 41, stride=4, dtype=self.dtype, name=f'down{index}')(x))
      features.append(x)
    x = _activate(Conv(x.shape[-1], (5,), dtype=self.dtype, name='mix')(x))
    features.append(x)
    logits = Conv(1, (3,), dtype=self.dtype, name='logits')(x)
    return DiscriminatorOutput(logits[..., 0].astype(jnp.float32), features)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Discriminators:
  """Configures the discriminators of a codec; the defaults are SoundStream's.

  Fields:
    start: training step from which they are used and trained; None never.
    spectral_channels: width of the first layer of the discriminator on the STFT.
    spectral_window_length: window of the STFT in samples; the hop is a quarter.
    num_waveform: number of discriminators on the waveform, each at half the previous rate.
    waveform_channels: width of their first layer, a multiple of 4; times 4 per layer.
    waveform_max_channels: limit of that width.

  Raises:
    UserError: if a field is illegal.
  """

  start: int | None = 0
  spectral_channels: int = 32
  spectral_window_length: int = 1024
  num_waveform: int = 3
  waveform_channels: int = 16
  waveform_max_channels: int = 1024

  def __post_init__(self):
    sizes = [field.name for field in dataclasses.fields(self) if field.name != 'start']
    checks.fields(
      self, start=checks.optional(checks.whole(0)), **dict.fromkeys(sizes, checks.WHOLE)
    )

  def module(self, dtype: Any) -> 'AllDiscriminators':
    return AllDiscriminators(self, dtype)


# Never used, and therefore as small as possible.
UNUSED = Discriminators(
  start=None,
  spectral_channels=1,
  spectral_window_length=128,
  num_waveform=1,
  waveform_channels=4,
  waveform_max_channels=4,
)


class AllDiscriminators(nn.Module):
  """Applies all discriminators to waveforms [B, T]: spectral, then waveform at 1, 1/2, 1/4 rate."""

  config: Discriminators
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, wave_BT) -> list[DiscriminatorOutput]:
    config, window = self.config, self.config.spectral_window_length
    spectral = SpectralDiscriminator(
      config.spectral_channels, window, window // 4, self.dtype, name='spectral'
    )
    outputs = [spectral(wave_BT)]
    for index in range(config.num_waveform):
      discriminator = WaveformDiscriminator(
        config.waveform_channels, config.waveform_max_channels, self.dtype, name=f'waveform{index}'
      )
      outputs.append(discriminator(wave_BT))
      wave_BT = nn.avg_pool(wave_BT[..., None], (4,), (2,), 'SAME', count_include_pad=False)[..., 0]
    return outputs

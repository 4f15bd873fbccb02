"""The log-mel spectrum that convolutional networks read, and SpecAugment on it."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from audiolm_jax import audio, checks
from audiolm_jax.errors import UserError

Augment = Callable[[Array], Array]  # log-mel [B, F, M] -> the same with parts hidden


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogMelConfig:
  """Configures the spectrum and the crops of a network.

  Raises:
    UserError: if a field is illegal, or the crop is shorter than one window.
  """

  num_mels: int = 64
  window_length: int = 400  # samples: 25 ms
  hop_length: int = 160  # samples: 10 ms
  sample_rate: int = 16_000  # Hz
  crop_seconds: float = 1.0
  dtype: Any = jnp.float32  # of activations

  def __post_init__(self):
    checks.fields(
      self,
      num_mels=checks.WHOLE,
      window_length=checks.WHOLE,
      hop_length=checks.WHOLE,
      sample_rate=checks.WHOLE,
      crop_seconds=checks.CLIP_SECONDS,
      dtype=checks.FLOAT_TYPE,
    )
    if self.crop_length < self.window_length:
      raise UserError(
        f'crop_seconds={self.crop_seconds} is {self.crop_length} samples, less than '
        f'window_length={self.window_length}: make the crop longer'
      )

  @property
  def crop_length(self) -> int:
    """Number of samples of one crop."""
    return round(self.crop_seconds * self.sample_rate)


class Output(NamedTuple):
  """Holds logits and the embedding, the input of the last linear layer."""

  logits_BN: Array
  embedding_BD: Array


def features(
  config: LogMelConfig, wave_BT: Float[Array, 'B T'], augment: Augment | None = None
) -> Float[Array, 'B F M']:
  """Returns the log-mel, shifted and scaled by constants, which keeps information on loudness.

  Speech then has roughly zero mean and unit variance.

  Args:
    config: sizes of the spectrum.
    wave_BT: waveforms of at least one window.
    augment: function applied to the result; None for none.

  Raises:
    UserError: if the waveform is shorter than one window.
  """
  log_mel_BFM = audio.log_mel_spectrogram(
    wave_BT,
    sample_rate=config.sample_rate,
    window_length=config.window_length,
    hop_length=config.hop_length,
    num_mels=config.num_mels,
    fft_length=max(512, 1 << (config.window_length - 1).bit_length()),
  )
  scaled_BFM = (log_mel_BFM + 5) / 3
  return scaled_BFM if augment is None else augment(scaled_BFM)


def spec_augment(
  key: jax.Array, x_BFM: Float[Array, 'B F M'], *, num_masks: int, max_frames: int, max_mels: int
) -> Float[Array, 'B F M']:
  """Zeroes random spans of frames and of mel bands, different ones in each example.

  The width of a span is drawn from 0 to its maximum, then its start, so that it fits. Source:
  SpecAugment (arXiv 1904.08779), without its time warping.

  Args:
    key: PRNG key.
    x_BFM: spectra whose mean is about 0.
    num_masks: number of spans along each axis.
    max_frames: largest width along time.
    max_mels: largest width along frequency.
  """
  frame_key, mel_key = jax.random.split(key)
  batch, num_frames, num_mels = x_BFM.shape
  hidden_BF = _spans(frame_key, (batch, num_masks), num_frames, max_frames)
  hidden_BM = _spans(mel_key, (batch, num_masks), num_mels, max_mels)
  return jnp.where(hidden_BF[:, :, None] | hidden_BM[:, None, :], 0, x_BFM)


def _spans(key, shape, length, max_width):
  width_key, start_key = jax.random.split(key)
  width_BN = jax.random.randint(width_key, shape, 0, min(max_width, length) + 1)
  start_BN = jax.random.randint(start_key, shape, 0, length - width_BN + 1)
  after_BNL = jnp.arange(length)[None, None] - start_BN[..., None]
  return jnp.any((after_BNL >= 0) & (after_BNL < width_BN[..., None]), axis=1)

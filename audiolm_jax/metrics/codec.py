"""Measures codec reconstructions and the use of codebooks."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from audiolm_jax import audio
from audiolm_jax.errors import UserError
from audiolm_jax.nn.quantizer import perplexity as codebook_perplexity

__all__ = ['codebook_perplexity', 'log_mel_distance', 'multi_scale_stft_distance', 'si_sdr']

STFT_WINDOWS = (512, 1024, 2048)  # samples; the hop is a quarter


def si_sdr(
  reference_BT: Float[Array, 'B T'], estimate_BT: Float[Array, 'B T']
) -> Float[Array, 'B']:
  """Returns the scale-invariant signal-to-distortion ratio of each example, in dB.

  Means are removed first. A silent estimate scores -100 dB, an exact one +100 dB. Source: Le Roux
  et al., 2019.

  Args:
    reference_BT: original waveforms.
    estimate_BT: waveforms to judge.
  """
  reference_BT = reference_BT - jnp.mean(reference_BT, axis=-1, keepdims=True)
  estimate_BT = estimate_BT - jnp.mean(estimate_BT, axis=-1, keepdims=True)
  reference_power_B = jnp.sum(jnp.square(reference_BT), axis=-1)
  scale_B = jnp.sum(reference_BT * estimate_BT, axis=-1) / (reference_power_B + 1e-10)
  target_BT = scale_B[:, None] * reference_BT
  target_power_B = jnp.sum(jnp.square(target_BT), axis=-1)
  noise_power_B = jnp.sum(jnp.square(estimate_BT - target_BT), axis=-1)
  ratio_B = target_power_B / (noise_power_B + 1e-10 * target_power_B + 1e-20)
  return 10 * jnp.log10(jnp.maximum(ratio_B, 1e-10))


def log_mel_distance(
  reference_BT: Float[Array, 'B T'], estimate_BT: Float[Array, 'B T'], sample_rate: int
) -> Float[Array, 'B']:
  """Returns the mean absolute difference of log-mel magnitudes of each example, in nats.

  Uses windows of 64 ms with a hop of a quarter and 80 mel bins. `sample_rate` is in Hz.

  Args:
    reference_BT: original waveforms.
    estimate_BT: waveforms to judge.
    sample_rate: in Hz.
  """
  window = int(0.064 * sample_rate)
  options = dict(sample_rate=sample_rate, window_length=window, hop_length=window // 4, num_mels=80)
  reference_BFM, estimate_BFM = (
    audio.log_mel_spectrogram(wave, **options) for wave in (reference_BT, estimate_BT)
  )
  return jnp.mean(jnp.abs(reference_BFM - estimate_BFM), axis=(1, 2))


def multi_scale_stft_distance(
  reference_BT: Float[Array, 'B T'], estimate_BT: Float[Array, 'B T']
) -> Float[Array, 'B']:
  """Returns spectral convergence plus mean log-magnitude difference (nats) of each example.

  Both terms are averaged over STFT_WINDOWS; windows longer than the waveform are ignored. Spectral
  convergence is the norm of the magnitude difference divided by the norm of the reference
  magnitudes. Source: Yamamoto et al., 2020 (Parallel WaveGAN), equations 3 to 6, with power-of-two
  windows and a hop of a quarter.

  Args:
    reference_BT: original waveforms.
    estimate_BT: waveforms to judge.

  Raises:
    UserError: if the waveform is shorter than every window.
  """
  if reference_BT.shape[-1] < STFT_WINDOWS[0]:
    raise UserError(
      f'waveform has {reference_BT.shape[-1]} samples, the shortest window {STFT_WINDOWS[0]}'
    )
  total_B, windows = 0.0, [w for w in STFT_WINDOWS if w <= reference_BT.shape[-1]]
  for window in windows:
    reference_BFN, estimate_BFN = (
      jnp.abs(audio.stft(wave, window, window // 4)) for wave in (reference_BT, estimate_BT)
    )
    norm = lambda x_BFN: jnp.sqrt(jnp.sum(jnp.square(x_BFN), axis=(1, 2)))
    convergence_B = norm(reference_BFN - estimate_BFN) / jnp.maximum(
      norm(reference_BFN), audio.LOG_FLOOR
    )
    logs = [
      jnp.log(jnp.maximum(magnitude, audio.LOG_FLOOR))
      for magnitude in (reference_BFN, estimate_BFN)
    ]
    total_B += convergence_B + jnp.mean(jnp.abs(logs[0] - logs[1]), axis=(1, 2))
  return total_B / len(windows)

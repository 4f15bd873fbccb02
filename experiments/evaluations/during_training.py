"""Defines what evaluations during training measure beyond a stage's own metrics."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import audio
from audiolm_jax.metrics import codec as codec_metrics
from audiolm_jax.metrics import perceptual
from audiolm_jax.stages import soundstream
from audiolm_jax.stages.base import Variables
from audiolm_jax.training import evaluation

NUM_SAMPLES = 3  # reconstructions to hear and see
VISQOL_SECONDS = 8.0  # of joined clips; computing takes a quarter of that
_QUIET, _LOUD = -8.0, 4.0  # log-mel magnitudes drawn black and white


def for_stage(config: Any) -> evaluation.Measurement:
  """Returns the measurement of a codec; none for other stages, or crops too short to measure."""
  if not isinstance(config, soundstream.Config):
    return evaluation.NO_MEASUREMENT
  # analysis windows of the metrics
  longest = max(config.sample_rate * 64 // 1000, codec_metrics.STFT_WINDOWS[0])
  return codec(config) if config.crop_length >= longest else evaluation.NO_MEASUREMENT


def codec(config: soundstream.Config) -> evaluation.Measurement:
  """Returns the measurement of a codec, with all its levels.

  Scalars, over all evaluation clips:
    si_sdr: dB.
    mel_distance, stft_distance: nats.
    visqol_MAPPER: of the first clips, joined to VISQOL_SECONDS. Needs the `eval` extra; missing if
      the clips are silent.
    perplexity_Q: of the codes of level Q.
    dead_codes_Q: number of codes of level Q that no frame chose; inevitable with few frames.
    discriminator_accuracy: of the discriminators, if used: 0.5 at chance, 1 if always right.
    noisy: share of examples with noise. This and the next two need a denoising switch.
    si_sdr_noisy: dB, of the noisy input, over examples with noise.
    si_sdr_denoised: dB, of the output with the switch on, over examples with noise.

  Audio and pictures: NUM_SAMPLES clips, the original above the reconstruction.
  """

  def measure(params, state, batch):
    variables, wave_BT = Variables(params, state), batch['waveform']
    codes_BFQ = soundstream.encode(config, variables, wave_BT)
    estimate_BT = soundstream.decode(config, variables, codes_BFQ)
    counts_QK = jnp.zeros((config.num_quantizers, config.codebook_size))
    counts_QK = counts_QK.at[jnp.arange(config.num_quantizers), codes_BFQ].add(1.0)
    scalars = {
      'si_sdr': codec_metrics.si_sdr(wave_BT, estimate_BT),
      'mel_distance': codec_metrics.log_mel_distance(wave_BT, estimate_BT, config.sample_rate),
      'stft_distance': codec_metrics.multi_scale_stft_distance(wave_BT, estimate_BT),
    }
    if config.discriminators.start is not None:
      scalars['discriminator_accuracy'] = soundstream.discriminator_accuracy(
        config, variables, wave_BT, estimate_BT
      )
    if config.denoising is not None:
      noisy_BT = wave_BT + batch['noise']
      # Clean examples, at 100 dB, count as 0; `summarize` averages over the others.
      scalars['noisy'] = noisy_B = jnp.any(batch['noise'] != 0, axis=1).astype(jnp.float32)
      denoised_BT = soundstream.denoised(config, variables, noisy_BT)
      scalars['si_sdr_denoised'] = noisy_B * codec_metrics.si_sdr(wave_BT, denoised_BT)
      scalars['si_sdr_noisy'] = noisy_B * codec_metrics.si_sdr(wave_BT, noisy_BT)
    num_kept = max(NUM_SAMPLES, math.ceil(VISQOL_SECONDS * config.sample_rate / config.crop_length))
    waves_NT = jnp.stack([wave_BT[:num_kept], estimate_BT[:num_kept]])
    pictures = [_log_mel(config, wave_BT[:NUM_SAMPLES]) for wave_BT in waves_NT]
    return (jax.tree.map(jnp.mean, scalars), counts_QK), (waves_NT, pictures)

  def summarize(means, samples):
    scalars, counts_QK = dict(means[0]), means[1]
    share_QK = counts_QK / counts_QK.sum(axis=-1, keepdims=True)
    entropy_Q = -np.sum(share_QK * np.log(np.maximum(share_QK, 1e-30)), axis=-1)
    use = {f'perplexity_{q}': np.exp(entropy) for q, entropy in enumerate(entropy_Q)}
    use |= {f'dead_codes_{q}': int(np.sum(counts_K == 0)) for q, counts_K in enumerate(counts_QK)}
    over_all = {
      name: scalars.pop(name) for name in ('si_sdr_denoised', 'si_sdr_noisy') if name in scalars
    }
    if scalars.get('noisy'):  # no mean over no examples
      use |= {name: value / scalars['noisy'] for name, value in over_all.items()}
    (wave_BT, estimate_BT), (picture_BFM, estimated_BFM) = samples
    if 'visqol' in perceptual.available():
      score = perceptual.visqol(
        *(np.asarray(x_BT).reshape(-1) for x_BT in (wave_BT, estimate_BT)), config.sample_rate
      )
      use |= {f'visqol_{perceptual.visqol_mapper()}': score.value} if score.status == 'ok' else {}
    sounds, pictures = {}, {}
    for index in range(min(len(wave_BT), NUM_SAMPLES)):
      sounds[f'original_{index}'] = np.asarray(wave_BT[index]), config.sample_rate
      sounds[f'reconstruction_{index}'] = np.asarray(estimate_BT[index]), config.sample_rate
      pictures[f'spectrogram_{index}'] = _stacked(picture_BFM[index], estimated_BFM[index])
    return evaluation.Summary(scalars | use, sounds, pictures)

  return evaluation.Measurement(measure, summarize)


def _log_mel(config: soundstream.Config, wave_BT):
  window = config.sample_rate // 20
  return audio.log_mel_spectrogram(
    wave_BT,
    sample_rate=config.sample_rate,
    window_length=window,
    hop_length=window // 8,
    num_mels=64,
    fft_length=max(1024, window),
  )


def _stacked(*log_mels: np.ndarray) -> np.ndarray:
  """Returns a picture [height, width, 1] in [0, 1] of log-mel spectrograms [F, M].

  They are stacked vertically, with low frequencies at the bottom.
  """
  rows = [
    np.clip((np.asarray(log_mel_FM).T[::-1] - _QUIET) / (_LOUD - _QUIET), 0, 1)
    for log_mel_FM in log_mels
  ]
  line = np.ones((2, rows[0].shape[1]))
  return np.concatenate([part for row in rows for part in (row, line)][:-1])[..., None]

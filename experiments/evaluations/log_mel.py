"""Computes log-mel frames at the rate of semantic tokens, a baseline without training."""

import jax.numpy as jnp

from audiolm_jax import audio
from audiolm_jax.stages import w2v_bert
from audiolm_jax.tokenizer import SemanticEncoder


def config_of(encoder: SemanticEncoder) -> w2v_bert.Config:
  """Returns the config of the log-mel: the encoder's if it is our w2v-BERT, or the default."""
  return encoder.config if isinstance(encoder.config, w2v_bert.Config) else w2v_bert.Config()


def features(config: w2v_bert.Config, wave_BT, *, stack: bool, normalize: bool):
  """Returns log-mel frames of 40 ms: means of four frames of 10 ms, or with `stack`, all four.

  With `normalize`, they are normalized over the utterance, as w2v-BERT reads them.
  """
  if normalize:
    log_mel_BFM, _ = w2v_bert.normalized_log_mel(config, wave_BT)
  else:
    log_mel_BFM = audio.log_mel_spectrogram(
      jnp.pad(wave_BT, ((0, 0), (0, config.window_length - config.mel_hop_length))),
      sample_rate=config.sample_rate,
      window_length=config.window_length,
      hop_length=config.mel_hop_length,
      num_mels=config.num_mels,
      fft_length=512,
    )
  batch, frames, bands = log_mel_BFM.shape
  groups_BSNM = log_mel_BFM.reshape(batch, -1, w2v_bert.SUBSAMPLING, bands)
  return groups_BSNM.reshape(batch, groups_BSNM.shape[1], -1) if stack else groups_BSNM.mean(axis=2)

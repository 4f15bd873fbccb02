"""Semantic tokens: what they tell of phones and of speakers; and Table I, in which all tokens are compared."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import audio, kmeans
from audiolm_jax.metrics import tokens as token_metrics
from audiolm_jax.stages import w2v_bert
from experiments import corpora, sources, workspace
from experiments.evaluations import trade_off
from experiments.recipe import Recipe


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns what tokens tell of phones, frame by frame (where the corpus knows its phones), and Table I."""
  return {**_purity(recipe, workdir), 'trade_off': trade_off.measure(recipe, workdir)}


def _purity(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns how well semantic tokens follow phones, beside k-means (same K) on the log-mel that w2v-BERT reads."""
  encoder, variables, quantizer, _ = workspace.load_semantic_tokenizer(workdir)
  training, test = (sources.corpus(recipe, split, workdir) for split in ('train', 'test'))
  test = corpora.Subset(test, recipe.evaluation.num_clips, seed=recipe.evaluation.seed)
  if 'phones' not in (test[0] or {}):
    return {'rows': {}}
  config = encoder.config if isinstance(encoder.config, w2v_bert.Config) else w2v_bert.Config()
  if (encoder.frame_rate, encoder.sample_rate) != (config.frame_rate, config.sample_rate):
    raise ValueError(
        f'tokens of {encoder.frame_rate} Hz from audio of {encoder.sample_rate} Hz cannot be compared with phones and '
        f'log-mel of {config.frame_rate} Hz from {config.sample_rate} Hz'
    )
  num_clusters = len(quantizer.centroids_KD)
  extractors = {
      'w2v-BERT': functools.partial(encoder.features, variables),
      'raw log-mel, averaged': functools.partial(_log_mel_features, config, stack=False, normalize=False),
      'raw log-mel, stacked': functools.partial(_log_mel_features, config, stack=True, normalize=False),
      'normalized log-mel, stacked': functools.partial(_log_mel_features, config, stack=True, normalize=True),
  }
  rows = {}
  phones_N = np.concatenate([example['phones'] for example in test])
  speakers_N = np.concatenate([np.full(len(example['phones']), example['speaker']) for example in test])
  for name, extractor in extractors.items():
    extract = functools.partial(sources.map_frames, jax.jit(extractor), hop_length=config.hop_length)
    own = quantizer
    if name != 'w2v-BERT':
      own = sources.fit_clusters(extract, training, config, recipe.semantic_tokens)
    frames_ND = np.concatenate(list(extract(test, config.sample_rate)))
    tokens_N = np.asarray(kmeans.assign(own, jnp.asarray(frames_ND)[None])[0])
    rows[name] = {
        'phone_purity': token_metrics.phone_purity(tokens_N, phones_N),
        'phone_nmi': token_metrics.normalized_mutual_information(tokens_N, phones_N),
        'speaker_nmi': token_metrics.normalized_mutual_information(tokens_N, speakers_N),
    }
  return {'rows': rows, 'num_clusters': num_clusters, 'frames': len(phones_N)}


def _log_mel_features(config: w2v_bert.Config, wave_BT, *, stack: bool, normalize: bool):
  """Returns log-mel frames at the rate of the tokens: the frames of 10 ms in each 40 ms averaged, or side by side."""
  if normalize:  # over the utterance, as w2v-BERT reads them
    log_mel_BFM, _ = w2v_bert.normalized_log_mel(config, wave_BT)
  else:
    log_mel_BFM = audio.log_mel_spectrogram(
        jnp.pad(wave_BT, ((0, 0), (0, config.window_length - config.mel_hop_length))),
        sample_rate=config.sample_rate, window_length=config.window_length, hop_length=config.mel_hop_length,
        num_mels=config.num_mels, fft_length=512,
    )
  batch, frames, bands = log_mel_BFM.shape
  groups_BSNM = log_mel_BFM.reshape(batch, -1, w2v_bert.SUBSAMPLING, bands)
  return groups_BSNM.reshape(batch, groups_BSNM.shape[1], -1) if stack else groups_BSNM.mean(axis=2)

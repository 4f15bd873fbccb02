"""Semantic tokens: what they tell of phones and of speakers; and Table I, in which all tokens are compared."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import kmeans
from audiolm_jax.metrics import tokens as token_metrics
from experiments import corpora, sources, workspace
from experiments.evaluations import log_mel, trade_off
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
  config = log_mel.config_of(encoder)
  if (encoder.frame_rate, encoder.sample_rate) != (config.frame_rate, config.sample_rate):
    raise ValueError(
        f'tokens of {encoder.frame_rate} Hz from audio of {encoder.sample_rate} Hz cannot be compared with phones and '
        f'log-mel of {config.frame_rate} Hz from {config.sample_rate} Hz'
    )
  num_clusters = len(quantizer.centroids_KD)
  extractors = {
      'w2v-BERT': functools.partial(encoder.features, variables),
      'raw log-mel, averaged': functools.partial(log_mel.features, config, stack=False, normalize=False),
      'raw log-mel, stacked': functools.partial(log_mel.features, config, stack=True, normalize=False),
      'normalized log-mel, stacked': functools.partial(log_mel.features, config, stack=True, normalize=True),
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

"""Evaluates semantic tokens by phones and speakers, and all tokens by AudioLM's Table I."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import kmeans
from audiolm_jax.metrics import tokens as token_metrics

from .. import corpora, sources, workspace
from ..recipe import Recipe
from . import log_mel, token_comparison

KEYS = {'phones': 'phones', 'speakers': 'speaker'}  # of an example


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns the agreement of tokens with phones and speakers, and Table I."""
  found = {**_purity(recipe, workdir), 'trade_off': token_comparison.measure(recipe, workdir)}
  if sources.benchmark(recipe, workdir) is None:
    found['left_out']['ABX'] = (
      'no benchmark with phones in context: give --data=FOLDER of ZeroSpeech 2021'
    )
  return found


def _purity(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns the agreement of semantic tokens with phones and speakers, where the corpus has them.

  Phones are those of the split that the corpus names as its PHONES, else of the test split.
  Baselines are k-means, with as many clusters, of the log-mel that w2v-BERT reads.
  """
  tokenizer = workspace.load_semantic_tokenizer(workdir)
  encoder, quantizer = tokenizer.encoder, tokenizer.quantizer
  training = sources.corpus(recipe, 'train', workdir, encoder.sample_rate)
  splits = {'phones': getattr(recipe.corpus, 'PHONES', 'test'), 'speakers': 'test'}
  clips = {
    split: _clips(recipe, split, workdir, encoder.sample_rate) for split in set(splits.values())
  }
  left_out = {
    name: f'the corpus does not name its {name}'
    for name, split in splits.items()
    if not clips[split] or not all(KEYS[name] in example for example in clips[split])
  }
  config = log_mel.config_of(encoder)
  if (encoder.frame_rate, encoder.sample_rate) != (config.frame_rate, config.sample_rate):
    reason = (
      f'tokens of {encoder.frame_rate} Hz from audio of {encoder.sample_rate} Hz cannot be '
      f'compared with phones and log-mel of {config.frame_rate} Hz from {config.sample_rate} Hz'
    )
    left_out = {'phones': reason, 'speakers': reason}
  measured = {}  # what is measured in each split
  for name in sorted(splits.keys() - left_out.keys()):
    measured.setdefault(splits[name], []).append(name)
  if not measured:
    return {'rows': {}, 'left_out': left_out}
  mel = lambda **options: jax.jit(functools.partial(log_mel.features, config, **options))
  extractors = {
    'w2v-BERT': encoder.features,
    'raw log-mel, averaged': mel(stack=False, normalize=False),
    'raw log-mel, stacked': mel(stack=True, normalize=False),
    'normalized log-mel, stacked': mel(stack=True, normalize=True),
  }
  rows, num_frames = {}, {}
  for name, extractor in extractors.items():
    extract = functools.partial(sources.map_frames, extractor, hop_length=config.hop_length)
    own = quantizer
    if name != 'w2v-BERT':
      own = sources.fit_clusters(extract, training, config, recipe.semantic_tokens)
    rows[name] = {}
    for split, names in measured.items():
      frames = list(extract(clips[split], config.sample_rate))
      tokens_N = np.asarray(kmeans.assign(own, jnp.asarray(np.concatenate(frames))[None])[0])
      lengths = [len(frames_SD) for frames_SD in frames]
      rows[name] |= _scores(tokens_N, lengths, clips[split], names)
      num_frames |= {f'frames_of_{what}': len(tokens_N) for what in names}
  return {
    'rows': rows,
    'num_clusters': len(quantizer.centroids_KD),
    **num_frames,
    'left_out': left_out,
  }


def _clips(recipe: Recipe, split: str, workdir: pathlib.Path, sample_rate: int) -> list[dict]:
  found = sources.corpus(recipe, split, workdir, sample_rate)
  found = corpora.Subset(found, recipe.evaluation.num_clips, seed=recipe.evaluation.seed)
  return [example for example in found if example is not None]


def _scores(
  tokens_N: np.ndarray, lengths: list[int], examples: list[dict], names: list[str]
) -> dict:
  """Returns a row of measures of phones, speakers or both, as `names` say.

  `lengths` are the numbers of frames of the examples.
  """
  row = {}
  if 'phones' in names:
    phones_N = np.concatenate([example['phones'] for example in examples])
    row['phone_purity'] = token_metrics.phone_purity(tokens_N, phones_N)
    row['phone_nmi'] = token_metrics.normalized_mutual_information(tokens_N, phones_N)
  if 'speakers' in names:
    speakers_N = np.repeat([int(example['speaker']) for example in examples], lengths)
    row['speaker_nmi'] = token_metrics.normalized_mutual_information(tokens_N, speakers_N)
  return row

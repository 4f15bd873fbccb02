"""Evaluates SoundStorm's masked prediction by level, with counts of token pairs as a baseline."""

import functools
import pathlib

import jax
import numpy as np

from audiolm_jax.data import pipeline
from audiolm_jax.metrics import conditional

from .. import workspace
from ..recipe import Recipe


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns nats and accuracy of masked codes on held-out tokens, by level, masked as in training.

  The baseline predicts a code from the semantic token of its frame, or from the code of the level
  before (which is never masked), whichever is better; the model also sees all unmasked frames.
  """
  if not (workdir / 'soundstorm').is_dir():
    command = f'python -m experiments.train --stage=soundstorm --workdir={workdir}'
    return {'rows': {}, 'left_out': {'soundstorm': f'it is not trained: {command}'}}
  config, variables, _ = workspace.load_stage(workdir, 'soundstorm')
  stage = config.make()
  make = functools.partial(
    pipeline.evaluation_batches, features=stage.batch, batch_size=8, seed=recipe.evaluation.seed
  )
  source = workspace.token_source(workdir, 'train')
  # Baselines are fitted on random crops, as the model is; two epochs cover most tokens.
  training, held_out = (
    make(source, num_batches=max(1, 2 * len(source) // 8)),
    make(workspace.token_source(workdir, 'test'), num_batches=16),
  )
  evaluate = jax.jit(
    lambda params, batch: stage.loss(params, variables.state, batch, None)[1].metrics
  )
  results = [jax.device_get(evaluate(variables.params, batch)) for batch in held_out]
  rows = {}
  for q in range(config.num_quantizers):
    row = {
      name: float(np.mean([result[f'{name}_level_{q}'] for result in results]))
      for name in ('nats', 'accuracy')
    }
    givens = {'semantic': config.num_clusters} | ({'coarser': config.codebook_size} if q else {})
    scores = [
      _counting(config, training, held_out, given, size, q) for given, size in givens.items()
    ]
    row['counting_nats'] = min(nats for nats, _ in scores)
    row['counting_accuracy'] = max(accuracy for _, accuracy in scores)
    rows[f'level {q + 1}'] = row
  return {'rows': rows}


def _counting(
  config, training, held_out, given: str, num_given: int, level: int
) -> tuple[float, float]:
  counts_GV = conditional.fit(
    *_pairs(config, training, given, level), num_given, config.codebook_size
  )
  return conditional.scores(
    conditional.probabilities(counts_GV), *_pairs(config, held_out, given, level)
  )


def _pairs(config, batches, given: str, level: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the given tokens and the codes of the level, for all frames of all batches."""
  codes_BFQ = np.concatenate([batch['codes'] for batch in batches])
  if given == 'semantic':
    given_BF = np.concatenate([batch['semantic'] for batch in batches]).repeat(
      config.frames_per_semantic, axis=1
    )
  else:
    given_BF = codes_BFQ[..., level - 1]
  here_BF = (codes_BFQ[..., level] >= 0) & (given_BF >= 0)
  return given_BF[here_BF], codes_BFQ[here_BF, level]

"""Evaluates language models on held-out tokens, and on pairs of recordings (sWUGGY, sBLIMP)."""

import functools
import pathlib

import jax
import numpy as np

from audiolm_jax.data import pipeline
from audiolm_jax.metrics import language

from .. import workspace
from ..recipe import Recipe
from . import preference

MODELS = ('semantic', 'coarse', 'fine', 'acoustic_only')


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns held-out nats per token of language models, and of unigrams and bigrams."""
  rows = {}
  for name in MODELS:
    if not (workdir / name).is_dir():
      continue
    config, variables, _ = workspace.load_stage(workdir, name)
    stage = config.make()
    options = dict(batch_size=8, seed=recipe.evaluation.seed)
    make = functools.partial(pipeline.evaluation_batches, features=stage.batch, **options)
    held_out = make(workspace.token_source(workdir, 'test'), num_batches=8)
    training_source = workspace.token_source(workdir, 'train')
    # Baselines are fitted on random crops, as the model is; two epochs cover most tokens.
    training = make(training_source, num_batches=max(1, 2 * len(training_source) // 8))
    targets = lambda batches: np.concatenate(
      [np.asarray(config.prefix_and_target(batch)[1]) for batch in batches]
    )
    counts = language.fit(targets(training), config.language_model.vocabulary.target_size)
    evaluate = jax.jit(lambda params, batch: stage.loss(params, variables.state, batch, None)[0])
    test = targets(held_out)
    rows[name] = {
      'nats': float(np.mean([evaluate(variables.params, batch) for batch in held_out])),
      'unigram': language.unigram_nats(counts, test),
      'bigram': language.bigram_nats(counts, test),
      'tokens': int((test >= 0).sum()),
    }
  found = preference.measure(recipe, workdir)
  reason = 'no benchmark, or no stage semantic: give --data=FOLDER of ZeroSpeech 2021'
  return {'rows': rows, 'preference': found, 'left_out': {} if found else {'preference': reason}}

"""Evaluates language models on held-out tokens, and on pairs of recordings (sWUGGY, sBLIMP)."""

import functools
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax.data import pipeline
from audiolm_jax.metrics import language
from audiolm_jax.nn import language_model
from audiolm_jax.stages.base import Batch

from .. import workspace
from ..recipe import Recipe
from . import preference

MODELS = ('semantic', 'coarse', 'fine', 'acoustic_only')


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns held-out nats per token of language models, and of unigrams and bigrams.

  other_prefix: nats with the prefix of another example (semantic tokens of coarse, coarse codes of
    fine); its excess over `nats` is the gain of the model from its own prefix.
  """
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
    test = targets(held_out)
    rows[name] = {
      **nats(config, variables.params, held_out),
      'unigram': language.unigram_nats(counts, test),
      'bigram': language.bigram_nats(counts, test),
      'tokens': int((test >= 0).sum()),
    }
  found = preference.measure(recipe, workdir)
  reason = 'no benchmark, or no stage semantic: give --data=FOLDER of ZeroSpeech 2021'
  return {'rows': rows, 'preference': found, 'left_out': {} if found else {'preference': reason}}


def nats(config: Any, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
  """Returns the mean nats per token of a language model, and, if it has a prefix, `other_prefix`.

  For the latter, each row has the prefix of the row before it.
  """
  model = config.language_model
  loss = jax.jit(lambda *sequence: language_model.loss(model, params, *sequence, None)[0])
  sequences = [config.prefix_and_target(batch) for batch in batches]
  found = {'nats': float(np.mean([loss(*sequence) for sequence in sequences]))}
  if model.vocabulary.parts:
    other = lambda prefix: tuple(jnp.roll(jnp.asarray(part), 1, axis=0) for part in prefix)
    losses = [loss(other(prefix), target) for prefix, target in sequences]
    found['other_prefix'] = float(np.mean(losses))
  return found

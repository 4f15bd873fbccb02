"""Evaluates a train state: averages the metrics of the stage, and runs a program's measurement."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from audiolm_jax.errors import UserError
from audiolm_jax.stages import base
from audiolm_jax.training import sharding


class Summary(NamedTuple):
  """Holds the results of a measurement, by name; they are logged as 'eval/<name>'.

  Fields:
    scalars: numbers.
    audio: pairs of wave_T in [-1, 1] and its sample rate in Hz.
    images: arrays [height, width, 1 or 3] in [0, 1].
  """

  scalars: Mapping[str, float]
  audio: Mapping[str, tuple[np.ndarray, int]] = {}
  images: Mapping[str, np.ndarray] = {}


class Measurement(NamedTuple):
  """Defines additional measurements at each evaluation, which a program makes of a stage.

  Fields:
    measure: function (params, state, batch) -> (arrays, samples); `make` compiles it.
    summarize: function (mean of the arrays over all evaluation batches, samples of the first
      batch) -> Summary; runs on the host.
  """

  measure: Callable[[base.Params, base.State, base.Batch], tuple[Any, Any]]
  summarize: Callable[[Any, Any], Summary]


NO_MEASUREMENT = Measurement(lambda *_: ((), ()), lambda *_: Summary({}))


def make(
  eval_step: Callable[..., Mapping[str, jax.Array]], measurement: Measurement, mesh: Mesh
) -> Callable[[base.Params, base.State, Iterator[base.Batch]], tuple[dict[str, Any], Summary]]:
  """Returns a function that evaluates a train state on held-out batches.

  Args:
    eval_step: from `step.make_eval_step`.
    measurement: additional measurements; NO_MEASUREMENT for none.
    mesh: mesh of the batches.

  Returns:
    Function (params, state, global batches) -> (means of the metrics of `eval_step`, Summary). It
    raises UserError if there are no batches.
  """
  measure = jax.jit(measurement.measure, out_shardings=sharding.replicated(mesh))

  def evaluate(params, state, batches):
    sums, samples, count = None, None, 0
    for batch in batches:
      arrays, found = measure(params, state, batch)
      values = eval_step(params, state, batch), arrays
      sums = values if sums is None else jax.tree.map(jnp.add, sums, values)
      samples = found if samples is None else samples
      count += 1
    if not count:
      raise UserError('make_eval_batches returned no batch: it needs at least one')
    metrics, arrays = jax.tree.map(
      lambda x: np.asarray(x, np.float64) / count, jax.device_get(sums)
    )
    return metrics, measurement.summarize(arrays, jax.device_get(samples))

  return evaluate

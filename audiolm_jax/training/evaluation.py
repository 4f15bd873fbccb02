"""Evaluates a train state: means of the stage's own metrics and of a program's probe."""

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
  """What a probe found, by name; all names get 'eval/' in front."""

  scalars: Mapping[str, float]
  audio: Mapping[str, tuple[np.ndarray, int]] = {}  # (wave_T, sample rate)
  images: Mapping[str, np.ndarray] = {}  # [height, width, 1 or 3] in [0, 1]


class Probe(NamedTuple):
  """Measures at every evaluation what one program wants to know of a stage: numbers, sounds,
  pictures.

  measure: (params, state, batch) -> (arrays, samples), compiled by the loop.
  summarize: (mean of the arrays over the evaluation batches, samples of the first one) -> Summary,
  on the host.
  """

  measure: Callable[[base.Params, base.State, base.Batch], tuple[Any, Any]]
  summarize: Callable[[Any, Any], Summary]


NO_PROBE = Probe(lambda *_: ((), ()), lambda *_: Summary({}))


def make(
  eval_step: Callable[..., Mapping[str, jax.Array]], probe: Probe, mesh: Mesh
) -> Callable[[base.Params, base.State, Iterator[base.Batch]], tuple[dict[str, Any], Summary]]:
  """Returns (params, state, global batches) -> (means of the metrics of `eval_step`, Summary of
  `probe`).

  Raises ValueError where there is no batch.
  """
  measure = jax.jit(probe.measure, out_shardings=sharding.replicated(mesh))

  def evaluate(params, state, batches):
    sums, samples, count = None, None, 0
    for batch in batches:
      arrays, found = measure(params, state, batch)
      values = eval_step(params, state, batch), arrays
      sums = values if sums is None else jax.tree.map(jnp.add, sums, values)
      samples = found if samples is None else samples
      count += 1
    if not count:
      raise UserError('make_eval_batches gave no batch: it needs at least one')
    metrics, arrays = jax.tree.map(
      lambda x: np.asarray(x, np.float64) / count, jax.device_get(sums)
    )
    return metrics, probe.summarize(arrays, jax.device_get(samples))

  return evaluate

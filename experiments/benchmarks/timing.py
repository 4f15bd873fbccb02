"""Times train steps, and functions that take turns, so that other load slows all alike."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from audiolm_jax.stages import base
from audiolm_jax.training import optimizers, sharding
from audiolm_jax.training import step as step_lib


def in_turns(
  steps: Mapping[str, Callable[[], object]],
  repeats: int,
  clock: Callable[[], float] = time.process_time,
) -> tuple[dict[str, float], dict[str, float]]:
  """Returns the median seconds of each step, and its ratio to the first one.

  Steps take turns, `repeats` times after a warm-up; a ratio is the median over turns. The default
  `clock` is processor time, which does not count waiting for a busy processor.
  """
  turns = []
  for _ in range(repeats + 1):
    turns.append({})
    for name, step in steps.items():
      start = clock()
      step()
      turns[-1][name] = clock() - start
  first = next(iter(steps))
  median = lambda value: {
    name: float(np.median([value(turn, name) for turn in turns[1:]])) for name in steps
  }
  return median(lambda turn, name: turn[name]), median(lambda turn, name: turn[name] / turn[first])


def train_step(
  stage: base.Stage, optimizer: optimizers.OptimizerConfig, batch: Mapping[str, np.ndarray]
) -> tuple[Callable[[], None], int]:
  """Returns a function that runs a train step on `batch`, and the step's memory in bytes.

  Weights are random. The memory of the compiled step excludes its arguments.
  """
  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
  init, _, shardings = step_lib.make_init(stage, optimizer, mesh)
  batch = sharding.global_batch(dict(batch), mesh)
  held = {'state': init(jax.random.key(0)), 'number': 0}
  compiled = (
    step_lib.make_train_step(stage, optimizer, mesh, shardings)
    .lower(held['state'], batch, np.int32(0))
    .compile()
  )

  def step():
    held['state'], metrics = compiled(held['state'], batch, np.int32(held['number']))
    held['number'] += 1
    jax.block_until_ready((held['state'], metrics))

  return step, compiled.memory_analysis().temp_size_in_bytes

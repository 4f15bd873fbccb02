"""What a run of the loop may end with, in words that its user can act on."""

import math
from collections.abc import Mapping

import jax

from audiolm_jax.training import sharding
from audiolm_jax.training import step as step_lib


class DivergedError(FloatingPointError):
  """A loss or gradient exploded or was not finite, and no rollback is left."""


class NonFiniteError(DivergedError):
  """A loss or gradient was not finite; the state before it is saved."""


class OutOfMemoryError(MemoryError):
  """The step does not fit into the memory of the devices; the checkpoints before it are whole."""


class PeerError(ConnectionError):
  """Another process of this run ended or failed; all of them start again, from the last checkpoint.

  Threads that wait for the other may be left behind, so that the process should end without waiting
  for them.
  """


def explained(
  error: jax.errors.JaxRuntimeError,
  shapes: step_lib.TrainState,
  shardings: step_lib.TrainState,
  mesh: jax.sharding.Mesh,
  batch_size: int,
) -> Exception:
  """Returns what an error of the devices means to the user; itself where that is not known."""
  reason = str(error).splitlines()[0][:300]
  if 'RESOURCE_EXHAUSTED' in reason:
    held = ', '.join(
      f'{name} {size / 2**20:.3g} MiB' for name, size in _held(shapes, shardings).items()
    )
    rows = batch_size / mesh.shape[sharding.DATA] / mesh.shape[sharding.FSDP]
    return OutOfMemoryError(
      f'{reason}: the step does not fit into the memory of a {mesh.devices.flat[0].device_kind}. Each device holds '
      f'{held}, and {rows:g} of batch_size={batch_size} examples. Lower batch_size (and raise accumulate_steps), '
      'raise mesh.fsdp, or turn on remat in the model; the checkpoints are whole'
    )
  if jax.process_count() > 1:
    return PeerError(
      f'process {jax.process_index()} of {jax.process_count()}: {reason}: another process of this run ended or '
      'failed, its log says why; start all of them again, they go on from the last checkpoint'
    )
  return error


def _held(shapes: step_lib.TrainState, shardings: step_lib.TrainState) -> Mapping[str, int]:
  """Returns the bytes on each device of every part of the train state."""
  size = lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
  sizes = jax.tree.map(size, shapes, shardings)
  return {name: sum(jax.tree.leaves(getattr(sizes, name))) for name in sizes._fields}

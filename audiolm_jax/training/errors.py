"""What a run of the loop may end with, in words that its user can act on."""

import contextlib
import math
from collections.abc import Iterator, Mapping

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


@contextlib.contextmanager
def explaining(programs: step_lib.Programs, batch_size: int) -> Iterator[None]:
  """Turns errors of the devices within this block into what they mean to the user, where known."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    explained = _explained(error, programs, batch_size)
    if explained is None:
      raise
    raise explained from error


def _explained(
  error: jax.errors.JaxRuntimeError, programs: step_lib.Programs, batch_size: int
) -> Exception | None:
  """Returns what an error of the devices means to the user; None where that is not known."""
  reason, mesh = str(error).splitlines()[0][:300], programs.mesh
  if 'RESOURCE_EXHAUSTED' in reason:
    held = ', '.join(
      f'{name} {size / 2**20:.3g} MiB'
      for name, size in _held(programs.shapes, programs.shardings).items()
    )
    rows = batch_size / mesh.shape[sharding.DATA] / mesh.shape[sharding.FSDP]
    return OutOfMemoryError(
      f'{reason}: the step does not fit into the memory of a {mesh.devices.flat[0].device_kind}. '
      f'Each device holds {held}, and {rows:g} of batch_size={batch_size} examples. Lower '
      'batch_size (and raise accumulate_steps), raise mesh.fsdp, or turn on remat in the model; '
      'the checkpoints are whole'
    )
  if jax.process_count() > 1:
    return PeerError(
      f'process {jax.process_index()} of {jax.process_count()}: {reason}: another process of this '
      'run ended or failed, its log says why; start all of them again, they go on from the last '
      'checkpoint'
    )
  return None


def _held(shapes: step_lib.TrainState, shardings: step_lib.TrainState) -> Mapping[str, int]:
  """Returns the bytes on each device of every part of the train state."""
  size = lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
  sizes = jax.tree.map(size, shapes, shardings)
  return {name: sum(jax.tree.leaves(getattr(sizes, name))) for name in sizes._fields}

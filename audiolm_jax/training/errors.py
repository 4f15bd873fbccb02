"""Errors that end a training run, with advice for the user."""

import contextlib
import math
from collections.abc import Iterator, Mapping

import jax

from audiolm_jax.errors import UnfinishedThreads
from audiolm_jax.training import sharding
from audiolm_jax.training import step as step_lib


class DivergedError(FloatingPointError):
  """A loss or gradient exploded or was not finite, and no rollbacks remain."""


class NonFiniteError(DivergedError):
  """A loss or gradient was not finite; the state before it is saved."""


class OutOfMemoryError(MemoryError):
  """The step does not fit into the memory of the devices; earlier checkpoints are not affected."""


class PeerError(ConnectionError, UnfinishedThreads):
  """Another process of the run ended or failed: restart all, from the last checkpoint.

  Threads may still wait for that process, so this one should exit without joining them.
  """


@contextlib.contextmanager
def explaining(programs: step_lib.Programs, batch_size: int) -> Iterator[None]:
  """Replaces device errors raised in this block by `OutOfMemoryError` or `PeerError`, if known."""
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
  """Returns the replacement for a device error; None if its cause is unknown."""
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
      'the checkpoints are not affected'
    )
  if jax.process_count() > 1:
    return PeerError(
      f'process {jax.process_index()} of {jax.process_count()}: {reason}: another process of this '
      'run ended or failed (see its log); restart all processes, they continue from the last '
      'checkpoint'
    )
  return None


def _held(shapes: step_lib.TrainState, shardings: step_lib.TrainState) -> Mapping[str, int]:
  """Returns the bytes per device of each part of the train state."""
  size = lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
  sizes = jax.tree.map(size, shapes, shardings)
  return {name: sum(jax.tree.leaves(getattr(sizes, name))) for name in sizes._fields}

"""Makes the first train state of a run: from its checkpoint, from another run, or from the seed."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import tokens
from audiolm_jax.errors import UserError
from audiolm_jax.training import checkpoints, saving
from audiolm_jax.training import step as step_lib

_PARTS = tuple(name for name in step_lib.TrainState._fields if name != 'step')


@dataclasses.dataclass(frozen=True)
class Beginning:
  """Defines the initial train state of a run without a checkpoint.

  Fields:
    seed: seed of the initial parameters.
    init_from: workdir or checkpoint directory of a run whose params and state to use instead.
    init_optimizer: whether to use its optimizer state too.

  Raises:
    UserError: for `init_optimizer` without `init_from`.
  """

  seed: int
  init_from: str | os.PathLike | None = None
  init_optimizer: bool = False

  def __post_init__(self):
    if self.init_optimizer and self.init_from is None:
      raise UserError('init_optimizer needs init_from: name the run whose optimizer state to use')


def parts(train_state: step_lib.TrainState) -> dict[str, Any]:
  """Returns the parts of a train state that a checkpoint holds: all except the step, its name."""
  return {name: getattr(train_state, name) for name in _PARTS}


def check_iterator(batches: Any) -> None:
  """Checks that the data position of an iterator can be saved and restored.

  Raises:
    UserError: if a method is missing.
  """
  wanted = ('__next__', 'get_state', 'set_state')
  if missing := [name for name in wanted if not callable(getattr(batches, name, None))]:
    raise UserError(
      f'make_batches returned a {type(batches).__name__}, which has no {", ".join(missing)}: '
      'checkpoints store the position in the data, so that resuming is exact. Return an iterator '
      'with get_state() -> JSON and set_state(state), such as that of data.pipeline.batches, or a '
      'class of your own that counts its batches'
    )


def resume(
  checkpointer: saving.Checkpointer,
  programs: step_lib.Programs,
  metadata: Mapping[str, Any],
  beginning: Beginning,
) -> tuple[step_lib.TrainState, saving.Restored | None]:
  """Returns the train state to start or resume from.

  Args:
    checkpointer: checkpoints of the run.
    programs: shapes, shardings and initialization of the train state.
    metadata: metadata of the run; 'config' and 'fingerprints' must match those of the checkpoint.
    beginning: initial state, if there is no checkpoint.

  Returns:
    Train state, and the newest undamaged checkpoint; None if there is no checkpoint.

  Raises:
    UserError: if config or fingerprints differ, or all checkpoints are damaged.
  """
  targets = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    programs.shapes,
    programs.shardings,
  )
  restored = checkpointer.restore(parts(targets), metadata['config'])
  if restored is None:
    return _begin(programs, targets, beginning), None
  saved, now = restored.metadata['fingerprints'], metadata['fingerprints']
  if tokens.changed_makers(saved, now):
    raise UserError(
      f'checkpoint was trained with {saved}, now {now}: use the same codec and k-means, '
      'or another workdir'
    )
  step = jax.device_put(np.int32(restored.step), programs.shardings.step)
  return step_lib.TrainState(step=step, **restored.parts), restored


def _begin(
  programs: step_lib.Programs, targets: step_lib.TrainState, beginning: Beginning
) -> step_lib.TrainState:
  """Returns the state before step 0: from the seed, with the parts taken from another run."""
  train_state = programs.init(jax.random.key(beginning.seed))
  if beginning.init_from is None:
    return train_state
  names = ('params', 'state', *(('opt_state',) if beginning.init_optimizer else ()))
  brought = checkpoints.load_parts(
    beginning.init_from, {name: getattr(targets, name) for name in names}
  )
  if train_state.ema_params is not None:
    brought['ema_params'] = jax.tree.map(jnp.copy, brought['params'])
  return train_state._replace(**brought)

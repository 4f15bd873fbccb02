"""Sets up a run from its config, and holds open what its steps share."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import optax

from audiolm_jax import checks
from audiolm_jax.errors import UserError
from audiolm_jax.stages import base
from audiolm_jax.training import (
  configs,
  errors,
  lock,
  metrics_writer,
  monitor,
  optimizers,
  reporting,
  resuming,
  saving,
  sharding,
)
from audiolm_jax.training import step as step_lib
from audiolm_jax.training import watchdog as watchdog_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """How long, how often, on what mesh. A step is one micro-batch: see `accumulate_steps`.

  Raises ValueError, with field, value and what is legal.
  """

  batch_size: int  # examples in one global batch, over all processes
  num_steps: int
  optimizer: optimizers.Optimizer = optimizers.OptimizerConfig()
  seed: int = 0
  accumulate_steps: int = 1  # micro-batches averaged into one update
  # of the parameters, per update; at first (1 + n) / (10 + n); None: no average
  ema_decay: float | None = None
  mesh: sharding.MeshConfig = sharding.MeshConfig()
  log_every: int = 10  # steps
  eval_every: int | None = None  # steps; None: only at the end
  eval_batches: int = 8
  save_every: int = 1000  # steps; the last one is always saved
  save_every_seconds: float | None = None  # besides; one process only, whose clock decides
  max_to_keep: int = 3  # newest checkpoints
  keep_every: int | None = None  # steps; multiples of it are kept for good, besides
  max_failed_saves: int = 3  # in a row (a full disk, storage that errs) that a run survives
  # on divergence; None: a number that is not finite stops the run
  rollback: monitor.RollbackConfig | None = None
  # in a row that are left out, because the step was not finite, before what comes next
  max_skipped_batches: int = 0
  slow_seconds: float | None = 300.0  # a step, or a wait for data, that takes longer is a warning
  # and one that takes this long ends the run: data or another host hangs
  timeout_seconds: float | None = 3600.0
  bands: tuple[monitor.Band, ...] = ()  # what to expect; a run outside says so and goes on
  tensorboard: bool = True

  def __post_init__(self):
    counts = (
      'batch_size',
      'accumulate_steps',
      'log_every',
      'eval_batches',
      'save_every',
      'max_to_keep',
    )
    checks.fields(self, **dict.fromkeys(counts, checks.WHOLE))
    checks.fields(
      self, **dict.fromkeys(('eval_every', 'keep_every'), checks.optional(checks.WHOLE))
    )
    seconds = ('save_every_seconds', 'slow_seconds', 'timeout_seconds')
    checks.fields(self, **dict.fromkeys(seconds, checks.optional(checks.WAIT_SECONDS)))
    from_0 = ('num_steps', 'max_failed_saves', 'max_skipped_batches')
    checks.fields(self, **dict.fromkeys(from_0, checks.whole(0)))
    checks.fields(
      self, seed=checks.SEED, ema_decay=checks.optional(checks.BELOW_ONE), tensorboard=checks.FLAG
    )


class Session(NamedTuple):
  """What one call of `train` works with; the objects in it hold everything that is open."""

  config: TrainConfig
  directory: pathlib.Path
  programs: step_lib.Programs
  metadata: Mapping[str, Any]
  beginning: resuming.Beginning
  checkpointer: saving.Checkpointer
  saver: saving.Saver
  reporter: reporting.Reporter
  judge: monitor.Judge
  watchdog: watchdog_lib.Watchdog


def programs(
  stage: base.Stage, config: Any, c: TrainConfig, optimizer: optax.GradientTransformation | None
) -> step_lib.Programs:
  """Returns the functions of the run. Raises ValueError for settings that do not fit together."""
  if c.save_every_seconds is not None and jax.process_count() > 1:
    raise UserError('save_every_seconds needs a single process (clocks differ): use save_every')
  mesh = sharding.make_mesh(c.mesh)
  sharding.check_batch_size(c.batch_size, mesh)
  made = step_lib.make_programs(
    stage,
    c.optimizer if optimizer is None else optimizer,
    mesh,
    seed=c.seed,
    accumulate_steps=c.accumulate_steps,
    ema_decay=c.ema_decay,
  )
  step_lib.check_made_by(config, stage, made.shapes)
  return made


def metadata(
  config: Any,
  c: TrainConfig,
  fingerprints: Mapping[str, str] | None,
  beginning: resuming.Beginning,
  optimizer: optax.GradientTransformation | None,
) -> dict[str, Any]:
  """Returns what every checkpoint says of the run."""
  training = configs.describe(c)
  if optimizer is not None:
    training['fields']['optimizer'] = 'an optax.GradientTransformation given to loop.train'
  init_from = beginning.init_from
  return {
    'config': configs.describe(config),
    'training': training,
    'fingerprints': dict(fingerprints or {}),
    'init_from': None if init_from is None else os.fspath(init_from),
  }


@contextlib.contextmanager
def opened(
  c: TrainConfig,
  directory: pathlib.Path,
  programs: step_lib.Programs,
  metadata: Mapping[str, Any],
  beginning: resuming.Beginning,
  report: Callable[[Mapping[str, Any]], Any],
) -> Iterator[Session]:
  """Holds the run directory, its checkpoints, its metrics files and the worker thread."""
  with contextlib.ExitStack() as stack:
    watchdog = watchdog_lib.Watchdog(c.slow_seconds, c.timeout_seconds)
    writer = None
    if jax.process_index() == 0:
      lock.check_writable(directory)
      stack.enter_context(lock.held(directory))
    checkpointer = saving.Checkpointer(
      directory / 'checkpoints', max_to_keep=c.max_to_keep, keep_every=c.keep_every
    )
    stack.push(functools.partial(_close, checkpointer))
    if jax.process_index() == 0:
      writer = metrics_writer.MetricsWriter(directory, tensorboard=c.tensorboard)
      stack.callback(writer.close)
    stack.enter_context(contextlib.closing(watchdog))
    stack.enter_context(errors.explaining(programs, c.batch_size))
    yield Session(
      c,
      directory,
      programs,
      metadata,
      beginning,
      checkpointer,
      saving.Saver(checkpointer, c.max_failed_saves),
      reporting.Reporter(writer, report, c.bands, log_every=c.log_every, eval_every=c.eval_every),
      monitor.Judge(c.rollback, c.max_skipped_batches),
      watchdog,
    )


def _close(checkpointer: saving.Checkpointer, kind, error, traceback) -> None:
  """Waits for the save in progress, unless something hangs: what a process waits for may then
  never come.
  """
  if not isinstance(error, (errors.PeerError, watchdog_lib.StalledError)):
    checkpointer.close()

"""Sets up a run: checks its settings, compiles its functions, opens its files."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import optax

from audiolm_jax import checks, storage
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
  """Configures a training run.

  A step is one micro-batch; `accumulate_steps` of them make one update.

  Fields:
    batch_size: examples in a global batch, over all processes.
    num_steps: steps of the whole run, including those before a resume.
    optimizer: config of the optimizer, or configs by top-level group of the parameters.
    seed: seed of the initial parameters and of the randomness in each step.
    accumulate_steps: micro-batches averaged into one update.
    ema_decay: decay per update of the average of the parameters, limited to (1 + n) / (10 + n)
      after n updates; None: no average.
    mesh: sizes of the mesh.
    slack_steps: steps that run while an older one is not checked yet; 1: a step is checked once the
      next one has started. With more, processes wait less for one another, but metrics are logged
      later, and more steps are lost when one diverges.
    log_every: steps between logs.
    eval_every: steps between evaluations; None: only at the end.
    eval_batches: batches of an evaluation.
    save_every: steps between saves; the last step is always saved.
    save_every_seconds: additional saves, this long after the previous one. With several processes,
      the clock of process 0 decides, at steps that are logged.
    max_to_keep: newest checkpoints to keep.
    keep_every: checkpoints at multiples of this step are never deleted.
    max_failed_saves: failed saves in a row (such as on a full disk) that do not stop the run.
    rollback: when to roll back after a divergence; None: a value that is not finite stops the run.
    max_skipped_batches: consecutive batches to skip because a loss or gradient is not finite,
      before the run rolls back or stops.
    slow_seconds: a step, wait for data, or save that takes longer is reported as a warning.
    timeout_seconds: one that takes this long ends the run, because something hangs.
    expected_metrics: ranges of metrics; one outside of its range is reported, and the run
      continues.
    tensorboard: whether to write TensorBoard event files.

  Raises:
    UserError: if a value is out of range.
  """

  batch_size: int
  num_steps: int
  optimizer: optimizers.Optimizer = optimizers.OptimizerConfig()
  seed: int = 0
  accumulate_steps: int = 1
  ema_decay: float | None = None
  mesh: sharding.MeshConfig = sharding.MeshConfig()
  slack_steps: int = 1
  log_every: int = 10
  eval_every: int | None = None
  eval_batches: int = 8
  save_every: int = 1000
  save_every_seconds: float | None = None
  max_to_keep: int = 3
  keep_every: int | None = None
  max_failed_saves: int = 3
  rollback: monitor.RollbackConfig | None = None
  max_skipped_batches: int = 0
  slow_seconds: float | None = 300.0
  timeout_seconds: float | None = 3600.0
  expected_metrics: tuple[monitor.ExpectedMetric, ...] = ()
  tensorboard: bool = True

  def __post_init__(self):
    counts = (
      'batch_size',
      'accumulate_steps',
      'slack_steps',
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
  """Holds the settings, functions and open files of one call of `loop.train`."""

  config: TrainConfig
  directory: storage.Path
  programs: step_lib.Programs
  metadata: Mapping[str, Any]
  beginning: resuming.Beginning
  checkpointer: saving.Checkpointer
  saver: saving.Saver
  reporter: reporting.Reporter
  monitor: monitor.Monitor
  watchdog: watchdog_lib.Watchdog
  lease: lock.Lease | None  # held by process 0


def programs(
  stage: base.Stage, config: Any, c: TrainConfig, optimizer: optax.GradientTransformation | None
) -> step_lib.Programs:
  """Returns the functions of the run.

  Raises:
    UserError: if settings contradict one another or the mesh, or `config` did not make `stage`.
  """
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
  """Returns the metadata that each checkpoint of the run stores."""
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
  directory: storage.Path,
  programs: step_lib.Programs,
  metadata: Mapping[str, Any],
  beginning: resuming.Beginning,
  report: Callable[[Mapping[str, Any]], Any],
) -> Iterator[Session]:
  """Opens a run until the block ends: lock, checkpoints, metrics files and worker thread.

  Raises:
    UserError: if another process uses the directory, or it has files that are not of a run.
    OSError: if the directory cannot be written.
  """
  with contextlib.ExitStack() as stack:
    watchdog = watchdog_lib.Watchdog(c.slow_seconds, c.timeout_seconds)
    writer = lease = None
    if jax.process_index() == 0:
      storage.check_writable(directory)
      lease = stack.enter_context(lock.held(directory))
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
      reporting.Reporter(
        writer, report, c.expected_metrics, log_every=c.log_every, eval_every=c.eval_every
      ),
      monitor.Monitor(c.rollback, c.max_skipped_batches),
      watchdog,
      lease,
    )


def _close(checkpointer: saving.Checkpointer, kind, error, traceback) -> None:
  """Waits for the save in progress, unless a process ended or hangs: that save may never end."""
  if not isinstance(error, (errors.PeerError, watchdog_lib.StalledError)):
    checkpointer.close()

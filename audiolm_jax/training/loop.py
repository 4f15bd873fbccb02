"""The one train step and the one loop; they know the contract of stages/base.py and never a
particular stage.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import checks
from audiolm_jax.errors import UserError
from audiolm_jax.stages import base
from audiolm_jax.training import bands as bands_lib
from audiolm_jax.training import (
  checkpoints,
  configs,
  errors,
  metrics_writer,
  optimizers,
  preemption,
  saver,
  sharding,
)
from audiolm_jax.training import rollback as rollback_lib
from audiolm_jax.training import step as step_lib
from audiolm_jax.training import watch as watch_lib
from audiolm_jax.training import workdir as workdir_lib


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
  rollback: rollback_lib.RollbackConfig | None = None
  # in a row that are left out, because the step was not finite, before what comes next
  max_skipped_batches: int = 0
  slow_seconds: float | None = 300.0  # a step, or a wait for data, that takes longer is a warning
  # and one that takes this long ends the run: data or another host hangs
  timeout_seconds: float | None = 3600.0
  bands: tuple[bands_lib.Band, ...] = ()  # what to expect; a run outside says so and goes on
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


# more for the first two steps: one compiles, the next may wait for hosts that still do
_COMPILE_SECONDS = 3600.0


class TrainResult(NamedTuple):
  step: int
  preempted: bool  # a signal stopped it: run again to go on
  # the last ones logged, 'eval/...' included; {} when there was nothing left to do
  metrics: dict[str, float]
  variables: base.Variables  # plain arrays on the mesh; the averaged parameters where they are kept
  # share of the wall time of this call that went into steps; goodput.jsonl says where the rest went
  goodput: float


class Summary(NamedTuple):
  """What a probe found, by name; all names get 'eval/' in front."""

  scalars: Mapping[str, float]
  audio: Mapping[str, tuple[np.ndarray, int]] = {}  # (wave_T, sample rate)
  images: Mapping[str, np.ndarray] = {}  # [height, width, 1 or 3] in [0, 1]


class Probe(NamedTuple):
  """What a program asks at every evaluation beside the stage's own metrics: numbers, sounds,
  pictures.

  measure: (params, state, batch) -> (arrays, samples), compiled by the loop.
  summarize: (mean of the arrays over the evaluation batches, samples of the first one) -> Summary,
  on the host.
  """

  measure: Callable[[base.Params, base.State, base.Batch], tuple[Any, Any]]
  summarize: Callable[[Any, Any], Summary]


def train(
  stage: base.Stage,
  config: Any,
  train_config: TrainConfig,
  *,
  make_batches: Callable[[], Iterator[Mapping[str, np.ndarray]]],
  make_eval_batches: Callable[[], Iterator[Mapping[str, np.ndarray]]] | None = None,
  workdir: str | pathlib.Path,
  fingerprints: Mapping[str, str] | None = None,
  probe: Probe | None = None,
  init_from: str | pathlib.Path | None = None,
  init_optimizer: bool = False,
  report: Callable[[Mapping[str, Any]], None] = lambda event: None,
) -> TrainResult:
  """Trains `stage` from the newest good checkpoint in `workdir`, or from the start, to `num_steps`.

  A checkpoint at that step or beyond leaves nothing to train: it is said by `report`, and no
  checkpoint changes.
  Resuming is exact: on the same mesh the losses are bitwise those of a run that was never
  interrupted.

  Args:
    stage: what `config.make()` returned.
    config: the stage's frozen config; stored in every checkpoint and compared when resuming. A
      checkpoint of one from outside of this package is loaded by
      `checkpoints.load_variables(directory, config=config)`.
    train_config: how long, how often, on what mesh.
    make_batches: returns the iterator of this process's rows of every global batch. `get_state()`
      is JSON and the same on every process (a global position), `set_state(position)` goes there.
    make_eval_batches: returns a fresh iterator of evaluation batches, of the same sizes.
    workdir: gets `checkpoints/`, `metrics.jsonl`, `goodput.jsonl`, `tensorboard/` and a lock.
    fingerprints: of what the stage was trained on (codec, k-means), by name; stored in every
    checkpoint.
    probe: what to measure at every evaluation besides.
    init_from: the workdir or checkpoint directory of a run whose params and state to begin with,
      where `workdir` has no checkpoint yet (fine-tuning). The average of the parameters begins at
      the parameters.
    init_optimizer: take over that run's optimizer state too, and with it the place in the
    learning-rate schedule.
    report: called on process 0 with {'step', 'metrics', 'steps_per_second'} at every log, and
      without the speed at every evaluation, whose metrics are named 'eval/...'; with a 'message'
      for the user besides at a rollback, an explosion, a batch that is left out, and outside of a
      band.

  Raises:
    errors.NonFiniteError: a loss or gradient was not finite; the last good state is saved.
    errors.DivergedError: a loss or gradient exploded after the last rollback that `train_config`
    allows.
    errors.OutOfMemoryError: the step does not fit.
    errors.PeerError: another process of the run is gone.
    watch.StalledError: data, a step or another process hangs; end the process without waiting for
    its threads.
    ValueError: settings that do not fit together or the checkpoint, a stage that another config
      made, a first batch that is not what the stage asks for, or a workdir in use.
    OSError: a workdir that cannot be written, or more failed saves than `train_config` allows.
  """
  if init_optimizer and init_from is None:
    raise UserError(
      'init_optimizer needs init_from: name the run whose optimizer state to take over'
    )
  run = _Run(
    stage,
    config,
    train_config,
    pathlib.Path(workdir),
    dict(fingerprints or {}),
    probe,
    init_from,
    init_optimizer,
    report,
  )
  with run.open(), preemption.stop_signal() as stop:
    return run.go(make_batches(), make_eval_batches, stop)


class _Run:
  """The pieces of one call of `train`, which its steps share."""

  def __init__(
    self,
    stage,
    config,
    train_config,
    directory,
    fingerprints,
    probe,
    init_from,
    init_optimizer,
    report,
  ):
    if train_config.save_every_seconds is not None and jax.process_count() > 1:
      raise UserError('save_every_seconds needs a single process (clocks differ): use save_every')
    self.train_config, self.directory, self._report = train_config, directory, report
    self.watch = watch_lib.Watch(train_config.slow_seconds, train_config.timeout_seconds)
    self.init_from, self.init_optimizer = init_from, init_optimizer
    self.mesh = sharding.make_mesh(train_config.mesh)
    sharding.check_batch_size(train_config.batch_size, self.mesh)
    self.metadata = {
      'config': configs.describe(config),
      'training': configs.describe(train_config),
      'fingerprints': fingerprints,
      'init_from': None if init_from is None else str(init_from),
    }
    c = train_config
    self.init, self.shapes, self.shardings = step_lib.make_init(
      stage,
      c.optimizer,
      self.mesh,
      accumulate_steps=c.accumulate_steps,
      keep_ema=c.ema_decay is not None,
    )
    step_lib.check_made_by(config, stage, self.shapes)
    self.train_step = step_lib.make_train_step(
      stage,
      c.optimizer,
      self.mesh,
      self.shardings,
      seed=c.seed,
      accumulate_steps=c.accumulate_steps,
      ema_decay=c.ema_decay,
    )
    self.eval_step = step_lib.make_eval_step(stage, self.mesh)
    self.probe = probe or Probe(lambda *_: ((), ()), lambda *_: Summary({}))
    self.measure = jax.jit(self.probe.measure, out_shardings=sharding.replicated(self.mesh))
    self.guard = rollback_lib.Guard(c.rollback, c.max_skipped_batches)
    self.last_metrics: dict[str, float] = {}
    self.checked: set[str] = set()  # kinds of batches whose first one has been looked at
    self.stage = stage
    # that were done before, and after the checkpoint that this run goes on from
    self.lost_steps = 0

  @contextlib.contextmanager
  def open(self):
    """Holds the run directory, its checkpoints and its metrics files."""
    primary = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
      if primary:
        workdir_lib.probe(self.directory)
        stack.enter_context(workdir_lib.locked(self.directory))
      self.checkpoints = checkpoints.Checkpointer(
        self.directory / 'checkpoints',
        max_to_keep=self.train_config.max_to_keep,
        keep_every=self.train_config.keep_every,
      )
      stack.push(self._close_checkpoints)
      self.saver = saver.Saver(self.checkpoints, self.train_config.max_failed_saves)
      self.writer = None
      if primary:
        self.writer = metrics_writer.MetricsWriter(
          self.directory, tensorboard=self.train_config.tensorboard
        )
        stack.callback(self.writer.close)
      yield

  def _close_checkpoints(self, kind, error, traceback) -> None:
    """Waits for the save in progress, unless something hangs: what a process waits for may then
    never come.
    """
    if not isinstance(error, (errors.PeerError, watch_lib.StalledError)):
      self.checkpoints.close()

  def go(self, batches, make_eval_batches, stop) -> TrainResult:
    """Restores and runs the loop, and after each rollback does so again.

    A rollback is as reproducible as a step: killed before its next save, a run repeats what led to
    it, and it. Only a save that a signal or the clock asked for is one more to go back to, which an
    undisturbed run does not have.
    """
    message, position = None, None
    while True:
      with self.watch.phase('init'):
        train_state, start = self._restore(batches)
      if start >= self.train_config.num_steps:
        return self._nothing_left(train_state, start)
      if message is not None:
        batches.set_state(position)
        self._publish(start, self.guard.metrics(), None, message=f'{message}, back to step {start}')
      try:
        return self._loop(train_state, start, batches, make_eval_batches, stop)
      except jax.errors.JaxRuntimeError as error:
        raise errors.explained(
          error, self.shapes, self.shardings, self.mesh, self.train_config.batch_size
        ) from error
      except (
        rollback_lib.Diverged
      ) as diverged:  # ends with this block, and with it the state that went wrong
        del train_state
        with self.watch.phase('checkpoint'):
          self.saver.wait_once()
        message, position = f'{diverged}: {self.guard.roll_back()}', diverged.after

  def _nothing_left(self, train_state, start: int) -> TrainResult:
    """Returns what was restored, or begun, where it is at the last step already or beyond."""
    num_steps = self.train_config.num_steps
    if self.writer is not None:
      message = f'the run is at step {start}, num_steps={num_steps}: nothing to train'
      self._report({'step': start, 'metrics': {}, 'message': message})
    return self._result(train_state, start, preempted=False)

  def _loop(self, train_state, start: int, batches, make_eval_batches, stop) -> TrainResult:
    """The loop. Its order is law: restore; then each step: evaluate?, save?, next batch, train
    step, log the previous.

    Evaluation comes before saving so that a resumed run need not repeat it; saving comes before the
    next batch so that the data position belongs to the state; the previous step's metrics are
    logged after this one's dispatch so that the device never waits for the host.
    """
    c, watch = self.train_config, self.watch
    # (step, metrics, data positions before and after it) of the step that may still be running
    pending = None
    saved_at = time.monotonic()
    self._timer, self._start = (time.monotonic(), start), start
    step = start
    while True:
      evaluate = make_eval_batches is not None and (
        step == c.num_steps or (c.eval_every is not None and step % c.eval_every == 0)
      )
      last = step == c.num_steps
      preempted = not last and stop(step)
      late = (
        c.save_every_seconds is not None and time.monotonic() - saved_at >= c.save_every_seconds
      )
      save = step > start and (
        last or preempted or late or self.saver.due() or step % c.save_every == 0
      )
      try:
        if evaluate or save or last:  # what is evaluated or saved must be known to be good
          pending = self._log(pending, train_state)
        if evaluate and step > start:
          with watch.phase('evaluation'):
            self._evaluate(step, train_state, make_eval_batches())
        if save:
          self._prove(step, train_state, batch, batches.get_state())
          self._save(step, train_state, batches.get_state(), whole=last or preempted)
          saved_at = time.monotonic()
        if last or preempted:
          break
        before = batches.get_state()
        batch = self._next_batch(step, batches, before, pending, train_state)
        after = batches.get_state()
        advance = functools.partial(
          self.train_step, train_state, batch, np.int32(step), np.float32(self.guard.rate_scale)
        )
        phase = 'compile' if step == start and pending is None else watch_lib.PRODUCTIVE
        train_state, metrics = watch.bounded(phase, step, advance, self._allowance(step))
        self._log(pending, train_state)
        pending = (step, metrics, before, after)
        step += 1
      except (
        rollback_lib.Skipped
      ) as skipped:  # the state is that before the skipped step: on with the batch behind it
        batches.set_state(skipped.after)
        step, pending = skipped.step, None
    return self._result(train_state, step, preempted)

  def _result(self, train_state, step: int, preempted: bool) -> TrainResult:
    params = train_state.params if train_state.ema_params is None else train_state.ema_params
    variables = base.Variables(params, train_state.state)
    return TrainResult(
      step, preempted, self.last_metrics, variables, self.watch.summary()['goodput']
    )

  def _global_batch(self, batch: Mapping[str, np.ndarray], kind: str) -> dict[str, jax.Array]:
    """Makes global arrays of this process's rows; the first batch of a kind must be what the stage
    asks for.
    """
    if kind not in self.checked:
      base.check_batch(self.stage.batch, batch, self.train_config.batch_size // jax.process_count())
      self.checked.add(kind)
    return sharding.global_batch(batch, self.mesh)

  def _next_batch(self, step: int, batches, position, pending, train_state) -> dict[str, jax.Array]:
    """Returns the next global batch; where none comes in time, a run of one process saves before it
    gives up.
    """
    try:
      batch = self.watch.bounded('data', step, lambda: next(batches, None))
    except watch_lib.StalledError:
      if jax.process_count() == 1:
        self._log(pending, train_state)
        self._save(step, train_state, position, whole=True)
      raise
    if batch is None:
      raise UserError(
        f'make_batches has no batch for step {step} of {self.train_config.num_steps}: repeat the data'
      )
    return self._global_batch(batch, 'training')

  def _restore(self, batches) -> tuple[step_lib.TrainState, int]:
    targets = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.shapes, self.shardings
    )
    restored = self.checkpoints.restore(_parts(targets), self.metadata['config'])
    self.guard.set_state(restored and restored.metadata.get('guard'))
    if restored is None:
      return self._begin(targets), 0
    if restored.metadata['fingerprints'] != self.metadata['fingerprints']:
      raise UserError(
        f'checkpoint was trained with {restored.metadata["fingerprints"]}, now {self.metadata["fingerprints"]}: '
        'use the same codec and k-means, or another workdir'
      )
    batches.set_state(restored.data_position)
    self.lost_steps += max(self._last_logged() - restored.step, 0)
    step = jax.device_put(np.int32(restored.step), self.shardings.step)
    return step_lib.TrainState(step=step, **restored.parts), restored.step

  def _last_logged(self) -> int:
    return max(metrics_writer.read(self.directory), default=0) if self.writer is not None else 0

  def _begin(self, targets: step_lib.TrainState) -> step_lib.TrainState:
    """Returns the state before step 0: drawn from the seed, but for what another run brings."""
    train_state = self.init(jax.random.key(self.train_config.seed))
    if self.init_from is None:
      return train_state
    names = ('params', 'state', 'opt_state') if self.init_optimizer else ('params', 'state')
    parts = checkpoints.load_parts(self.init_from, {name: getattr(targets, name) for name in names})
    if train_state.ema_params is not None:
      parts['ema_params'] = jax.tree.map(jnp.copy, parts['params'])
    return train_state._replace(**parts)

  def _prove(self, step: int, train_state: step_lib.TrainState, batch, data_position) -> None:
    """Raises Diverged, or stops the run, where the update of the last batch made its loss explode.

    A step's own loss is that before its update: a checkpoint right after it would be one to go back
    to in vain.
    """
    if self.train_config.rollback is None:
      return
    metrics = self.watch.bounded(
      watch_lib.PRODUCTIVE,
      step,
      lambda: jax.device_get(self.eval_step(train_state.params, train_state.state, batch)),
      _COMPILE_SECONDS,
    )
    loss = float(metrics['loss'])
    fault = self.guard.explosion({'loss': loss}) if np.isfinite(loss) else f'loss {loss} not finite'
    if fault:
      self._leave(
        step, train_state, data_position, data_position, f'before its save {fault}', applied=True
      )

  def _save(
    self, step: int, train_state: step_lib.TrainState, data_position, *, whole: bool = False
  ) -> None:
    """Starts a save; `whole`: returns when one is."""
    metadata = self.metadata | {'guard': self.guard.get_state()}
    save = functools.partial(self.saver.save, step, _parts(train_state), data_position, metadata)
    self.watch.bounded(
      'checkpoint', step, lambda: (save(), self.saver.settle(save) if whole else None)
    )
    if self.writer is not None:
      self.watch.write(self.directory, step=step, lost_steps=self.lost_steps)

  def _allowance(self, step: int) -> float:
    return _COMPILE_SECONDS if step - self._start < 2 else 0.0

  def _log(self, pending, train_state) -> None:
    """Fetches a step's metrics; raises Diverged, or stops the run, when they are wrong; logs them
    when it is time.
    """
    if pending is None:
      return
    step, metrics, before, after = pending
    metrics = self.watch.bounded(
      watch_lib.PRODUCTIVE, step, lambda: jax.device_get(metrics), self._allowance(step)
    )
    metrics = {name: float(value) for name, value in metrics.items()}
    applied = bool(metrics.pop('applied'))
    fault = self.guard.fault(metrics, applied)
    if fault and not applied and (skip := self.guard.skip()):
      self._publish(
        step, self.guard.metrics(), None, message=f'step {step}, batch at {before}: {fault}: {skip}'
      )
      raise rollback_lib.Skipped(step, after)
    if fault and (self.train_config.rollback is not None or not applied):
      self._leave(step, train_state, before, after, fault, applied)
    if fault:
      self.guard.accept(metrics)
      self._publish(step + 1, metrics, None, message=f'step {step}, batch at {before}: {fault}')
    done = step + 1
    if done % self.train_config.log_every == 0 or done == self.train_config.num_steps:
      now, (since, since_step) = time.monotonic(), self._timer
      self._timer = (now, done)
      self._publish(
        done, metrics | self.guard.metrics(), (done - since_step) / max(now - since, 1e-9)
      )

  def _leave(
    self, step: int, train_state: step_lib.TrainState, before, after, fault: str, applied: bool
  ) -> NoReturn:
    """Goes back where the guard still may, else stops the run with what it is to be told.

    before, after: data positions on both sides of the batch that led astray.
    """
    if self.guard.rollbacks_left:
      raise rollback_lib.Diverged(step, fault, after)
    advice = 'Lower the learning rate, clip gradients, or look at the batch'
    if self.guard.rollbacks:
      fault += f', after {self.guard.rollbacks} rollbacks'
    if applied:
      self.saver.wait_once()
      raise errors.DivergedError(
        f'step {step}: {fault}; {self.directory} keeps the checkpoints before. {advice}'
      )
    # The step left the state as it was, and so did every later one: save it with the data position
    # before the step.
    self._save(step, train_state, before, whole=True)
    raise errors.NonFiniteError(
      f'step {step}: {fault}; the state before it is saved as step {step} in {self.directory}. {advice}'
    )

  def _evaluate(self, step: int, train_state: step_lib.TrainState, batches) -> None:
    now, (since, since_step) = time.monotonic(), self._timer
    params = train_state.params if train_state.ema_params is None else train_state.ema_params
    sums, samples, count = None, None, 0
    for _, batch in zip(range(self.train_config.eval_batches), batches):
      batch = self._global_batch(batch, 'evaluation')
      arrays, found = self.measure(params, train_state.state, batch)
      values = self.eval_step(params, train_state.state, batch), arrays
      sums = values if sums is None else jax.tree.map(jnp.add, sums, values)
      samples = found if samples is None else samples
      count += 1
    if not count:
      raise UserError('make_eval_batches gave no batch: it needs at least one')
    metrics, arrays = jax.tree.map(
      lambda x: np.asarray(x, np.float64) / count, jax.device_get(sums)
    )
    summary = self.probe.summarize(arrays, jax.device_get(samples))
    metrics = {
      f'eval/{name}': float(value) for name, value in (metrics | dict(summary.scalars)).items()
    }
    self._publish(step, metrics, None)
    if self.writer is not None:
      for name, (wave_T, sample_rate) in summary.audio.items():
        self.writer.audio(step, f'eval/{name}', wave_T, sample_rate)
      for name, image_HWC in summary.images.items():
        self.writer.image(step, f'eval/{name}', image_HWC)
    self._timer = (since + time.monotonic() - now, since_step)  # evaluation is no training time

  def _publish(
    self,
    step: int,
    metrics: dict[str, float],
    steps_per_second: float | None,
    message: str | None = None,
  ) -> None:
    c = self.train_config
    outside, lines = bands_lib.judge(
      c.bands, step, metrics, log_every=c.log_every, eval_every=c.eval_every
    )
    metrics = metrics | outside
    self.last_metrics = self.last_metrics | metrics
    if self.writer is None:
      return
    speed = {} if steps_per_second is None else {'steps_per_second': steps_per_second}
    self.writer.scalars(step, metrics | speed)
    lines = lines if message is None else [message, *lines]
    self._report(
      {'step': step, 'metrics': metrics, **speed} | ({'message': '\n'.join(lines)} if lines else {})
    )


_PARTS = tuple(name for name in step_lib.TrainState._fields if name != 'step')


def _parts(train_state: step_lib.TrainState) -> dict[str, Any]:
  """Returns what a checkpoint holds of a train state: all but the step, which is the checkpoint's
  name.
  """
  return {name: getattr(train_state, name) for name in _PARTS}

"""Trains any stage that follows the contract in stages/base.py."""

import collections
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
import optax

from audiolm_jax import storage
from audiolm_jax.errors import UserError
from audiolm_jax.stages import base
from audiolm_jax.training import errors, evaluation, preemption, processes, resuming, sharding
from audiolm_jax.training import session as session_lib
from audiolm_jax.training import step as step_lib
from audiolm_jax.training import watchdog as watchdog_lib
from audiolm_jax.training.monitor import Action, Verdict
from audiolm_jax.training.session import Session, TrainConfig


class TrainResult(NamedTuple):
  """Holds the result of `train`.

  Fields:
    step: number of steps done, including those of earlier calls.
    preempted: whether a signal or `report` stopped the run before `num_steps`; call again to
      continue.
    metrics: last logged value of each metric, including 'eval/...'; {} if there was nothing to do.
    variables: plain arrays on the mesh; params are the averaged ones if the run keeps an average.
    goodput: share of the wall time of this call spent in steps; goodput.jsonl has the other shares.
  """

  step: int
  preempted: bool
  metrics: dict[str, float]
  variables: base.Variables
  goodput: float


# Added to the timeouts of the first steps: the first one compiles, and those that start before it
# is checked may wait for hosts that still compile.
_COMPILE_SECONDS = 3600.0


def train(
  stage: base.Stage,
  config: Any,
  train_config: TrainConfig,
  *,
  make_batches: Callable[[], Iterator[Mapping[str, np.ndarray]]],
  make_eval_batches: Callable[[], Iterable[Mapping[str, np.ndarray]]] | None = None,
  workdir: str | os.PathLike,
  fingerprints: Mapping[str, str] | None = None,
  measurement: evaluation.Measurement = evaluation.NO_MEASUREMENT,
  init_from: str | os.PathLike | None = None,
  init_optimizer: bool = False,
  optimizer: optax.GradientTransformation | None = None,
  report: Callable[[Mapping[str, Any]], Any] = lambda event: None,
) -> TrainResult:
  """Trains `stage` to `num_steps`, from the newest undamaged checkpoint in `workdir` or the start.

  The order of the loop is essential:

  - Evaluation comes before the save, so that a resumed run does not repeat it.
  - The save comes before the next batch is fetched, so that state and data position match.
  - A step is checked after the next `slack_steps` have started, so that the device never waits for
    the host, but before its state is evaluated or saved.

  Resuming is exact: on the same mesh, losses are bitwise equal to those of an uninterrupted run. So
  are rollbacks: a run killed between a rollback and the next save repeats it. The only exceptions
  are saves caused by a signal or by `save_every_seconds`, which a rollback may return to. If the
  newest checkpoint is at `num_steps` or later, `report` gets a message and no checkpoint changes.

  Args:
    stage: result of `config.make()`.
    config: frozen config of the stage; stored in each checkpoint and compared when resuming. If its
      class is not in this package, load the checkpoint by
      `checkpoints.load_variables(directory, config=config)`.
    train_config: settings of the run.
    make_batches: returns an iterator over this process's rows of each global batch. Its method
      `get_state()` returns the global data position, as JSON and the same on all processes;
      `set_state(position)` moves to a position.
    make_eval_batches: returns the evaluation batches, of the same shapes; None: no evaluation.
    workdir: folder for `checkpoints/`, `metrics.jsonl`, `goodput.jsonl`, `tensorboard/` and a lock,
      on a disk or in a bucket (gs://bucket/folder).
    fingerprints: fingerprints by name of the models that made the training data (codec, k-means);
      stored in each checkpoint and compared when resuming.
    measurement: additional measurements at each evaluation.
    init_from: workdir or checkpoint directory of a run whose params and state are the initial ones
      (fine-tuning); ignored if `workdir` has a checkpoint. An average of the parameters starts at
      these parameters.
    init_optimizer: whether to take the optimizer state from `init_from` too, and with it the
      position in the learning-rate schedule.
    optimizer: any optax transformation, instead of `train_config.optimizer`. Pass the same one when
      resuming: only the shapes of its state are compared.
    report: called on process 0 with {'step', 'metrics', 'steps_per_second'} at each log, and
      without 'steps_per_second' at each evaluation, whose metrics are named 'eval/...'. At a
      rollback, explosion, skipped batch or metric outside of its range there is also a 'message'
      for the user. If it returns a true value, the run finishes the steps in progress, saves and
      returns, as after a signal.

  Returns:
    Step, metrics and variables at the end.

  Raises:
    errors.NonFiniteError: if a loss or gradient is not finite; the state before it is saved.
    errors.DivergedError: if a loss or gradient explodes after the last rollback that
      `train_config` allows.
    errors.OutOfMemoryError: if the step does not fit into device memory.
    errors.PeerError: if another process of the run ended.
    watchdog.StalledError: if data, a step or another process hangs; exit the process without
      joining its threads.
    UserError: if settings contradict one another or the checkpoint; if `config` did not make
      `stage`; if batches lack get_state and set_state; if the first batch does not match
      `stage.batch`; if the workdir is in use, or another process took it over (`lock.LostError`).
    OSError: if the workdir cannot be written, or more saves in a row fail than `train_config`
      allows.
  """
  beginning = resuming.Beginning(train_config.seed, init_from, init_optimizer)
  programs = session_lib.programs(stage, config, train_config, optimizer)
  evaluate = evaluation.make(programs.eval_step, measurement, programs.mesh)
  metadata = session_lib.metadata(config, train_config, fingerprints, beginning, optimizer)
  batches = make_batches()
  resuming.check_iterator(batches)
  globally = functools.partial(_globally, stage.batch, train_config.batch_size, programs.mesh)
  stream = globally(batches)
  evaluates = make_eval_batches is not None
  opened = session_lib.opened(
    train_config, storage.path(workdir), programs, metadata, beginning, report
  )

  with opened as session, preemption.stop_signal() as signalled:
    train_state, start = _resume(session, batches)
    if start >= train_config.num_steps:
      return _nothing_left(session, train_state, start)
    step, taken, batch = start, collections.deque(), None
    while True:
      due = _due(session, step, start, evaluates, signalled)
      verdict, checked = _check_steps(
        session, taken, start, 0 if any(due) else train_config.slack_steps
      )
      if due.save and verdict.action is Action.GO_ON:
        verdict, checked = _try_state(session, step, train_state, batch, batches.get_state())
      match verdict.action:
        case Action.STOP:
          _stop(session, verdict, checked, train_state)
        case Action.ROLL_BACK:
          del train_state  # frees its memory before another is restored
          train_state, start = _roll_back(session, verdict, checked, batches)
          step, batch = start, None
          taken.clear()
          continue
        case Action.SKIP:
          batches.set_state(checked.after)
          step, batch = checked.number, None
          taken.clear()
          continue
      if due.evaluate:
        _evaluate(session, step, train_state, evaluate, globally(iter(make_eval_batches())))
      if due.save:
        _save(session, step, train_state, batches.get_state(), whole=due.leave)
      if due.leave:
        return _result(session, train_state, step)
      before = batches.get_state()
      batch = _next_batch(session, step, stream, before, taken, train_state)
      train_state, metrics = _advance(session, step, start, train_state, batch)
      taken.append(_Taken(step, metrics, before, batches.get_state()))
      step += 1


class _Due(NamedTuple):
  """Says what the loop does at a step before it starts the next one."""

  evaluate: bool
  save: bool
  leave: bool


class _Taken(NamedTuple):
  """Holds a step that was started and may still be running.

  Fields:
    number: number of the step, from 0.
    metrics: metrics of the step, perhaps not computed yet.
    before: data position before its batch.
    after: data position after its batch.
    applied: whether the step changed the train state; known once it is checked.
  """

  number: int
  metrics: Mapping[str, Any]
  before: Any
  after: Any
  applied: bool = True


def _globally(
  features: Mapping[str, base.Feature],
  batch_size: int,
  mesh: jax.sharding.Mesh,
  batches: Any,  # an iterator; it needs no __iter__
) -> Iterator[dict[str, jax.Array]]:
  """Yields global batches, given the rows of this process.

  Raises:
    UserError: if the first batch does not match `features`.
  """
  checked = False
  for batch in iter(lambda: next(batches, None), None):
    if not checked:
      base.check_batch(features, batch, batch_size // jax.process_count())
      checked = True
    yield sharding.global_batch(batch, mesh)


def _resume(session: Session, batches) -> tuple[step_lib.TrainState, int]:
  """Returns the train state that the run starts or resumes from, and its step."""
  with session.watchdog.phase('init'):
    train_state, checkpoint = resuming.resume(
      session.checkpointer, session.programs, session.metadata, session.beginning
    )
  session.monitor.set_state(checkpoint and checkpoint.metadata.get('guard'))
  step = 0 if checkpoint is None else checkpoint.step
  if checkpoint is not None:
    batches.set_state(checkpoint.data_position)
    session.watchdog.lost_steps += max(session.reporter.last_logged() - step, 0)
  session.reporter.start_clock(step)
  return train_state, step


def _roll_back(
  session: Session, verdict: Verdict, checked: _Taken, batches
) -> tuple[step_lib.TrainState, int]:
  """Restores the newest checkpoint, or the initial state; the data continue after `checked`.

  Returns:
    Train state and its step.
  """
  with session.watchdog.phase('checkpoint'):
    session.saver.wait()
  train_state, step = _resume(session, batches)
  batches.set_state(checked.after)
  message = f'step {checked.number}: {verdict.reason}, back to step {step}'
  session.reporter.publish(step, session.monitor.metrics(), message)
  return train_state, step


def _due(
  session: Session, step: int, start: int, evaluates: bool, signalled: Callable[[int], bool]
) -> _Due:
  """Returns what to do at `step`; at `start` nothing is evaluated or saved."""
  c = session.config
  last = step == c.num_steps
  leave = last or signalled(step) or session.reporter.asked_to_stop
  if step == start:
    return _Due(False, False, leave)
  evaluate = evaluates and (last or (c.eval_every is not None and step % c.eval_every == 0))
  save = _late(session, step) or leave or session.saver.due() or step % c.save_every == 0
  return _Due(evaluate, save, leave)


def _late(session: Session, step: int) -> bool:
  """Returns whether `save_every_seconds` have passed since the last save, by process 0's clock.

  Several processes ask only at steps that are logged, because all have to wait for the answer.
  """
  c, alone = session.config, jax.process_count() == 1
  if c.save_every_seconds is None or not (alone or step % c.log_every == 0):
    return False
  late = lambda: session.saver.seconds_since_save >= c.save_every_seconds
  if alone:
    return late()
  ask = functools.partial(processes.decided, late)
  return bool(session.watchdog.bounded('checkpoint', step, ask))


def _check_steps(
  session: Session, taken: collections.deque[_Taken], start: int, keep: int
) -> tuple[Verdict, _Taken | None]:
  """Waits for all steps in `taken` except the newest `keep`, checks and publishes them in order.

  Returns:
    Verdict and step of the first step whose action is not GO_ON; otherwise GO_ON and None.
  """
  while len(taken) > keep:
    step = taken.popleft()
    metrics = session.watchdog.bounded(
      watchdog_lib.PRODUCTIVE,
      step.number,
      functools.partial(jax.device_get, step.metrics),
      _allowance(session, step.number, start),
    )
    metrics = {name: float(value) for name, value in metrics.items()}
    step = step._replace(applied=bool(metrics.pop('applied')))
    verdict = session.monitor.step(metrics, step.applied)
    _publish(session, step, metrics, verdict)
    if verdict.action is not Action.GO_ON:
      return verdict, step
  return Verdict(Action.GO_ON), None


def _publish(session: Session, step: _Taken, metrics: dict[str, float], verdict: Verdict) -> None:
  """Publishes the metrics of a checked step if a log is due, and the reason of its verdict."""
  reporter, monitor, c = session.reporter, session.monitor, session.config
  message = f'step {step.number}, batch at {step.before}: {verdict.reason}'
  if verdict.action is Action.SKIP:
    reporter.publish(step.number, monitor.metrics(), message)
  if verdict.action is not Action.GO_ON:
    return
  done = step.number + 1
  if verdict.reason:
    reporter.publish(done, metrics, message)
  if done % c.log_every == 0 or done == c.num_steps:
    reporter.training(done, metrics | monitor.metrics())


def _try_state(
  session: Session, step: int, train_state: step_lib.TrainState, batch, data_position
) -> tuple[Verdict, _Taken | None]:
  """Checks a state before its save, by its loss on the last batch, if rollback is on."""
  if not session.monitor.tries_states or batch is None:
    return Verdict(Action.GO_ON), None
  metrics = session.watchdog.bounded(
    watchdog_lib.PRODUCTIVE,
    step,
    lambda: jax.device_get(
      session.programs.eval_step(train_state.params, train_state.state, batch)
    ),
    _COMPILE_SECONDS,
  )
  tried = _Taken(step, metrics, data_position, data_position)
  return session.monitor.state(float(metrics['loss'])), tried


def _stop(
  session: Session, verdict: Verdict, checked: _Taken, train_state: step_lib.TrainState
) -> NoReturn:
  """Stops a diverged run: saves the state before the step if it was not applied, and raises."""
  fault, directory = f'step {checked.number}: {verdict.reason}', session.directory
  advice = 'Lower the learning rate, clip gradients, or look at the batch'
  if checked.applied:
    session.saver.wait()
    raise errors.DivergedError(f'{fault}; earlier checkpoints remain in {directory}. {advice}')
  # Neither this step nor any later one changed the state: save it with the data position before
  # this step.
  _save(session, checked.number, train_state, checked.before, whole=True)
  raise errors.NonFiniteError(
    f'{fault}; the state before it is saved as step {checked.number} in {directory}. {advice}'
  )


def _evaluate(
  session: Session, step: int, train_state: step_lib.TrainState, evaluate, batches
) -> None:
  """Evaluates the averaged parameters, or the parameters without an average, and publishes."""
  limited = itertools.islice(batches, session.config.eval_batches)
  with session.watchdog.phase('evaluation'), session.reporter.clock_stopped():
    params = train_state.params if train_state.ema_params is None else train_state.ema_params
    session.reporter.evaluation(step, *evaluate(params, train_state.state, limited))


def _save(
  session: Session, step: int, train_state: step_lib.TrainState, data_position, *, whole: bool
) -> None:
  """Starts a save; if `whole`, waits until it is complete."""

  def save():
    if session.lease is not None:
      session.lease.check()
    session.reporter.flush()  # no line is missing that came before a checkpoint
    session.saver.save(
      step,
      resuming.parts(train_state),
      data_position,
      {**session.metadata, 'guard': session.monitor.get_state()},
      whole=whole,
    )

  session.watchdog.bounded('checkpoint', step, save)
  if jax.process_index() == 0:
    session.watchdog.write(session.directory, step)


def _next_batch(session: Session, step: int, stream, position, taken, train_state):
  """Returns the next global batch.

  If the data source hangs, a run of a single process saves before the StalledError is raised.

  Raises:
    UserError: if the iterator is exhausted.
  """
  try:
    batch = session.watchdog.bounded('data', step, lambda: next(stream, None))
  except watchdog_lib.StalledError:
    if jax.process_count() == 1:
      verdict, _ = _check_steps(session, taken, step, 0)
      if verdict.action is Action.GO_ON:
        _save(session, step, train_state, position, whole=True)
    raise
  if batch is None:
    raise UserError(
      f'make_batches ended before step {step} of {session.config.num_steps}: repeat the data'
    )
  return batch


def _advance(session: Session, step: int, start: int, train_state, batch):
  """Starts a step and returns (next train state, metrics) without waiting for their values."""
  advance = functools.partial(
    session.programs.train_step,
    train_state,
    batch,
    np.int32(step),
    np.float32(session.monitor.rate_scale),
  )
  phase = 'compile' if step == start else watchdog_lib.PRODUCTIVE
  return session.watchdog.bounded(phase, step, advance, _allowance(session, step, start))


def _allowance(session: Session, step: int, start: int) -> float:
  return _COMPILE_SECONDS if step - start <= session.config.slack_steps else 0.0


def _result(session: Session, train_state: step_lib.TrainState, step: int) -> TrainResult:
  params = train_state.params if train_state.ema_params is None else train_state.ema_params
  return TrainResult(
    step,
    step < session.config.num_steps,
    session.reporter.last,
    base.Variables(params, train_state.state),
    session.watchdog.summary()['goodput'],
  )


def _nothing_left(session: Session, train_state: step_lib.TrainState, step: int) -> TrainResult:
  """Returns the result of a run whose start is at or beyond the last step."""
  num_steps = session.config.num_steps
  session.reporter.say(step, f'the run is at step {step}, num_steps={num_steps}: nothing to train')
  return _result(session, train_state, step)

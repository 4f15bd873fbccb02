"""The one loop that trains any stage; it knows the contract of stages/base.py and no particular
stage.
"""

import collections
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
import optax

from audiolm_jax.errors import UserError
from audiolm_jax.stages import base
from audiolm_jax.training import errors, evaluation, preemption, resuming, sharding
from audiolm_jax.training import session as session_lib
from audiolm_jax.training import step as step_lib
from audiolm_jax.training import watchdog as watchdog_lib
from audiolm_jax.training.monitor import Action, Verdict
from audiolm_jax.training.session import Session, TrainConfig


class TrainResult(NamedTuple):
  step: int
  preempted: bool  # a signal or `report` stopped it before `num_steps`: run again to go on
  # the last ones logged, 'eval/...' included; {} when there was nothing left to do
  metrics: dict[str, float]
  variables: base.Variables  # plain arrays on the mesh; the averaged parameters where they are kept
  # share of the wall time of this call that went into steps; goodput.jsonl says where the rest went
  goodput: float


# more for the first two steps: one compiles, the next may wait for hosts that still do
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
  probe: evaluation.Probe | None = None,
  init_from: str | os.PathLike | None = None,
  init_optimizer: bool = False,
  optimizer: optax.GradientTransformation | None = None,
  report: Callable[[Mapping[str, Any]], Any] = lambda event: None,
) -> TrainResult:
  """Trains `stage` from the newest good checkpoint in `workdir`, or from the start, to `num_steps`.

  The order of the loop is law. It evaluates before it saves, so that a resumed run need not
  evaluate again; it saves before it asks for the next batch, so that the data position belongs to
  the state; it judges a step after the next one was started, so that the device never waits for the
  host, but before its state is evaluated or saved.

  Resuming is exact: on the same mesh the losses are bitwise those of a run that was never
  interrupted. A rollback is as reproducible as a step: killed before its next save, a run repeats
  what led to it, and it; only a save that a signal or the clock asked for is one more to go back
  to. A checkpoint at `num_steps` or beyond leaves nothing to train: `report` gets a message, and no
  checkpoint changes.

  Args:
    stage: what `config.make()` returned.
    config: the stage's frozen config; stored in every checkpoint and compared when resuming. A
      checkpoint of one from outside of this package is loaded by
      `checkpoints.load_variables(directory, config=config)`.
    train_config: how long, how often, on what mesh.
    make_batches: returns the iterator of this process's rows of every global batch. `get_state()`
      is JSON and the same on every process (a global position), `set_state(position)` goes there.
    make_eval_batches: returns the evaluation batches, of the same sizes.
    workdir: gets `checkpoints/`, `metrics.jsonl`, `goodput.jsonl`, `tensorboard/` and a lock.
    fingerprints: of what the stage was trained on (codec, k-means), by name; stored in every
    checkpoint.
    probe: what to measure at every evaluation besides.
    init_from: the workdir or checkpoint directory of a run whose params and state to begin with,
      where `workdir` has no checkpoint yet (fine-tuning). The average of the parameters begins at
      the parameters.
    init_optimizer: take over that run's optimizer state too, and with it the place in the
      learning-rate schedule.
    optimizer: any optax transformation, in place of `train_config.optimizer`. Give the same one
      when resuming: of it only the shapes of its state are compared.
    report: called on process 0 with {'step', 'metrics', 'steps_per_second'} at every log, and
      without the speed at every evaluation, whose metrics are named 'eval/...'; also with a
      'message' for the user at a rollback, an explosion, a skipped batch, and outside of a band.
      Where it returns a true value, the run saves and ends as after a signal, once the steps that
      have begun are done.

  Raises:
    errors.NonFiniteError: a loss or gradient was not finite; the last good state is saved.
    errors.DivergedError: a loss or gradient exploded after the last rollback that `train_config`
    allows.
    errors.OutOfMemoryError: the step does not fit.
    errors.PeerError: another process of the run is gone.
    watchdog.StalledError: data, a step or another process hangs; end the process without waiting for
    its threads.
    ValueError: settings that do not fit together or the checkpoint, a stage that another config
      made, batches without get_state and set_state, a first batch that is not what the stage asks
      for, or a workdir in use.
    OSError: a workdir that cannot be written, or more failed saves than `train_config` allows.
  """
  beginning = resuming.Beginning(train_config.seed, init_from, init_optimizer)
  programs = session_lib.programs(stage, config, train_config, optimizer)
  evaluate = evaluation.make(programs.eval_step, probe or evaluation.NO_PROBE, programs.mesh)
  metadata = session_lib.metadata(config, train_config, fingerprints, beginning, optimizer)
  batches = make_batches()
  resuming.check_iterator(batches)
  globally = functools.partial(_globally, stage.batch, train_config.batch_size, programs.mesh)
  stream = globally(batches)
  evaluates = make_eval_batches is not None
  opened = session_lib.opened(
    train_config, pathlib.Path(workdir), programs, metadata, beginning, report
  )

  with opened as session, preemption.stop_signal() as signalled:
    train_state, start = _resume(session, batches)
    if start >= train_config.num_steps:
      return _nothing_left(session, train_state, start)
    step, taken, batch = start, collections.deque(), None
    while True:
      due = _due(session, step, start, evaluates, signalled)
      verdict, judged = _judge(session, taken, start, 0 if any(due) else 1)
      if due.save and verdict.action is Action.GO_ON:
        verdict, judged = _try_state(session, step, train_state, batch, batches.get_state())
      match verdict.action:
        case Action.STOP:
          _stop(session, verdict, judged, train_state)
        case Action.ROLL_BACK:
          del train_state  # before another is restored
          train_state, start = _roll_back(session, verdict, judged, batches)
          step, batch = start, None
          taken.clear()
          continue
        case Action.SKIP:
          batches.set_state(judged.after)
          step, batch = judged.number, None
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
  """What the loop does at a step, before it takes the next one."""

  evaluate: bool
  save: bool
  leave: bool


class _Taken(NamedTuple):
  """A step that may still be running, with the data positions on both sides of its batch."""

  number: int
  metrics: Mapping[str, Any]
  before: Any
  after: Any
  applied: bool = True  # once it is judged: whether it changed the train state


def _globally(
  features: Mapping[str, base.Feature],
  batch_size: int,
  mesh: jax.sharding.Mesh,
  batches: Any,  # an iterator; it needs no __iter__
) -> Iterator[dict[str, jax.Array]]:
  """Yields global arrays of this process's rows. Raises ValueError where the first batch is not
  what the stage asks for.
  """
  checked = False
  for batch in iter(lambda: next(batches, None), None):
    if not checked:
      base.check_batch(features, batch, batch_size // jax.process_count())
      checked = True
    yield sharding.global_batch(batch, mesh)


def _resume(session: Session, batches) -> tuple[step_lib.TrainState, int]:
  """Returns the train state that the run begins or continues with, and its step."""
  with session.watchdog.phase('init'):
    train_state, checkpoint = resuming.resume(
      session.checkpointer, session.programs, session.metadata, session.beginning
    )
  session.judge.set_state(checkpoint and checkpoint.metadata.get('guard'))
  step = 0 if checkpoint is None else checkpoint.step
  if checkpoint is not None:
    batches.set_state(checkpoint.data_position)
    session.watchdog.lost_steps += max(session.reporter.last_logged() - step, 0)
  session.reporter.start_clock(step)
  return train_state, step


def _roll_back(
  session: Session, verdict: Verdict, judged: _Taken, batches
) -> tuple[step_lib.TrainState, int]:
  """Returns the last checkpoint, or the beginning, and its step; the data continue behind the batch
  that diverged.
  """
  with session.watchdog.phase('checkpoint'):
    session.saver.wait()
  train_state, step = _resume(session, batches)
  batches.set_state(judged.after)
  message = f'step {judged.number}: {verdict.reason}, back to step {step}'
  session.reporter.publish(step, session.judge.metrics(), message)
  return train_state, step


def _due(
  session: Session, step: int, start: int, evaluates: bool, signalled: Callable[[int], bool]
) -> _Due:
  """Returns what to do at `step`; at `start` there is nothing to evaluate or save."""
  c = session.config
  last = step == c.num_steps
  leave = last or signalled(step) or session.reporter.asked_to_stop
  if step == start:
    return _Due(False, False, leave)
  late = (
    c.save_every_seconds is not None and session.saver.seconds_since_save >= c.save_every_seconds
  )
  evaluate = evaluates and (last or (c.eval_every is not None and step % c.eval_every == 0))
  save = leave or late or session.saver.due() or step % c.save_every == 0
  return _Due(evaluate, save, leave)


def _judge(
  session: Session, taken: collections.deque[_Taken], start: int, keep: int
) -> tuple[Verdict, _Taken | None]:
  """Waits for the steps taken but the newest `keep`, and judges and publishes them in order.

  Returns the verdict and the step that it is of, at the first step that does not go on.
  """
  while len(taken) > keep:
    step = taken.popleft()
    metrics = session.watchdog.bounded(
      watchdog_lib.PRODUCTIVE,
      step.number,
      functools.partial(jax.device_get, step.metrics),
      _allowance(step.number, start),
    )
    metrics = {name: float(value) for name, value in metrics.items()}
    step = step._replace(applied=bool(metrics.pop('applied')))
    verdict = session.judge.step(metrics, step.applied)
    _publish(session, step, metrics, verdict)
    if verdict.action is not Action.GO_ON:
      return verdict, step
  return Verdict(Action.GO_ON), None


def _publish(session: Session, step: _Taken, metrics: dict[str, float], verdict: Verdict) -> None:
  """Publishes a step that was judged, where it is time, and what was wrong with it."""
  reporter, judge, c = session.reporter, session.judge, session.config
  message = f'step {step.number}, batch at {step.before}: {verdict.reason}'
  if verdict.action is Action.SKIP:
    reporter.publish(step.number, judge.metrics(), message)
  if verdict.action is not Action.GO_ON:
    return
  done = step.number + 1
  if verdict.reason:
    reporter.publish(done, metrics, message)
  if done % c.log_every == 0 or done == c.num_steps:
    reporter.training(done, metrics | judge.metrics())


def _try_state(
  session: Session, step: int, train_state: step_lib.TrainState, batch, data_position
) -> tuple[Verdict, _Taken | None]:
  """Judges the state that is to be saved by its loss on the last batch, where rollback is on."""
  if not session.judge.tries_states or batch is None:
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
  return session.judge.state(float(metrics['loss'])), tried


def _stop(
  session: Session, verdict: Verdict, judged: _Taken, train_state: step_lib.TrainState
) -> NoReturn:
  """Ends a run that diverged with the last good state saved, and an error that says where."""
  fault, directory = f'step {judged.number}: {verdict.reason}', session.directory
  advice = 'Lower the learning rate, clip gradients, or look at the batch'
  if judged.applied:
    session.saver.wait()
    raise errors.DivergedError(f'{fault}; {directory} keeps the checkpoints before. {advice}')
  # The step left the state as it was, and so did every later one: save it with the data position
  # before the step.
  _save(session, judged.number, train_state, judged.before, whole=True)
  raise errors.NonFiniteError(
    f'{fault}; the state before it is saved as step {judged.number} in {directory}. {advice}'
  )


def _evaluate(
  session: Session, step: int, train_state: step_lib.TrainState, evaluate, batches
) -> None:
  """Evaluates the averaged parameters where they are kept, and publishes the result."""
  limited = itertools.islice(batches, session.config.eval_batches)
  with session.watchdog.phase('evaluation'), session.reporter.clock_stopped():
    params = train_state.params if train_state.ema_params is None else train_state.ema_params
    session.reporter.evaluation(step, *evaluate(params, train_state.state, limited))


def _save(
  session: Session, step: int, train_state: step_lib.TrainState, data_position, *, whole: bool
) -> None:
  """Starts a save; `whole`: returns when it is done."""
  save = functools.partial(
    session.saver.save,
    step,
    resuming.parts(train_state),
    data_position,
    {**session.metadata, 'guard': session.judge.get_state()},
    whole=whole,
  )
  session.watchdog.bounded('checkpoint', step, save)
  if jax.process_index() == 0:
    session.watchdog.write(session.directory, step)


def _next_batch(session: Session, step: int, stream, position, taken, train_state):
  """Returns the next global batch; where none comes in time, a run of one process saves before it
  gives up.
  """
  try:
    batch = session.watchdog.bounded('data', step, lambda: next(stream, None))
  except watchdog_lib.StalledError:
    if jax.process_count() == 1:
      verdict, _ = _judge(session, taken, step, 0)
      if verdict.action is Action.GO_ON:
        _save(session, step, train_state, position, whole=True)
    raise
  if batch is None:
    raise UserError(
      f'make_batches has no batch for step {step} of {session.config.num_steps}: repeat the data'
    )
  return batch


def _advance(session: Session, step: int, start: int, train_state, batch):
  """Starts a step; returns (next train state, metrics), which may not be computed yet."""
  advance = functools.partial(
    session.programs.train_step,
    train_state,
    batch,
    np.int32(step),
    np.float32(session.judge.rate_scale),
  )
  phase = 'compile' if step == start else watchdog_lib.PRODUCTIVE
  return session.watchdog.bounded(phase, step, advance, _allowance(step, start))


def _allowance(step: int, start: int) -> float:
  return _COMPILE_SECONDS if step - start < 2 else 0.0


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
  """Returns what was restored, or begun, where it is at the last step already or beyond."""
  num_steps = session.config.num_steps
  session.reporter.say(step, f'the run is at step {step}, num_steps={num_steps}: nothing to train')
  return _result(session, train_state, step)

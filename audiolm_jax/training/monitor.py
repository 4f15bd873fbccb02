"""Checks steps (go on, skip, roll back or stop), and compares metrics with expectations."""

import collections
import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from audiolm_jax import checks
from audiolm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RollbackConfig:
  """Configures when a step counts as diverged, and rollbacks.

  A rollback restores the newest undamaged checkpoint (or the initial state), continues with the
  batch after the diverged one, and multiplies all learning rates by `rate_factor`.

  Fields:
    max_rollbacks: rollbacks of a run; a further divergence stops it.
    rate_factor: factor for all learning rates, at each rollback, until the end of the run.
    explosion: a loss diverged if above this multiple of the median of the last `window` losses.
    gradient_explosion: a gradient norm diverged if above this multiple of the largest of the last
      `window` norms of its group. It is large because norms are heavy-tailed and get clipped.
    window: steps to compare with. Gradient norms are compared once there are this many.
    early: losses are compared once there are this many steps: with far too high a learning rate,
      the loss explodes before step 10.

  Raises:
    UserError: if a value is out of range, or `early` exceeds `window`.
  """

  max_rollbacks: int = 5
  rate_factor: float = 0.5
  explosion: float = 10.0
  gradient_explosion: float = 1000.0
  window: int = 50
  early: int = 4

  def __post_init__(self):
    checks.fields(
      self,
      max_rollbacks=checks.WHOLE,
      rate_factor=checks.BETWEEN,
      explosion=checks.ABOVE_ONE,
      gradient_explosion=checks.ABOVE_ONE,
      window=checks.WHOLE,
      early=checks.WHOLE,
    )
    if self.early > self.window:
      raise UserError(
        f'early={self.early} exceeds window={self.window}, the number of losses kept: lower early'
      )


class Action(enum.Enum):
  """Says what the loop does after a step is checked."""

  GO_ON = 'go on'
  SKIP = 'skip'  # the step changed nothing; continue with the next batch
  ROLL_BACK = 'roll back'  # to the newest checkpoint; continue with the next batch
  STOP = 'stop'


class Verdict(NamedTuple):
  """Holds an action and its reason; GO_ON with a reason is an explosion that is only reported."""

  action: Action
  reason: str | None = None


class Monitor:
  """Checks steps by their losses and gradient norms, and counts rollbacks and skipped batches.

  Its state is part of each checkpoint.

  Args:
    config: when to roll back; None: explosions are only reported, and values that are not finite
      stop the run.
    max_skipped: number of consecutive batches to skip because a loss or gradient is not finite,
      before the run rolls back or stops.

  Raises:
    UserError: if `max_skipped` is negative.
  """

  def __init__(self, config: RollbackConfig | None, max_skipped: int = 0):
    if max_skipped < 0:
      raise UserError(
        f'max_skipped_batches={max_skipped}: must be 0 (the first stops the run) or more'
      )
    self._config, self._limits, self._max_skipped = config, config or RollbackConfig(), max_skipped
    self.rollbacks, self.rate_scale = 0, 1.0
    self.skipped, self._in_a_row = 0, 0
    self._past: dict[str, collections.deque] = {}

  @property
  def tries_states(self) -> bool:
    """Whether `state` must check a train state before its save."""
    return self._config is not None

  def step(self, metrics: Mapping[str, float], applied: bool) -> Verdict:
    """Checks a step, and counts a skipped batch or rollback.

    Args:
      metrics: 'loss' and 'grad_norm/...'; others are ignored.
      applied: whether the step changed the train state; False if something was not finite.

    Returns:
      What to do next.
    """
    if applied:
      explosion = self._explosion(metrics)
      if explosion is None or self._config is None:
        self._remember(metrics)
        return Verdict(Action.GO_ON, explosion)
      return self._diverged(explosion)
    bad = {name: value for name, value in metrics.items() if not np.isfinite(value)}
    if self._in_a_row >= self._max_skipped:
      return self._diverged(f'{bad} not finite')
    self._in_a_row += 1
    self.skipped += 1
    return Verdict(
      Action.SKIP,
      f'{bad} not finite: batch skipped, {self._in_a_row} of at most {self._max_skipped} '
      f'in a row, {self.skipped} in all',
    )

  def state(self, loss: float) -> Verdict:
    """Checks a train state by its loss on the last batch, and counts a rollback.

    The loss of a step is computed before its update. Without this check, a state that the last
    update made diverge could be saved, and a rollback would return to it.

    Args:
      loss: loss of the state on the last batch.

    Returns:
      What to do next.
    """
    finite = np.isfinite(loss)
    fault = self._explosion({'loss': loss}) if finite else f'loss {loss} not finite'
    return Verdict(Action.GO_ON) if fault is None else self._diverged(f'before its save {fault}')

  def _explosion(self, metrics: Mapping[str, float]) -> str | None:
    """Returns a description of the first metric far above its recent values; None if none is."""
    limits = {'loss': (self._limits.explosion, self._limits.early, np.median, 'median')}
    # The largest, not the median: gradients of discriminators start near 0 and grow a thousandfold
    # within the first 50 steps.
    gradient = self._limits.gradient_explosion, self._limits.window, max, 'largest'
    limits |= {name: gradient for name in metrics if name.startswith('grad_norm/')}
    for name, (limit, enough, typical, title) in limits.items():
      past = self._past.get(name, ())
      level = float(typical(past)) if len(past) >= enough else 0.0
      # The level is 0 with too few values, and while discriminators do not train yet.
      if level > 0 and metrics[name] > limit * level:
        return f'{name} {metrics[name]:.4g} is above {limit:g} times its {title} {level:.4g}'
    return None

  def _remember(self, metrics: Mapping[str, float]) -> None:
    """Adds the metrics of an accepted step to the recent values."""
    self._in_a_row = 0
    for name in metrics:
      if name == 'loss' or name.startswith('grad_norm/'):
        past = self._past.setdefault(name, collections.deque(maxlen=self._limits.window))
        past.append(metrics[name])

  def _diverged(self, fault: str) -> Verdict:
    """Returns ROLL_BACK if a rollback remains, otherwise STOP.

    Recent values are restored by `set_state`, with the checkpoint.
    """
    if self._config is not None and self.rollbacks < self._config.max_rollbacks:
      self.rollbacks += 1
      self.rate_scale *= self._config.rate_factor
      return Verdict(
        Action.ROLL_BACK,
        f'{fault}: rollback {self.rollbacks} of {self._config.max_rollbacks}, '
        f'learning rates x {self.rate_scale:.4g}',
      )
    return Verdict(
      Action.STOP, f'{fault}, after {self.rollbacks} rollbacks' if self.rollbacks else fault
    )

  def metrics(self) -> dict[str, float]:
    """Returns metrics for the enabled features."""
    rollbacks = (
      {}
      if self._config is None
      else {'rollbacks': float(self.rollbacks), 'rate_scale': self.rate_scale}
    )
    return rollbacks | ({'skipped_batches': float(self.skipped)} if self._max_skipped else {})

  def get_state(self) -> dict[str, Any]:
    """Returns the state for a checkpoint, as JSON-compatible data."""
    past = {name: list(values) for name, values in self._past.items()}
    skipped = {'skipped': self.skipped, 'in_a_row': self._in_a_row}
    return {'count': self.rollbacks, 'rate_scale': self.rate_scale, 'past': past} | skipped

  def set_state(self, state: Mapping[str, Any] | None) -> None:
    """Restores the state of a checkpoint, None for the start of the run.

    Rollbacks after that checkpoint remain counted, and learning rates remain lowered.

    Args:
      state: from `get_state`.
    """
    state = state or Monitor(None).get_state()
    self.rollbacks = max(self.rollbacks, state['count'])
    self.rate_scale = min(self.rate_scale, state['rate_scale'])
    self.skipped, self._in_a_row = state.get('skipped', 0), state.get('in_a_row', 0)
    window = self._limits.window
    self._past = {
      name: collections.deque(values, maxlen=window) for name, values in state['past'].items()
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedMetric:
  """States that a metric is expected between `low` and `high`, at its first log from `step` on.

  Raises:
    UserError: if `low` is not below `high`.
  """

  metric: str  # as in metrics.jsonl: 'loss', 'eval/si_sdr', ...
  step: int
  low: float
  high: float

  def __post_init__(self):
    checks.fields(
      self, metric=checks.TEXT, step=checks.whole(0), low=checks.NUMBER, high=checks.NUMBER
    )
    if not self.low < self.high:
      raise UserError(
        f'expected {self.metric} at step {self.step}: low={self.low} must be below high={self.high}'
      )


def compare_with_expected(
  expected_metrics: Sequence[ExpectedMetric],
  step: int,
  metrics: Mapping[str, float],
  *,
  log_every: int,
  eval_every: int | None,
) -> tuple[dict[str, float], list[str]]:
  """Compares the metrics of a step with the ranges that are due at this step.

  A range is due at the first multiple of `log_every` at or after its step, or at the end of the run
  if that comes first. For 'eval/...' it is a multiple of `eval_every`, or the end if that is None.
  The comparison needs no memory of earlier steps, so it is the same in a resumed run.

  Args:
    expected_metrics: ranges of metrics.
    step: number of steps done.
    metrics: metrics by name.
    log_every: steps between two logs.
    eval_every: steps between two evaluations; None: only at the end.

  Returns:
    {'unexpected/<metric>': 0.0 or 1.0} of the ranges that are due, and a message for each metric
    outside of its range.
  """
  unexpected, lines = {}, []
  for expected in expected_metrics:
    metric = expected.metric
    every = eval_every if metric.startswith('eval/') else log_every
    # step of the previous regular log
    before = -1 if every is None else (step - 1) // every * every
    if metric not in metrics or not before < expected.step <= step:
      continue
    inside = expected.low <= metrics[metric] <= expected.high
    unexpected[f'unexpected/{metric}'] = float(not inside)
    if not inside:
      lines.append(
        f'step {step}: {metric} is {metrics[metric]:.4g}, but the recipe expects {expected.low:g} '
        f'to {expected.high:g} from step {expected.step} on: check the curves and the data before '
        'you continue'
      )
  return unexpected, lines

"""Judges a run: whether a step diverged and what follows from that, and whether metrics are where
the recipe expects them.
"""

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
  """When a loss or gradient counts as diverged, and how often and how the run goes back.

  A rollback restores the last good checkpoint (the start, where there is none yet), continues with
  the batches behind the one that diverged, and multiplies every learning rate by `rate_factor`.

  Raises ValueError for settings that would not help.
  """

  max_rollbacks: int = 5  # the next one stops the run
  rate_factor: float = 0.5  # on every learning rate, at each rollback; stays until the end
  explosion: float = 10.0  # times the median of the loss over the last `window` steps
  # times the largest norm of a group's gradient in as many: heavy-tailed, clipped
  gradient_explosion: float = 1000.0
  window: int = 50  # steps; before so many are known a gradient counts only where it is not finite
  # losses that are enough to judge the next: a rate far too high explodes before step 10
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
        f'early={self.early} is more than window={self.window}: so many losses are never known'
      )


class Action(enum.Enum):
  """What the loop does after a step was judged."""

  GO_ON = 'go on'
  SKIP = 'skip'  # the step changed nothing: continue with the batch behind it
  ROLL_BACK = 'roll back'  # to the last checkpoint, and continue behind the batch
  STOP = 'stop'


class Verdict(NamedTuple):
  """An action and its reason; `GO_ON` with a reason is an explosion that is only reported."""

  action: Action
  reason: str | None = None


class Judge:
  """Judges steps by their losses and gradient norms, and counts rollbacks and skipped batches.

  Every checkpoint holds its state. With no config, rollback is off: explosions are only reported,
  and a step that is not finite stops the run, except for `max_skipped` batches in a row, which are
  skipped.
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
    """Whether a state is tried on its last batch before it is saved: `state` then judges it."""
    return self._config is not None

  def step(self, metrics: Mapping[str, float], applied: bool) -> Verdict:
    """Judges the next step by its metrics ('loss' and 'grad_norm/...'), and counts what follows.

    applied: whether the step changed the train state; False: something was not finite.
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
      f'{bad} not finite: batch left out, {self._in_a_row} of at most {self._max_skipped} '
      f'in a row, {self.skipped} in all',
    )

  def state(self, loss: float) -> Verdict:
    """Judges the state after a step by its loss on the same batch, and counts what follows.

    A step's own loss is that before its update: without this, a checkpoint right after the update
    that diverged would be the one to go back to.
    """
    finite = np.isfinite(loss)
    fault = self._explosion({'loss': loss}) if finite else f'loss {loss} not finite'
    return Verdict(Action.GO_ON) if fault is None else self._diverged(f'before its save {fault}')

  def _explosion(self, metrics: Mapping[str, float]) -> str | None:
    """Returns which of the metrics is far above those of the last steps; None: none is."""
    limits = {'loss': (self._limits.explosion, self._limits.early, np.median, 'median')}
    # Not the median: critics begin with gradients near 0, which grow a thousandfold within the
    # first fifty steps.
    gradient = self._limits.gradient_explosion, self._limits.window, max, 'largest'
    limits |= {name: gradient for name in metrics if name.startswith('grad_norm/')}
    for name, (limit, enough, typical, title) in limits.items():
      past = self._past.get(name, ())
      level = float(typical(past)) if len(past) >= enough else 0.0
      # of 0 nothing is a multiple: critics that wait
      if level > 0 and metrics[name] > limit * level:
        return f'{name} {metrics[name]:.4g} is above {limit:g} times its {title} {level:.4g}'
    return None

  def _remember(self, metrics: Mapping[str, float]) -> None:
    """Adds the metrics of a step that stays to the past."""
    self._in_a_row = 0
    for name in metrics:
      if name == 'loss' or name.startswith('grad_norm/'):
        past = self._past.setdefault(name, collections.deque(maxlen=self._limits.window))
        past.append(metrics[name])

  def _diverged(self, fault: str) -> Verdict:
    """Rolls back where a rollback is left, else stops. The past comes back with `set_state`."""
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
    """Returns what a checkpoint holds, as JSON."""
    past = {name: list(values) for name, values in self._past.items()}
    skipped = {'skipped': self.skipped, 'in_a_row': self._in_a_row}
    return {'count': self.rollbacks, 'rate_scale': self.rate_scale, 'past': past} | skipped

  def set_state(self, state: Mapping[str, Any] | None) -> None:
    """Restores what a checkpoint holds (None: the start), except that rollbacks since then still
    count.
    """
    state = state or Judge(None).get_state()
    self.rollbacks = max(self.rollbacks, state['count'])
    self.rate_scale = min(self.rate_scale, state['rate_scale'])
    self.skipped, self._in_a_row = state.get('skipped', 0), state.get('in_a_row', 0)
    window = self._limits.window
    self._past = {
      name: collections.deque(values, maxlen=window) for name, values in state['past'].items()
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
  """Expects a metric from `low` to `high` at `step`, compared at the first value logged from there
  on. Raises ValueError when empty.
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
        f'band of {self.metric} at step {self.step}: low={self.low} must be below high={self.high}'
      )


def compare_with_bands(
  bands: Sequence[Band],
  step: int,
  metrics: Mapping[str, float],
  *,
  log_every: int,
  eval_every: int | None,
) -> tuple[dict[str, float], list[str]]:
  """Returns {'outside_band/<metric>': 0.0 or 1.0} of the bands that `step` is the first to be
  compared with, and a line for each that is missed.

  A band belongs to the first multiple of `log_every` (of `eval_every` for 'eval/...'; None: the
  end) at its step or later, or to the end where that comes first: nothing need be remembered, so a
  resumed run compares the same.
  """
  outside, lines = {}, []
  for band in bands:
    every = eval_every if band.metric.startswith('eval/') else log_every
    # the last regular value before this one
    before = -1 if every is None else (step - 1) // every * every
    if band.metric not in metrics or not before < band.step <= step:
      continue
    value = metrics[band.metric]
    inside = band.low <= value <= band.high
    outside[f'outside_band/{band.metric}'] = float(not inside)
    if not inside:
      lines.append(
        f'step {step}: {band.metric} is {value:.4g}, and the recipe expects {band.low:g} to '
        f'{band.high:g} from step {band.step} on: look at the curves and the data before you go on'
      )
  return outside, lines

"""When a run has diverged, and what is tried before it stops: back to the last good checkpoint, at
a lower rate.
"""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from audiolm_jax import checks
from audiolm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RollbackConfig:
  """On a loss or gradient that is not finite, or explodes, the loop goes back to the last good
  checkpoint (the start, where there is none yet), on with the batches behind the one that led
  astray, and multiplies every learning rate.

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


class Diverged(Exception):
  """Step `step` went wrong; `after` is the data position behind its batch."""

  def __init__(self, step: int, reason: str, after: Any):
    super().__init__(f'step {step}: {reason}')
    self.after = after


class Skipped(Exception):
  """Step `step` was not finite and left the state as it was; `after` is the data position behind
  its batch.
  """

  def __init__(self, step: int, after: Any):
    super().__init__(f'step {step}')
    self.step, self.after = step, after


class Guard:
  """Knows the last losses and gradient norms, and how often the run went back or skipped a batch;
  every checkpoint holds its state.

  Without a config there is no way back: an explosion is told of, and a number that is not finite is
  wrong but for the first `max_skipped` batches in a row, which are left out.
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
  def rollbacks_left(self) -> int:
    return 0 if self._config is None else max(self._config.max_rollbacks - self.rollbacks, 0)

  def fault(self, metrics: Mapping[str, float], applied: bool) -> str | None:
    """Returns what is wrong with the metrics of the next step, or remembers them and returns
    None.
    """
    if not applied:
      bad = {name: value for name, value in metrics.items() if not np.isfinite(value)}
      return f'{bad} not finite'
    if explosion := self.explosion(metrics):
      return explosion
    self.accept(metrics)
    return None

  def explosion(self, metrics: Mapping[str, float]) -> str | None:
    """Returns what of the metrics, of a step or of `loss` alone, is far above what the last steps
    had.
    """
    limits = {'loss': (self._limits.explosion, self._limits.early, np.median, 'median')}
    # Not the median: critics begin with gradients near 0, which grow a thousandfold within the
    # first fifty steps.
    gradient = self._limits.gradient_explosion, self._limits.window, max, 'largest'
    limits |= {name: gradient for name in metrics if name.startswith('grad_norm/')}
    for name, (limit, enough, typical, title) in limits.items():
      past = self._past.setdefault(name, collections.deque(maxlen=self._limits.window))
      level = float(typical(past)) if len(past) >= enough else 0.0
      # of 0 nothing is a multiple: critics that wait
      if level > 0 and metrics[name] > limit * level:
        return f'{name} {metrics[name]:.4g} is above {limit:g} times its {title} {level:.4g}'
    return None

  def accept(self, metrics: Mapping[str, float]) -> None:
    """Remembers the metrics of a step that stays, an explosion that nothing is done about
    included.
    """
    self._in_a_row = 0
    for name in metrics:
      if name == 'loss' or name.startswith('grad_norm/'):
        self._past.setdefault(name, collections.deque(maxlen=self._limits.window)).append(
          metrics[name]
        )

  def skip(self) -> str | None:
    """Counts one batch left out and says which; None when there were too many in a row."""
    if self._in_a_row >= self._max_skipped:
      return None
    self._in_a_row += 1
    self.skipped += 1
    return f'batch left out, {self._in_a_row} of at most {self._max_skipped} in a row, {self.skipped} in all'

  def roll_back(self) -> str:
    """Counts one rollback and says which; the past comes back with `set_state`."""
    self.rollbacks += 1
    self.rate_scale *= self._config.rate_factor
    return f'rollback {self.rollbacks} of {self._config.max_rollbacks}, learning rates x {self.rate_scale:.4g}'

  def metrics(self) -> dict[str, float]:
    """Returns what to log: nothing of what is off."""
    rollbacks = (
      {}
      if self._config is None
      else {'rollbacks': float(self.rollbacks), 'rate_scale': self.rate_scale}
    )
    return rollbacks | ({'skipped_batches': float(self.skipped)} if self._max_skipped else {})

  def get_state(self) -> dict[str, Any]:
    past = {name: list(values) for name, values in self._past.items()}
    skipped = {'skipped': self.skipped, 'in_a_row': self._in_a_row}
    return {'count': self.rollbacks, 'rate_scale': self.rate_scale, 'past': past} | skipped

  def set_state(self, state: Mapping[str, Any] | None) -> None:
    """Goes back to what a checkpoint knew (None: nothing), but for the rollbacks since: those are
    not forgotten.
    """
    state = state or Guard(None).get_state()
    self.rollbacks = max(self.rollbacks, state['count'])
    self.rate_scale = min(self.rate_scale, state['rate_scale'])
    self.skipped, self._in_a_row = state.get('skipped', 0), state.get('in_a_row', 0)
    window = self._limits.window
    self._past = {
      name: collections.deque(values, maxlen=window) for name, values in state['past'].items()
    }

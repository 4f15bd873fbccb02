"""What a recipe expects a metric to be at a step, and whether a run is there."""

import dataclasses
from collections.abc import Mapping, Sequence

from audiolm_jax import checks
from audiolm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
  """From `low` to `high` at `step`, judged at the first value logged from there on. Raises
  ValueError when empty.
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


def judge(
  bands: Sequence[Band],
  step: int,
  metrics: Mapping[str, float],
  *,
  log_every: int,
  eval_every: int | None,
) -> tuple[dict[str, float], list[str]]:
  """Returns {'outside_band/<metric>': 0.0 or 1.0} of the bands that `step` is the first to be held
  against, and a line for each that is missed.

  A band belongs to the first multiple of `log_every` (of `eval_every` for 'eval/...'; None: the
  end) at its step or
  later, or to the end where that comes first: nothing need be remembered, so a resumed run judges
  the same.
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
        f'step {step}: {band.metric} is {value:.4g}, and the recipe expects {band.low:g} to {band.high:g} from step '
        f'{band.step} on: look at the curves and the data before you go on'
      )
  return outside, lines

"""Predicts what preemptions cost a run: the share of its time that is spent in steps it keeps.

Machines are taken away at random, on average every `hours_between`, and the run goes back to its
last save. With an exponential distribution of these times, the expected time of an interval of T
seconds of steps, whose save holds the steps up for s seconds, is

  M exp(R / M) (exp((T + s) / M) - 1),

where M is the mean time between preemptions, and R the time from one to the next new step (J. Daly,
"A higher order estimate of the optimum checkpoint interval", FGCS 22, 2006).

Assumed: no notice is in time for a save (one that is makes goodput higher), and a preemption during
a restart costs another restart. Waiting for capacity is no part of it: chips that one does not hold
cost nothing.
"""

import dataclasses
import math

from audiolm_jax import checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spot:
  """Describes capacity that may be taken away.

  Fields:
    hours_between: mean hours from a start to the preemption.
    restart_seconds: from the moment when machines are there again to the first new step: start,
      installation, restoring and compiling.
    save_seconds: for which a save holds the steps up, to copy the state to the hosts.

  Raises:
    UserError: if a value is not positive.
  """

  hours_between: float
  restart_seconds: float = 600.0
  save_seconds: float = 5.0

  def __post_init__(self):
    checks.fields(
      self,
      hours_between=checks.POSITIVE,
      restart_seconds=checks.POSITIVE,
      save_seconds=checks.POSITIVE,
    )


def share(spot: Spot, interval_seconds: float) -> float:
  """Returns the share of the time that is spent in steps that are kept.

  interval_seconds: seconds of steps between saves.
  """
  mean = 3600.0 * spot.hours_between
  expected = (
    mean
    * math.exp(spot.restart_seconds / mean)
    * math.expm1((interval_seconds + spot.save_seconds) / mean)
  )
  return interval_seconds / expected

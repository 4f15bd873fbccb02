"""Goodput on spot capacity: the formula against a simulation of single preemptions."""

import math

import numpy as np
import pytest

from audiolm_jax.costs import goodput


def _simulated(spot, interval, random):
  """Returns the share of kept steps in a run of 20,000 intervals, preempted at random."""
  mean, hours = 3600 * spot.hours_between, random.exponential
  elapsed, done = 0.0, 0
  ready, ends = False, hours(mean)
  while done < 20_000:
    needed = interval + spot.save_seconds if ready else spot.restart_seconds
    if needed <= ends:
      elapsed, ends, done, ready = elapsed + needed, ends - needed, done + ready, True
    else:
      elapsed, ends, ready = elapsed + ends, hours(mean), False
  return done * interval / elapsed


@pytest.mark.parametrize('hours, interval', [(1.0, 600.0), (6.0, 1800.0)])
def test_the_share_is_that_of_a_simulated_run(hours, interval):
  spot = goodput.Spot(hours_between=hours, restart_seconds=400.0, save_seconds=20.0)
  simulated = _simulated(spot, interval, np.random.default_rng(0))
  assert goodput.share(spot, interval) == pytest.approx(simulated, abs=0.01)


def test_the_best_interval_is_that_of_young():
  """J. W. Young, CACM 17, 1974: the square root of 2 x the time of a save x the time between kills."""
  spot = goodput.Spot(hours_between=4.0, save_seconds=5.0)
  best = goodput.share(spot, math.sqrt(2 * 5.0 * 4 * 3600))
  assert best >= max(goodput.share(spot, 30.0 * n) for n in range(1, 240)) - 1e-3
  assert goodput.share(goodput.Spot(hours_between=1e6), 600.0) == pytest.approx(600 / 605, 1e-4)
  with pytest.raises(ValueError, match='hours_between=0'):
    goodput.Spot(hours_between=0.0)

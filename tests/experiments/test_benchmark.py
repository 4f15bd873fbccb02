"""The benchmarks in their smallest form, through the command line's parser."""

import itertools
import re

import jax
import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarks import acoustic, stream


def test_acoustic_times_every_part_and_extrapolates_by_the_step(monkeypatch, capsys):
  # The programs run; only the readings are made up, since a busy machine has none to give (nan).
  readings = itertools.count(1)

  def seconds_of(function):
    jax.block_until_ready(function())
    return acoustic.Seconds(*[float(next(readings))] * 2)

  monkeypatch.setattr(acoustic, '_seconds', seconds_of)
  recipe = '--recipe=tests.experiments.toy_recipe'
  monkeypatch.setattr('sys.argv', ['benchmark', 'acoustic', recipe, '--seconds=4', '--steps=30'])
  benchmark.main()
  text = capsys.readouterr().out
  seconds = {
    name.strip(): float(value)
    for name, value in re.findall(r'^([^\d\n]+?) +(\d+\.\d+)', text, re.MULTILINE)
  }
  assert set(seconds) >= {'coarse', 'fine', 'SoundStorm', 'codec decoder', 'coarse + fine'}
  assert all(value > 0 for value in seconds.values())
  assert seconds['coarse + fine'] == pytest.approx(seconds['coarse'] + seconds['fine'], abs=2e-3)
  # 200 frames of 2 coarse levels; fine chunks of 20 frames of 2 levels are one batch; SoundStorm:
  # 2 + 1 + 1 + 1 passes in each of 4 windows.
  counts = {
    row[0]: row[3:]
    for row in (line.rsplit(maxsplit=4) for line in text.splitlines())
    if row[-1].isdigit()
  }
  assert counts == {
    'coarse': ['400', '31'],
    'fine': ['40', '31'],
    'SoundStorm': ['20', '5'],
    'codec decoder': ['1', '1'],
  }


def test_the_language_models_time_is_windows_and_steps(monkeypatch):
  """A clock that knows what a window and a step cost."""

  class Program:
    lower = compile = lambda self, *args, **options: self
    __call__ = lambda self, params, key, prefix, prompt, steps, rule: steps

  monkeypatch.setattr(acoustic.decoding, 'sample_targets', Program())
  monkeypatch.setattr(acoustic, '_random_params', lambda config: {})
  monkeypatch.setattr(
    acoustic, '_seconds', lambda function: acoustic.Seconds(2 + 0.25 * function(), 3 + function())
  )
  config = acoustic.recipe_lib.load('tiny').stages['coarse'].model  # windows of 2 s
  for steps in (0, 8):
    timing = acoustic.time_coarse(config, semantic_frames=100, carry_seconds=1.0, steps=steps)
    # 2 s, then 1 s after 1 s twice: three windows, and 400 steps in all.
    assert timing.seconds == pytest.approx((3 * 2 + 400 * 0.25, 3 * 3 + 400))
  monkeypatch.setattr(
    acoustic, '_seconds', lambda function: acoustic.Seconds(9 - function(), function())
  )
  wall, processors = acoustic.time_coarse(
    config, semantic_frames=100, carry_seconds=1.0, steps=8
  ).seconds
  assert np.isnan(wall) and processors == 400  # disturbed: no number, rather than a wrong one


def test_gaps_are_what_a_listener_waits_after_the_first_sound():
  """3 s of prompt after 1 s; 1 s of new sound in time, at 3 s; another at 6 s, when it ended at 5."""
  found = stream.timing([(1.0, 3.0), (3.0, 1.0), (6.0, 1.0)])
  assert (found.first_sound, found.first_new_sound, found.whole) == (1, 3, 6)
  assert (found.num_gaps, found.gaps, found.start) == (1, 1, 2)
  assert found.real_time_factor == 2.5
  assert stream.timing([(1.0, 3.0), (3.5, 2.0)]).num_gaps == 0

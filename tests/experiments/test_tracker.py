"""Trackers of metrics: loaded by name, started late, never fatal."""

import sys
import types

import pytest

from audiolm_jax.errors import UserError
from experiments.cli import tracker


@pytest.fixture
def tracked(monkeypatch):
  """A module `toy_tracker` whose tracker writes into a list."""
  module, events = types.ModuleType('toy_tracker'), []

  def start(name, settings):
    events.append((name, settings))
    return lambda step, metrics: events.append((step, metrics['loss']))

  module.start, module.NUMBER = start, 1
  monkeypatch.setitem(sys.modules, 'toy_tracker', module)
  return events


def test_metrics_reach_the_tracker_which_starts_with_the_first(tracked):
  log = tracker.guarded(tracker.load('toy_tracker:start'), 'run/semantic', {'seed': 1})
  log(0, {})  # an event that is only a message
  assert not tracked
  log(10, {'loss': 2.0})
  log(20, {'loss': 1.0})
  assert tracked == [('run/semantic', {'seed': 1}), (10, 2.0), (20, 1.0)]


def test_a_failing_tracker_warns_once_and_is_left(tracked):
  log = tracker.guarded(tracker.load('toy_tracker:start'), 'run', {})
  with pytest.warns(UserWarning, match='no longer tracked: KeyError'):
    log(10, {'accuracy': 1.0})
  log(20, {'loss': 1.0})
  assert tracked == [('run', {})]


@pytest.mark.parametrize(
  'name, message',
  [
    ('toy_tracker', 'give module:function'),
    ('toy tracker:start', 'give module:function'),
    ('toy_tracker:NUMBER', 'has no function NUMBER'),
    ('no_such_module:start', 'there is no module no_such_module'),
  ],
)
def test_wrong_names_are_refused(tracked, name, message):
  with pytest.raises(UserError, match=message):
    tracker.load(name)

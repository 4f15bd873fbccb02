"""What the watch adds up, and what it does not wait for."""

import json
import threading
import time

import pytest

from audiolm_jax.training import watch


def test_results_and_errors_pass_through():
  bounded = watch.Watch(timeout_seconds=60.0)
  assert bounded.bounded('step', 3, lambda: 7) == 7
  with pytest.raises(KeyError, match='lost'):
    bounded.bounded('step', 3, lambda: {}['lost'])


def test_slow_is_a_warning_and_hung_an_error():
  release = threading.Event()
  with pytest.warns(
    UserWarning, match=r'process 0 of 1 on \S+: data of step 4 has taken 0.05 s so far'
  ):
    slow = watch.Watch(slow_seconds=0.05, timeout_seconds=60.0)
    assert slow.bounded('data', 4, lambda: release.wait(0.3)) is False
  with pytest.raises(watch.StalledError, match='step of step 5 has not ended after 0.2 s'):
    watch.Watch(timeout_seconds=0.2).bounded('step', 5, release.wait)
  with pytest.raises(watch.StalledError, match='compile of step 0 has not ended after 0.4 s'):
    watch.Watch(timeout_seconds=0.1).bounded('compile', 0, release.wait, extra_seconds=0.3)
  release.set()
  with pytest.raises(ValueError, match='timeout_seconds=0'):
    watch.Watch(timeout_seconds=0.0)


def test_goodput_is_the_share_of_the_steps(tmp_path):
  kept = watch.Watch()
  for name in ('init', 'step', 'data', 'step'):
    with kept.phase(name):
      time.sleep(0.05)
  time.sleep(0.05)
  summary = kept.summary()
  seconds = summary['seconds']
  assert seconds['step'] >= 0.1 and min(seconds[name] for name in ('init', 'data', 'other')) >= 0.05
  assert summary['goodput'] == pytest.approx(seconds['step'] / sum(seconds.values()), rel=0.01)
  kept.write(tmp_path, step=1)
  kept.write(tmp_path, step=2)
  with (tmp_path / watch.FILE).open('a') as file:
    file.write('{"started":')  # killed within a line
  [line] = watch.read(tmp_path)
  assert line['step'] == 2 and line['goodput'] == pytest.approx(summary['goodput'], rel=0.2)
  assert json.loads((tmp_path / watch.FILE).read_text().splitlines()[0])['step'] == 1


def test_hostile_lines_of_goodput_are_skipped(tmp_path):
  lines = [
    '{"started": 1.5, "step": 2}',
    '[]',
    '{}',
    '{"started": []}',
    '{"started": 1.5, "st',
    '{"started": 1.5, "step": 3}',
  ]
  (tmp_path / watch.FILE).write_text('\n'.join(lines))
  assert watch.read(tmp_path) == [{'started': 1.5, 'step': 3}]

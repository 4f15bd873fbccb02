"""What the watchdog adds up, and what it does not wait for."""

import gc
import json
import threading
import time
import weakref

import pytest

from audiolm_jax.training import watchdog


def test_results_and_errors_pass_through():
  bounded = watchdog.Watchdog(timeout_seconds=60.0)
  assert bounded.bounded('step', 3, lambda: 7) == 7
  with pytest.raises(KeyError, match='lost'):
    bounded.bounded('step', 3, lambda: {}['lost'])


def test_slow_is_a_warning_and_hung_an_error():
  release = threading.Event()
  with pytest.warns(
    UserWarning, match=r'process 0 of 1 on \S+: data of step 4 has taken 0.05 s so far'
  ):
    slow = watchdog.Watchdog(slow_seconds=0.05, timeout_seconds=60.0)
    assert slow.bounded('data', 4, lambda: release.wait(0.3)) is False
  with pytest.raises(watchdog.StalledError, match='step of step 5 has not ended after 0.2 s'):
    watchdog.Watchdog(timeout_seconds=0.2).bounded('step', 5, release.wait)
  with pytest.raises(watchdog.StalledError, match='compile of step 0 has not ended after 0.4 s'):
    watchdog.Watchdog(timeout_seconds=0.1).bounded('compile', 0, release.wait, extra_seconds=0.3)
  release.set()
  with pytest.raises(ValueError, match='timeout_seconds=0'):
    watchdog.Watchdog(timeout_seconds=0.0)


def test_goodput_is_the_share_of_the_steps(tmp_path):
  kept = watchdog.Watchdog()
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
  with (tmp_path / watchdog.FILE).open('a') as file:
    file.write('{"started":')  # killed within a line
  [line] = watchdog.read(tmp_path)
  assert line['step'] == 2 and line['goodput'] == pytest.approx(summary['goodput'], rel=0.2)
  assert json.loads((tmp_path / watchdog.FILE).read_text().splitlines()[0])['step'] == 1


def test_hostile_lines_of_goodput_are_skipped(tmp_path):
  lines = [
    '{"started": 1.5, "step": 2}',
    '[]',
    '{}',
    '{"started": []}',
    '{"started": 1.5, "st',
    '{"started": 1.5, "step": 3}',
  ]
  (tmp_path / watchdog.FILE).write_text('\n'.join(lines))
  assert watchdog.read(tmp_path) == [{'started': 1.5, 'step': 3}]


def test_one_thread_makes_all_calls_and_ends_with_the_watchdog():
  bounded = watchdog.Watchdog(timeout_seconds=60.0)
  threads = [bounded.bounded('step', step, threading.current_thread) for step in range(3)]
  assert threads[0] is threads[1] is threads[2] is not threading.current_thread()
  bounded.close()
  threads[0].join(10)
  assert not threads[0].is_alive()
  # closed twice, or called again: neither is an error
  bounded.close()
  assert bounded.bounded('step', 3, lambda: 7) == 7
  bounded.close()


def test_an_error_leaves_the_thread_for_the_next_call():
  bounded = watchdog.Watchdog(timeout_seconds=60.0)
  first = bounded.bounded('step', 0, threading.current_thread)
  with pytest.raises(SystemExit):
    bounded.bounded('step', 1, lambda: (_ for _ in ()).throw(SystemExit(3)))
  assert bounded.bounded('step', 2, threading.current_thread) is first
  bounded.close()


def test_after_a_call_that_hangs_another_thread_serves_and_the_first_ends_once_it_is_free():
  release = threading.Event()
  bounded = watchdog.Watchdog(timeout_seconds=0.1)
  first = bounded.bounded('step', 0, threading.current_thread)
  with pytest.raises(watchdog.StalledError):
    bounded.bounded('data', 1, release.wait)
  # as the loop does: it saves before it gives up
  second = bounded.bounded('checkpoint', 1, threading.current_thread)
  assert second is not first and first.is_alive()
  release.set()
  first.join(10)
  assert not first.is_alive()
  bounded.close()


def test_without_limits_no_thread_is_made():
  assert watchdog.Watchdog().bounded('step', 0, threading.current_thread) is (
    threading.current_thread()
  )


def test_the_waiting_thread_keeps_no_array_alive():
  class Large:
    pass

  bounded = watchdog.Watchdog(timeout_seconds=60.0)
  large = Large()
  alive = weakref.ref(large)
  assert bounded.bounded('step', 0, lambda large=large: large) is large
  bounded.bounded('step', 1, lambda: None)  # the first call has left the thread by now
  del large
  gc.collect()
  assert alive() is None
  bounded.close()

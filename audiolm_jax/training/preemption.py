"""Handles signals that ask a run to save and stop."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
  """Yields a function: step -> whether to save and stop at this step.

  In a run of one process, the first SIGTERM or SIGINT requests the stop and the second ends the
  process at once. With several processes, JAX handles SIGTERM and chooses one step for all.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  received = threading.Event()
  # Python allows signal handlers in the main thread only.
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: False
    return
  signals = (signal.SIGTERM, signal.SIGINT)

  def on_signal(number, frame):
    received.set()
    for each in signals:
      signal.signal(each, signal.SIG_DFL)

  previous = {each: signal.signal(each, on_signal) for each in signals}
  try:
    yield lambda step: received.is_set()
  finally:
    for each, handler in previous.items():
      signal.signal(each, handler)

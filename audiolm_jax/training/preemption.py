"""Signals that ask a run to save and leave."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
  """Yields step -> whether to save and leave at this step.

  One process: the first SIGTERM or SIGINT asks for it, the second ends the process at once. Several
  processes: JAX's own handler agrees on one step for all of them.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  received = threading.Event()
  # Python allows handlers in the main thread only
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

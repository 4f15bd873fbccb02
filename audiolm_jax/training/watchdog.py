"""Measures the time of each phase of a run, and limits it.

Goodput is the share of the wall time that is spent in steps. The other phases are init (setup and
restore), compile (the first step), data (waiting for the next batch), evaluation, checkpoint and
other.
"""

import collections
import contextlib
import json
import os
import queue
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax

from audiolm_jax import storage
from audiolm_jax.errors import UnfinishedThreads, UserError
from audiolm_jax.storage import lines

PRODUCTIVE = 'step'
FILE = 'goodput.jsonl'


class StalledError(TimeoutError, UnfinishedThreads):
  """A phase exceeded its timeout: the data source, the storage or another host hangs.

  A thread still waits for it, so the process should exit without joining its threads.
  """


class Watchdog:
  """Adds up the seconds of each phase, and limits the duration of calls.

  Args:
    slow_seconds: a call of `bounded` that takes longer is reported as a warning; None: no warning.
    timeout_seconds: a call of `bounded` that takes longer raises StalledError; None: no limit.

  Attributes:
    lost_steps: steps that are repeated, because they were done after the checkpoint from which the
      run resumed.

  Raises:
    UserError: if a number of seconds is not positive.
  """

  def __init__(self, slow_seconds: float | None = None, timeout_seconds: float | None = None):
    for name, value in (('slow_seconds', slow_seconds), ('timeout_seconds', timeout_seconds)):
      if value is not None and value <= 0:
        raise UserError(f'{name}={value}: must be positive, or None for no limit')
    self._slow, self._timeout = slow_seconds, timeout_seconds
    self._started = time.monotonic()
    self._began = time.time()
    self._seconds: collections.Counter = collections.Counter()
    self._worker: _Worker | None = None
    self.lost_steps = 0

  def close(self) -> None:
    """Ends the worker thread after its current call."""
    if self._worker is not None:
      self._worker.close()
    self._worker = None

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Adds the time of the block to a phase. Blocks must not nest."""
    started = time.monotonic()
    try:
      yield
    finally:
      self._seconds[name] += time.monotonic() - started

  def bounded(
    self, name: str, step: int, function: Callable[[], Any], extra_seconds: float = 0.0
  ) -> Any:
    """Returns the result of a call that may hang.

    Args:
      name: phase to which the time is added.
      step: number of the step, for messages.
      function: called without arguments, in a worker thread if there is a limit.
      extra_seconds: added to both limits, for compilation.

    Raises:
      StalledError: if the call exceeds the timeout.
      Exception: raised by `function`.
    """
    with self.phase(name):
      if self._slow is None and self._timeout is None:
        return function()
      if self._worker is None:
        self._worker = _Worker()
      outcome = self._worker.submit(function)
      try:
        self._wait(outcome, name, step, extra_seconds)
      except BaseException:  # the worker may hang forever, so the next call gets a new one
        self.close()
        raise
      try:
        return outcome.result()
      finally:
        del outcome  # breaks a reference cycle with its error, which would keep arrays alive

  def _wait(self, outcome: futures.Future, name: str, step: int, extra_seconds: float) -> None:
    """Waits until the call ends; warns or raises StalledError if it exceeds a limit."""
    where = (
      f'process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: '
      f'{name} of step {step}'
    )
    limit = None if self._timeout is None else self._timeout + extra_seconds
    waited = 0.0
    if self._slow is not None and (limit is None or self._slow + extra_seconds < limit):
      waited = self._slow + extra_seconds
      if futures.wait([outcome], waited).not_done:
        warnings.warn(f'{where} has taken {waited:g} s so far')
    if futures.wait([outcome], None if limit is None else limit - waited).not_done:
      raise StalledError(
        f'{where} has not ended after {limit:g} s: check this host, its data, and the other hosts'
      )

  def summary(self) -> dict[str, Any]:
    """Returns {'goodput': share, 'seconds': {phase: seconds}} since this object was made."""
    total = max(time.monotonic() - self._started, 1e-9)
    seconds = dict(self._seconds) | {'other': max(total - sum(self._seconds.values()), 0.0)}
    return {
      'goodput': seconds.get(PRODUCTIVE, 0.0) / total,
      'seconds': {name: round(value, 3) for name, value in seconds.items()},
    }

  def write(self, directory: storage.Path, step: int) -> None:
    """Appends a line to `directory`/goodput.jsonl; a failure is reported as a warning."""
    line = {'started': self._began, 'step': step, 'lost_steps': self.lost_steps, **self.summary()}
    try:
      lines.put(directory / FILE, f'{self._began:017.6f}', json.dumps(line))
    except (OSError, ValueError) as error:
      warnings.warn(f'{directory / FILE} is not written: {error!r}')


class _Worker:
  """Runs calls one after another in a thread, until it is closed.

  The thread is a daemon, unlike those of `concurrent.futures`, so that a call that hangs does not
  prevent the process from exiting.
  """

  def __init__(self):
    self._calls: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_work, args=(self._calls,), name='audiolm worker', daemon=True).start()

  def submit(self, function: Callable[[], Any]) -> futures.Future:
    outcome = futures.Future()
    self._calls.put((function, outcome))
    return outcome

  def close(self) -> None:
    self._calls.put(None)


def _work(calls: queue.SimpleQueue) -> None:
  while (call := calls.get()) is not None:
    function, outcome = call
    try:
      outcome.set_result(function())
    except BaseException as error:
      outcome.set_exception(error)
    # Otherwise this thread keeps arrays of the call alive until the next call.
    del call, function, outcome


def read(directory: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the last line of each process that trained in a directory, in order.

  Truncated lines are skipped.

  Raises:
    FileNotFoundError: if there is no goodput.jsonl.
  """
  found, _ = lines.read(storage.path(directory) / FILE)
  found = [line for line in found if type(line.get('started')) in (int, float)]
  return list({line['started']: line for line in found}.values())

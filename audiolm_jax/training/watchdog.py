"""Where the time of a run goes, and how long one phase of it may take.

Goodput is the share of a run's wall time that went into steps; all else is badput, by name: init
(start and restore), compile (the first step), data (waiting for the next batch), evaluation,
checkpoint, other.
"""

import collections
import contextlib
import json
import pathlib
import queue
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax

from audiolm_jax import files
from audiolm_jax.errors import UserError

PRODUCTIVE = 'step'
FILE = 'goodput.jsonl'


class StalledError(TimeoutError):
  """A phase exceeded its timeout: a data source, a storage or another host hangs.

  The thread that waits is left behind, so that the process should end without waiting for it.
  """


class Watchdog:
  """Adds up the seconds of every phase, and bounds the calls made through `bounded`.

  A call that takes `slow_seconds` becomes a warning that names host and phase, one that takes
  `timeout_seconds` a StalledError. None: neither.
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
    # of earlier starts: done after the checkpoint that the run continues from, and done again
    self.lost_steps = 0

  def close(self) -> None:
    """Ends the worker thread, after the call that it is in."""
    if self._worker is not None:
      self._worker.close()
    self._worker = None

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Adds the time of this block to a phase. Blocks do not nest."""
    started = time.monotonic()
    try:
      yield
    finally:
      self._seconds[name] += time.monotonic() - started

  def bounded(
    self, name: str, step: int, function: Callable[[], Any], extra_seconds: float = 0.0
  ) -> Any:
    """Returns function(), which may block; its time belongs to the phase `name`.

    extra_seconds: added to both limits, for compilation.

    Raises StalledError after the timeout, and what `function` raises.
    """
    with self.phase(name):
      if self._slow is None and self._timeout is None:
        return function()
      if self._worker is None:
        self._worker = _Worker()
      outcome = self._worker.submit(function)
      try:
        self._wait(outcome, name, step, extra_seconds)
      except BaseException:  # the worker may never come back: the next call gets another
        self.close()
        raise
      try:
        return outcome.result()
      finally:
        del outcome  # with its error it would be a cycle that holds the arrays of the call

  def _wait(self, outcome: futures.Future, name: str, step: int, extra_seconds: float) -> None:
    """Returns when the call has ended; warns, and raises StalledError, where it is late."""
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
        f'{where} has not ended after {limit:g} s: look at this host, its data, and its peers'
      )

  def summary(self) -> dict[str, Any]:
    """Returns {'goodput': share, 'seconds': {phase: seconds}} of this process so far."""
    total = max(time.monotonic() - self._started, 1e-9)
    seconds = dict(self._seconds) | {'other': max(total - sum(self._seconds.values()), 0.0)}
    return {
      'goodput': seconds.get(PRODUCTIVE, 0.0) / total,
      'seconds': {name: round(value, 3) for name, value in seconds.items()},
    }

  def write(self, directory: pathlib.Path, step: int) -> None:
    """Appends a line to `directory`/goodput.jsonl; like all telemetry, a failure is a warning."""
    line = {'started': self._began, 'step': step, 'lost_steps': self.lost_steps, **self.summary()}
    try:
      with files.open_in_place(directory / FILE, 'a') as file:
        file.write(json.dumps(line) + '\n')
    except (OSError, ValueError) as error:
      warnings.warn(f'{directory / FILE} is not written: {error!r}')


class _Worker:
  """A thread that makes one call after another, until it is closed.

  A daemon, unlike the threads of `concurrent.futures`: where a call hangs, the end of the process
  does not wait for it.
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
    # While it waits for the next call, the thread must not keep arrays of this one alive.
    del call, function, outcome


def read(directory: str | pathlib.Path) -> list[dict[str, Any]]:
  """Returns the last line of each start of a run, in order; unfinished lines are skipped."""
  lines, _ = files.json_lines(pathlib.Path(directory) / FILE)
  lines = [line for line in lines if type(line.get('started')) in (int, float)]
  return list({line['started']: line for line in lines}.values())

"""Where the time of a run goes, and how long one phase of it may take.

Goodput is the share of a run's wall time that went into steps; all else is badput, by name: init
(start and restore), compile (the first step), data (waiting for the next batch), evaluation,
checkpoint, other.
"""

import collections
import contextlib
import json
import pathlib
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax

from audiolm_jax import files
from audiolm_jax.errors import UserError

PRODUCTIVE = 'step'
FILE = 'goodput.jsonl'


class StalledError(TimeoutError):
  """A phase took longer than it may: a data source, a storage or another host hangs.

  The thread that waits is left behind, so that the process should end without waiting for it.
  """


class Watch:
  """Adds up the seconds of every phase, and bounds the calls made through `bounded`.

  A call that takes `slow_seconds` becomes a warning that names host and phase, one that takes
  `timeout_seconds` a
  StalledError. None: neither.
  """

  def __init__(self, slow_seconds: float | None = None, timeout_seconds: float | None = None):
    for name, value in (('slow_seconds', slow_seconds), ('timeout_seconds', timeout_seconds)):
      if value is not None and value <= 0:
        raise UserError(f'{name}={value}: must be positive, or None for no limit')
    self._slow, self._timeout = slow_seconds, timeout_seconds
    self._started = time.monotonic()
    self._began = time.time()
    self._seconds: collections.Counter = collections.Counter()

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
    """Returns function(), which may block; `extra_seconds` more are allowed (for compilation)."""
    with self.phase(name):
      if self._slow is None and self._timeout is None:
        return function()
      outcome: dict[str, Any] = {}

      def work():
        try:
          outcome['value'] = function()
        except BaseException as error:
          outcome['error'] = error

      thread = threading.Thread(target=work, name=f'audiolm {name}', daemon=True)
      thread.start()
      self._wait(thread, name, step, extra_seconds)
      if 'error' in outcome:
        raise outcome['error']
      return outcome['value']

  def _wait(self, thread: threading.Thread, name: str, step: int, extra_seconds: float) -> None:
    where = f'process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: {name} of step {step}'
    limit = None if self._timeout is None else self._timeout + extra_seconds
    waited = 0.0
    if self._slow is not None and (limit is None or self._slow + extra_seconds < limit):
      waited = self._slow + extra_seconds
      thread.join(waited)
      if thread.is_alive():
        warnings.warn(f'{where} has taken {waited:g} s so far')
    thread.join(None if limit is None else limit - waited)
    if thread.is_alive():
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

  def write(self, directory: pathlib.Path, **more: Any) -> None:
    """Appends a line to `directory`/goodput.jsonl; like all telemetry, a failure is a warning."""
    line = {'started': self._began, **more, **self.summary()}
    try:
      with files.open_in_place(directory / FILE, 'a') as file:
        file.write(json.dumps(line) + '\n')
    except (OSError, ValueError) as error:
      warnings.warn(f'{directory / FILE} is not written: {error!r}')


def read(directory: str | pathlib.Path) -> list[dict[str, Any]]:
  """Returns the last line of each start of a run, in order; unfinished lines are skipped."""
  lines, _ = files.json_lines(pathlib.Path(directory) / FILE)
  lines = [line for line in lines if type(line.get('started')) in (int, float)]
  return list({line['started']: line for line in lines}.values())

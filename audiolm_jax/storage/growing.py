"""Files that grow, in a bucket, whose objects only change as a whole: the newest object is written
again in the background, and when it is large, the next one begins.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

from audiolm_jax import storage

REWRITE_SECONDS = 30.0  # between two writes of an object
_WAIT_SECONDS = 300.0  # for the end of a write, in `flush`


class Growing:
  """Adds bytes to the last of several objects.

  A failed write is reported, and repeated with the bytes of the next one.

  Args:
    path_of: number of an object -> its path.
    max_bytes: size at which the next object begins.
  """

  def __init__(self, path_of: Callable[[int], storage.Path], max_bytes: int):
    self._path_of, self._max_bytes = path_of, max_bytes
    self._number, self._data, self._num_sent, self._num_written = 0, b'', 0, 0
    self._wait: Callable[[float], Any] | None = None  # for the write in progress
    self._began_at = time.monotonic()

  def add(self, data: bytes) -> None:
    self._data += data

  def write(self) -> None:
    """Starts to write what was added, unless the last write began a short time ago."""
    if time.monotonic() - self._began_at < REWRITE_SECONDS:
      return
    self._end(0.0)
    if self._wait is None:
      self._begin()

  def flush(self) -> None:
    """Writes what was added, and waits for the end, for some minutes at most."""
    self._end(_WAIT_SECONDS)
    if self._wait is None and self._num_written < len(self._data):
      self._begin()
      self._end(_WAIT_SECONDS)

  def _begin(self) -> None:
    from audiolm_jax.storage import bucket

    self._began_at, self._num_sent = time.monotonic(), len(self._data)
    self._wait = bucket.start_write(self._path_of(self._number), self._data)

  def _end(self, seconds: float) -> None:
    """Waits for the write in progress; after a timeout it remains in progress."""
    if self._wait is None:
      return
    path = self._path_of(self._number)
    try:
      self._wait(seconds)
      self._num_written = self._num_sent
      if self._num_sent >= self._max_bytes:
        self._number, self._data = self._number + 1, self._data[self._num_sent :]
        self._num_written = 0
    except TimeoutError:
      if seconds:
        warnings.warn(f'{path} is still not written after {seconds:g} s')
      return
    except OSError as error:
      warnings.warn(f'{path} was not written, and is later: {error}')
    self._wait = None


class EventFiles:
  """Makes TensorBoard event files in buckets: the factory that tensorboardX asks for."""

  _MAX_BYTES = 1 << 24

  def directory_check(self, path: str) -> None:
    """Does nothing: buckets have no folders."""

  def open(self, path: str) -> '_EventFile':
    there = storage.path(path)
    name = lambda number: there.with_name(f'{there.name}.{number:05d}')
    return _EventFile(Growing(name, self._MAX_BYTES))


class _EventFile:
  def __init__(self, growing: Growing):
    self._growing = growing

  def write(self, data: bytes) -> None:
    self._growing.add(data)

  def flush(self) -> None:
    self._growing.write()  # here, not in `write`, because an object must not end within a record

  def close(self) -> None:
    self._growing.flush()

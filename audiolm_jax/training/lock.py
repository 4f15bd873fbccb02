"""Locks a run directory, so that only one trainer writes to it, and checks that it is writable."""

import contextlib
import fcntl
import json
import os
import pathlib
import shlex
import socket
import tempfile
from collections.abc import Iterator

from audiolm_jax import files
from audiolm_jax.errors import UserError

FILE = 'lock'
_PROBE_BYTES = 1 << 16
_MAX_LOCK_CHARACTERS = 4096


def check_writable(directory: pathlib.Path) -> None:
  """Creates `directory` if missing, and writes a temporary file to it.

  Raises:
    OSError: if that fails.
  """
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:  # nameless, so no link can redirect it
      file.write(bytes(_PROBE_BYTES))
      file.flush()
      os.fsync(file.fileno())
  except OSError as error:
    raise OSError(
      error.errno,
      f'cannot write to workdir {str(directory)!r} ({error.strerror}): free space or choose '
      'another',
    ) from error


@contextlib.contextmanager
def held(directory: pathlib.Path) -> Iterator[None]:
  """Locks `directory` for this process until the block ends.

  A lock left by a dead process of this host is replaced.

  Raises:
    UserError: if a running process of this host, or any process of another host, holds the lock; if
      the lock file is damaged or a link.
  """
  path = directory / FILE
  with _exclusively(path) as file:
    holder = _holder(file, path)
    if holder is not None and (holder['host'] != socket.gethostname() or _alive(holder)):
      raise UserError(
        f'{str(directory)!r} is in use by process {holder["pid"]} on '
        f'{files.printable(holder["host"], 100)}: choose another workdir, '
        f'or, if that machine or process is gone, run `rm {shlex.quote(str(path))}`'
      )
    _rewrite(
      file, {'pid': os.getpid(), 'host': socket.gethostname(), 'started': _started(os.getpid())}
    )
  try:
    yield
  finally:
    with contextlib.suppress(OSError), _exclusively(path) as file:
      _rewrite(file, None)


@contextlib.contextmanager
def _exclusively(path: pathlib.Path):
  """Opens the lock file exclusively, so that no process reads it between a check and a write."""
  with files.open_in_place(path, 'r+') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield file


def _holder(file, path: pathlib.Path) -> dict | None:
  """Returns pid, host and start time of the holder of a lock; None if the lock is free.

  Raises:
    UserError: if the file is damaged.
  """
  try:
    text = file.read(_MAX_LOCK_CHARACTERS)
    holder = json.loads(text) if text.strip() else None
    if holder is None:
      return None
    pid, host = holder['pid'], holder['host']
    if type(pid) is int and 0 < pid < 2**31 and isinstance(host, str):
      return {'pid': pid, 'host': host, 'started': holder.get('started')}
  except (ValueError, TypeError, KeyError, RecursionError):
    pass
  raise UserError(
    f'{str(path)!r} is damaged: if no process uses this folder, run `rm {shlex.quote(str(path))}`'
  )


def _rewrite(file, holder):
  file.seek(0)
  file.truncate()
  if holder is not None:
    file.write(json.dumps(holder))
    file.flush()
    os.fsync(file.fileno())


def _alive(holder) -> bool:
  try:
    os.kill(holder['pid'], 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass  # a running process of another user
  # Process ids are reused, often after a container restarts, so start times are compared too.
  return holder['started'] is None or holder['started'] == _started(holder['pid'])


def _started(pid: int) -> str | None:
  """Returns the start time of a process in kernel clock ticks since boot; None without /proc."""
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]
  except OSError:
    return None

"""Locks a run directory, so that only one trainer writes to it.

The lock is a small file that its holder renews. A lock whose holder is dead is taken over: at once
if it is a process of this host, and after LEASE_SECONDS without a renewal if it is one of another
host, such as a machine of a pod that was taken away. Clocks of hosts are not compared; the waiting
process watches whether the file changes. A holder that was paused for so long finds that it has
lost the lock, and ends at its next save. Only a bucket keeps the save of such a holder apart
(storage/folders.py); on a disk, a lease is weaker than a lock.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

from audiolm_jax import files, storage
from audiolm_jax.errors import UserError

FILE = 'lock'
LEASE_SECONDS, RENEW_SECONDS = 60.0, 15.0
_POLL_SECONDS = 2.0
_GIVE_BACK_SECONDS = 30.0
_BOOT_ID = pathlib.Path('/proc/sys/kernel/random/boot_id')


class LostError(UserError):
  """Another process has taken over the lock of this one, which was paused or cut off for long."""


@dataclasses.dataclass
class Lease:
  """Holds a lock. Its methods may be called from several threads."""

  path: storage.Path
  text: bytes
  stamp: storage.Stamp
  lost: bool = False
  _one: Any = dataclasses.field(default_factory=threading.Lock)

  def renew(self) -> None:
    """Shows other hosts that this process lives.

    Raises:
      LostError: if another process has taken over the lock.
      OSError: if the storage fails.
    """
    with self._one:
      if not self.lost and not self._swap():
        # A renewal whose answer was lost, or a deletion of the file, has changed the stamp.
        self.stamp, found = storage.look(self.path)
        self.lost = found not in (self.text, None) or not self._swap()
      if self.lost:
        raise LostError(
          f'{str(self.path.parent)!r} was taken over by another process, because this one was '
          f'paused or cut off from its storage for {LEASE_SECONDS:g} s: end one of the two'
        )

  def check(self) -> None:
    """Raises LostError if another process is known to have taken over the lock."""
    with contextlib.suppress(OSError):  # reported by the thread that renews
      self.renew()

  def give_back(self) -> None:
    with self._one, contextlib.suppress(OSError, UserError):
      if not self.lost:
        storage.swap(self.path, None, self.stamp)

  def _swap(self) -> bool:
    stamp = storage.swap(self.path, self.text, self.stamp)
    self.stamp = self.stamp if stamp is None else stamp
    return stamp is not None


@contextlib.contextmanager
def held(directory: storage.Path) -> Iterator[Lease]:
  """Locks `directory` for this process until the block ends.

  A lock left by a dead process of this host is replaced; one of another host after LEASE_SECONDS.

  Raises:
    UserError: if a running process holds the lock; if the lock file is damaged or a link.
    OSError: if the storage fails.
  """
  path = directory / FILE
  stamp, found = storage.look(path)
  if found is not None:
    stamp = _outlast(path, stamp, _parse(found, path))
  text = json.dumps(
    {
      'pid': os.getpid(),
      'host': socket.gethostname(),
      'started': _started(os.getpid()),
      'boot': _boot(),
      'token': uuid.uuid4().hex,
    }
  ).encode()
  stamp = storage.swap(path, text, stamp)
  if stamp is None:
    raise UserError(f'{str(directory)!r} was taken by another process: choose another workdir')
  lease, end = Lease(path, text, stamp), threading.Event()
  thread = threading.Thread(target=_keep, args=(lease, end), name='audiolm lock', daemon=True)
  thread.start()
  try:
    yield lease
  finally:
    end.set()
    thread.join(_GIVE_BACK_SECONDS)  # a dead storage must not keep the process


def _keep(lease: Lease, end: threading.Event) -> None:
  """Renews a lease until the end, and gives it back."""
  while not end.wait(RENEW_SECONDS):
    try:
      lease.renew()
    except LostError as error:
      warnings.warn(str(error))
      return
    except (OSError, UserError) as error:
      warnings.warn(f'the lock {lease.path} could not be renewed, and is again later: {error}')
  lease.give_back()


def _outlast(path: storage.Path, stamp: storage.Stamp, holder: dict[str, Any]) -> storage.Stamp:
  """Waits until the holder of a lock is certain to be dead, and returns the stamp to replace.

  Raises:
    UserError: if it lives, or has no token: then it is of a version that renews nothing.
  """
  in_use = UserError(
    f'{str(path.parent)!r} is in use by process {holder["pid"]} on '
    f'{files.printable(holder["host"], 100)}: choose another workdir, '
    f'or, if that machine or process is gone, run `{storage.removal(path)}`'
  )
  if holder['host'] == socket.gethostname() and holder['boot'] in (None, _boot()):
    if _alive(holder):
      raise in_use
    return stamp
  if holder['token'] is None:
    raise in_use
  warnings.warn(
    f'waiting up to {LEASE_SECONDS:g} s to see whether process {holder["pid"]} on '
    f'{files.printable(holder["host"], 100)} still uses {str(path.parent)!r}'
  )
  end = time.monotonic() + LEASE_SECONDS
  while time.monotonic() < end:
    time.sleep(min(_POLL_SECONDS, LEASE_SECONDS / 10))
    now, found = storage.look(path)
    if found is None:
      return now
    if now != stamp:
      raise in_use
  return stamp


def _parse(text: bytes, path: storage.Path) -> dict[str, Any]:
  """Returns pid, host, start time, boot and token of the holder in a lock file.

  Raises:
    UserError: if the file is damaged.
  """
  try:
    holder = json.loads(text)
    pid, host = holder['pid'], holder['host']
    if type(pid) is int and 0 < pid < 2**31 and isinstance(host, str):
      return {'pid': pid, 'host': host} | {
        name: holder.get(name) for name in ('started', 'boot', 'token')
      }
  except (ValueError, TypeError, KeyError, RecursionError):
    pass
  raise UserError(
    f'{str(path)!r} is damaged: if no process uses this folder, run `{storage.removal(path)}`'
  )


def _alive(holder: dict[str, Any]) -> bool:
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


def _boot() -> str | None:
  """Returns the id of this boot of this machine, as host names may be equal; None without /proc."""
  try:
    return _BOOT_ID.read_text().strip()
  except OSError:
    return None

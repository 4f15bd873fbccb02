"""What every case of the fuzz battery is held to: bounds of time and memory, and a folder that
stays as it was.
"""

import contextlib
import faulthandler
import hashlib
import os
import pathlib
import signal
import stat
import sys
from collections.abc import Callable, Iterator

from audiolm_jax.errors import UserError

SEED = int(os.environ.get('FUZZ_SEED', '14'))  # of all cases; others look for what 14 misses
SECONDS = 60.0  # of a case, on a machine that others use, too
MEBIBYTES = 256  # that a case may add to the process at its peak
NAMED = (UserError, OSError)  # errors that programs print as one line
FIELDS = ('VmHWM', 'VmRSS')  # of /proc/self/status: the peak, and what is held now


class Hung(BaseException):
  """A case took longer than its bound. No Exception, which code under test might catch."""


@contextlib.contextmanager
def bounded(seconds: float = SECONDS, mebibytes: float = MEBIBYTES) -> Iterator[None]:
  """Raises Hung where the block takes longer, AssertionError where it needs more memory.

  Code that never comes back to Python is ended with the process, which says where it was.
  """

  def stop(*_):
    raise Hung(f'more than {seconds:g} s')

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__)
  _forget_peak()
  _, held = _kibibytes()
  try:
    yield
  finally:
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
  peak, _ = _kibibytes()
  assert peak - held <= 1024 * mebibytes, f'{(peak - held) / 1024:.0f} MiB more at the peak'


def _forget_peak():
  with contextlib.suppress(OSError), open('/proc/self/clear_refs', 'w') as file:
    file.write('5')  # the peak starts again at what is held now (proc(5))


def _kibibytes() -> list[int]:
  if not os.path.isfile('/proc/self/status'):
    return [0, 0]
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  return [int(line.split()[1]) for name in FIELDS for line in lines if line.startswith(name)]


def attempt(function: Callable, *arguments, **options):
  """Returns what a call returns, or the error that it raises where that is one of NAMED."""
  try:
    return function(*arguments, **options)
  except NAMED as error:
    assert str(error).strip(), 'an error without a word'
    return error


def snapshot(root: str | os.PathLike) -> dict[bytes, tuple]:
  """Returns kind, mode and content (of a link its target) of everything below a folder."""
  found = {}
  for folder, folders, files in os.walk(os.fsencode(root)):
    for path in (os.path.join(folder, name) for name in folders + files):
      status = os.lstat(path)
      content = b''
      if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
      elif stat.S_ISREG(status.st_mode):
        with open(path, 'rb') as file:
          content = hashlib.file_digest(file, 'sha256').digest()
      found[path] = status.st_mode, content
  return found


def check_nothing_lost(before: dict[bytes, tuple], root: str | os.PathLike, *, may_add: bool):
  """Asserts that everything is as it was, and that no file is left half written."""
  now = snapshot(root)
  assert {path: now.get(path) for path in before} == before, 'changed or deleted'
  assert not [path for path in now if path.endswith(b'.partial')], 'left half written'
  assert may_add or now.keys() == before.keys(), 'added'

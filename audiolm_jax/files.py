"""Files: written whole or not at all, and read with bounds; text that others wrote is made
printable.

Folders may be shared. What is created here has a name that nobody can foresee, or is opened through
no link, so that a link that somebody planted leads no write elsewhere; modes are those of the
umask.
"""

import contextlib
import csv
import errno
import functools
import hashlib
import json
import os
import pathlib
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from typing import IO, Any

from audiolm_jax.errors import UserError

MAX_JSON_BYTES = 2**26  # of a JSON file of ours: the manifest of a large corpus has some 10 MiB
MAX_CSV_BYTES = 2**26  # of a table
MAX_LINE_BYTES = 2**20  # of a line of JSON
_PARTIAL = re.compile(r'.*\.(?P<host>[^/]+)\.(?P<pid>\d{1,9})\.[0-9a-f]{16}\.partial', re.DOTALL)
_STALE_SECONDS = 24 * 3600.0  # without a write: nobody writes this file any more


@contextlib.contextmanager
def atomically(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields an empty file to be written, which takes the name `path` when the block ends.

  Until then, and where the block raises, `path` stays as it was. A link at `path` is replaced, not
  followed.

  Raises OSError where the folder is missing or cannot be written.
  """
  path = pathlib.Path(path)
  _clear(str(path.parent.absolute()))
  start = os.fsdecode(os.fsencode(path.name)[:64])  # a name of 255 bytes leaves no room for more
  writer = f'{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(8)}'
  partial = path.with_name(f'{start}.{writer}.partial')
  try:
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
  except OSError as error:  # by the name that the caller knows
    raise OSError(error.errno, error.strerror, str(path)) from error
  try:
    yield partial
    os.replace(partial, path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


@functools.lru_cache(maxsize=1024)  # once for each folder: it may hold 100,000 files
def _clear(folder: str):
  """Deletes what writers left in a folder that were killed."""
  found = []
  # one may write where one may not list
  with contextlib.suppress(OSError), os.scandir(folder) as entries:
    found = [(entry, match) for entry in entries if (match := _PARTIAL.fullmatch(entry.name))]
  for entry, match in found:
    with contextlib.suppress(OSError):
      own = match['host'] == socket.gethostname() and not _alive(int(match['pid']))
      if own or time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS:
        os.unlink(entry.path)


def _alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass  # alive, another user's
  return True


def write_text(path: str | os.PathLike, text: str):
  """Writes a text file as UTF-8, whole or not at all, and makes its folder where missing."""
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  with atomically(path) as partial:
    partial.write_text(text, encoding='utf-8')


def open_in_place(path: str | os.PathLike, mode: str) -> IO:
  """Opens a file of ours that is written in place (a lock, a log), created where missing.

  mode: as of `open`: one that reads and writes ('r+'), or appends.

  Raises ValueError where `path` is a link or no regular file: a write would go elsewhere, or wait
  for a reader.
  """
  flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
  flags |= os.O_APPEND if 'a' in mode else 0
  if os.path.islink(path):
    raise UserError(f'{path} is a link, which is not written through: delete it')
  descriptor = os.open(path, flags, 0o666)
  if not _is_regular(descriptor):
    raise UserError(f'{path} is no regular file: delete it')
  return os.fdopen(descriptor, mode)


def sha256(path: str | os.PathLike) -> str:
  """Returns the SHA-256 of a file, 64 hex digits."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def read_json(
  path: str | os.PathLike, remedy: str, *, max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
  """Returns the object that a JSON file holds.

  Raises ValueError, with the path and the `remedy`, where it cannot be read, is larger than
  `max_bytes`, is no JSON, or holds something else.
  """
  try:
    with _reading(path) as file:
      text = file.read(max_bytes + 1)
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror}): {remedy}') from error
  if len(text) > max_bytes:
    raise UserError(f'{path} has more than {max_bytes:,} bytes, no such file has: {remedy}')
  try:
    data = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path} is not JSON ({printable(error, 200)}): {remedy}') from error
  if not isinstance(data, dict):
    raise UserError(f'{path} holds a {type(data).__name__}, not an object: {remedy}')
  return data


@contextlib.contextmanager
def open_csv(path: str | os.PathLike, remedy: str) -> Iterator[IO]:
  """Opens a text file for `csv.reader`.

  Raises ValueError, with the path and the `remedy`, where it is larger than MAX_CSV_BYTES; and,
  from within the block, where it turns out to be no text or to hold a field that csv does not take.
  """
  with open(path, newline='', encoding='utf-8-sig') as file:
    if os.fstat(file.fileno()).st_size > MAX_CSV_BYTES:
      raise UserError(f'{path} has more than {MAX_CSV_BYTES:,} bytes, no such file has: {remedy}')
    try:
      yield file
    except (csv.Error, UnicodeDecodeError) as error:
      raise UserError(f'{path} is not CSV ({error}): {remedy}') from error


def json_lines(path: str | os.PathLike) -> tuple[list[dict[str, Any]], int]:
  """Returns the objects in the lines of a file, and how many lines hold none.

  Those are lines that are cut, damaged, or longer than MAX_LINE_BYTES.

  Raises OSError where the file is missing or cannot be read.
  """
  objects, bad = [], 0
  with _reading(path) as file:
    while line := file.readline(MAX_LINE_BYTES):
      is_long = len(line) == MAX_LINE_BYTES and not line.endswith(b'\n')
      while is_long and not line.endswith(b'\n') and line:
        line = file.readline(MAX_LINE_BYTES)
      try:
        value = None if is_long else json.loads(line)
      except (ValueError, RecursionError):
        value = None
      if isinstance(value, dict):
        objects.append(value)
      elif is_long or line.strip():
        bad += 1
  return objects, bad


def _reading(path: str | os.PathLike) -> IO:
  """Opens a regular file; without O_NONBLOCK a pipe of that name would wait for a writer."""
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  if not _is_regular(descriptor):
    raise OSError(errno.EINVAL, 'no regular file', str(path))
  return os.fdopen(descriptor, 'rb')


def _is_regular(descriptor: int) -> bool:
  """Returns whether an open file is no pipe, device or folder; closes it where it is one."""
  is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
  if not is_regular:
    os.close(descriptor)
  return is_regular


def printable(text: object, most: int | None = None, *, keep: str = '') -> str:
  """Returns a text without what a terminal would obey.

  Control and format characters, and bytes that were not decoded, become escapes such as \\x1b.

  most: characters of it that are shown, or all. keep: characters that stay, such as a line's end.
  """
  text = str(text)
  shown = text if most is None or len(text) <= most else f'{text[:most]}...'
  return ''.join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in shown)

"""Writes files atomically, reads files with limits, and makes foreign text printable.

Folders may be shared with other users. New files get unpredictable names, or are opened without
following links, so that a planted link redirects no write; modes are those of the umask.
"""

import contextlib
import csv
import errno
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from typing import IO, Any

from audiolm_jax.errors import UserError

MAX_JSON_BYTES = 2**26  # the manifest of a large corpus has about 10 MiB
MAX_CSV_BYTES = 2**26
MAX_LINE_BYTES = 2**20  # per line of JSON
_PARTIAL = re.compile(r'.*\.(?P<host>[^/]+)\.(?P<pid>\d{1,9})\.[0-9a-f]{16}\.partial', re.DOTALL)
_STALE_SECONDS = 24 * 3600.0  # temporary files without a write for this long are abandoned


@contextlib.contextmanager
def atomically(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields an empty file, which takes the name `path` when the block ends.

  Before that, and if the block raises, `path` is unchanged. A link at `path` is replaced, not
  followed.

  Raises:
    OSError: if the folder is missing or not writable.
  """
  path = pathlib.Path(path)
  _clear(str(path.parent.absolute()))
  start = os.fsdecode(os.fsencode(path.name)[:64])  # leaves room within the limit of 255 bytes
  writer = f'{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(8)}'
  partial = path.with_name(f'{start}.{writer}.partial')
  try:
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
  except OSError as error:  # report the caller's path
    raise OSError(error.errno, error.strerror, str(path)) from error
  try:
    yield partial
    os.replace(partial, path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def folder_atomically(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields an empty folder, which takes the name `path` when the block ends.

  If the block raises, the folder is deleted. `path` must not exist, but for an empty folder.

  Raises:
    OSError: if the parent is missing or not writable, or `path` exists at the end.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f'{path.name[:64]}.{secrets.token_hex(8)}.partial')
  partial.mkdir()
  try:
    yield partial
    os.rename(partial, path)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


@functools.lru_cache(maxsize=1024)  # once per folder, which may contain 100,000 files
def _clear(folder: str):
  """Deletes temporary files of killed writers in a folder."""
  found = []
  # Folders may be writable but not listable.
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
    pass  # a running process of another user
  return True


def write_text(path: str | os.PathLike, text: str):
  """Writes a UTF-8 text file atomically, and creates its folder if missing."""
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  with atomically(path) as partial:
    partial.write_text(text, encoding='utf-8')


def open_in_place(path: str | os.PathLike, mode: str) -> IO:
  """Opens a file that is modified in place (a lock or a log), creating it if missing.

  Args:
    path: path of the file.
    mode: mode of `open` that reads and writes ('r+') or appends.

  Raises:
    UserError: if `path` is a link or no regular file, where a write would be redirected or block.
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
  """Returns the object in a JSON file.

  Raises:
    UserError: with path and `remedy`, if the file cannot be read, is larger than `max_bytes`, is
      not JSON, or contains another type.
  """
  try:
    with _reading(path) as file:
      text = file.read(max_bytes + 1)
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror}): {remedy}') from error
  return parse_json(text, path, remedy, max_bytes=max_bytes)


def parse_json(
  text: bytes, path: str | os.PathLike, remedy: str, *, max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
  """Returns the object in the content of a JSON file.

  Raises:
    UserError: as `read_json`.
  """
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
def open_csv(
  path: str | os.PathLike, remedy: str, *, max_bytes: int = MAX_CSV_BYTES
) -> Iterator[IO]:
  """Opens a text file for `csv.reader`.

  Raises:
    UserError: with path and `remedy`, if the file is larger than `max_bytes`; from within the
      block, if it is not text or csv rejects a field.
  """
  with open(path, newline='', encoding='utf-8-sig') as file:
    if os.fstat(file.fileno()).st_size > max_bytes:
      raise UserError(f'{path} has more than {max_bytes:,} bytes, no such file has: {remedy}')
    try:
      yield file
    except (csv.Error, UnicodeDecodeError) as error:
      raise UserError(f'{path} is not CSV ({error}): {remedy}') from error


def json_lines(path: str | os.PathLike) -> tuple[list[dict[str, Any]], int]:
  """Returns the objects in the lines of a file, and the number of other lines.

  Other lines are truncated, damaged, or longer than MAX_LINE_BYTES.

  Raises:
    OSError: if the file is missing or cannot be read.
  """
  with _reading(path) as file:
    return parse_json_lines(file)


def parse_json_lines(file: io.BufferedIOBase) -> tuple[list[dict[str, Any]], int]:
  """Returns the objects in the lines of an open file, as `json_lines`."""
  objects, bad = [], 0
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
  """Opens a regular file without blocking, because a pipe would wait for a writer."""
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  if not _is_regular(descriptor):
    raise OSError(errno.EINVAL, 'no regular file', str(path))
  return os.fdopen(descriptor, 'rb')


def _is_regular(descriptor: int) -> bool:
  """Returns whether an open file is regular; closes it if not."""
  is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
  if not is_regular:
    os.close(descriptor)
  return is_regular


def printable(text: object, most: int | None = None, *, keep: str = '') -> str:
  r"""Returns a text with control and format characters and undecoded bytes escaped, such as \x1b.

  Args:
    text: converted by `str`.
    most: number of characters to show; None for all.
    keep: characters to keep, such as the end of a line.
  """
  text = str(text)
  shown = text if most is None or len(text) <= most else f'{text[:most]}...'
  return ''.join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in shown)

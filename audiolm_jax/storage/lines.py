"""Lines of JSON that are added to a file: in a bucket, where objects only change as a whole, the
file is a folder with one object per start of the run, and readers join them in order.
"""

import io
import itertools
import os
import uuid
from typing import Any

from audiolm_jax import files, storage
from audiolm_jax.storage import growing

_MAX_OBJECT_BYTES = 1 << 20  # then the next object begins


def read(path: storage.Path) -> tuple[list[dict[str, Any]], int]:
  """Returns the objects in the lines of a file, and the number of other lines, as
  `files.json_lines`.

  Raises:
    OSError: if the file is missing or cannot be read.
  """
  if not storage.in_bucket(path):
    return files.json_lines(path)
  names = storage.files_below(path)
  if not names:
    raise FileNotFoundError(str(path))
  found = [files.parse_json_lines(io.BytesIO((path / name).read_bytes())) for name in names]
  return list(itertools.chain(*(lines for lines, _ in found))), sum(bad for _, bad in found)


def put(path: storage.Path, key: str, line: str) -> None:
  """Adds a line to a file; in a bucket, in place of earlier ones of its key.

  Raises:
    UserError: if the file of a disk is a link or no regular file.
    OSError: if the file cannot be written.
  """
  if storage.in_bucket(path):
    storage.write_text(path / f'{key}.jsonl', line + '\n')
  else:
    with files.open_in_place(path, 'a') as file:
      file.write(line + '\n')  # in one call, because other processes may add some, too


class _File:
  """Adds lines to a file of a disk, each at once."""

  def __init__(self, path: storage.Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = files.open_in_place(path, 'a+b')
    end = self._file.seek(0, os.SEEK_END)
    if end:
      self._file.seek(end - 1)
      if self._file.read(1) != b'\n':  # the previous writer was killed within a line
        self._file.write(b'\n')

  def write(self, line: str) -> None:
    """Adds a line; in a bucket, a process that is killed before `flush` may lose it."""
    self._file.write(line.encode() + b'\n')
    self._file.flush()

  def flush(self) -> None:
    """Makes sure that this process loses no line if it is killed."""

  def close(self) -> None:
    """Flushes, and ends the writing."""
    self._file.close()


class _Objects:
  """Adds lines to objects of a bucket; has the methods of `_File`."""

  def __init__(self, path: storage.Path):
    # A number, because clocks of hosts differ; a random part, because a predecessor may still run.
    starts = [name.partition('-')[0] for name in storage.files_below(path)]
    start = 1 + max((int(name) for name in starts if name.isdigit()), default=0)
    nonce = uuid.uuid4().hex[:8]
    name = lambda number: path / f'{start:06d}-{nonce}-{number:05d}.jsonl'
    self._growing = growing.Growing(name, _MAX_OBJECT_BYTES)

  def write(self, line: str) -> None:
    self._growing.add(line.encode() + b'\n')
    self._growing.write()

  def flush(self) -> None:
    self._growing.flush()

  def close(self) -> None:
    self._growing.flush()


Lines = _File | _Objects


def opened(path: storage.Path) -> Lines:
  """Returns the writer of lines to a file, which is created if missing.

  Raises:
    UserError: if the file of a disk is a link or no regular file.
    OSError: if the file cannot be written.
  """
  return _Objects(path) if storage.in_bucket(path) else _File(path)

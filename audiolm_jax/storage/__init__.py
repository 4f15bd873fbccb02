"""Reads and writes the files of a run, on disks that all hosts see or in buckets (gs://).

Only this package distinguishes the two. `path` makes a `pathlib.Path`, or for gs:// an
`epath.Path`; both join, list and read alike. What differs is here: whole-file writes,
conditional writes, listings (this file), lines that are added (`lines`), and folders that appear
whole (`folders`). Importing this package imports no client of buckets, nor jax or numpy.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import shlex
import shutil
import tempfile
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from audiolm_jax import files
from audiolm_jax.errors import UserError

if TYPE_CHECKING:
  from etils import epath

  Path = pathlib.Path | epath.Path
else:
  Path = pathlib.PurePath  # of both; importing epath takes a second

SCHEME = 'gs://'
Stamp = Any  # identifies a version of a file: it changes with every write
_TRIAL_BYTES = 1 << 16
_MAX_SWAPPED_BYTES = 4096


def path(text: str | os.PathLike) -> Path:
  """Returns a path on a disk, or in a bucket if `text` begins with gs://.

  Args:
    text: path, or gs://BUCKET/NAME.
  """
  if not in_bucket(text):
    return pathlib.Path(text)
  client()  # registers the client, through which paths read
  from etils import epath

  return epath.Path(text)


def in_bucket(path: str | os.PathLike) -> bool:
  """Returns whether a path is in a bucket.

  Args:
    path: path.
  """
  return os.fspath(path).startswith(SCHEME)


def absolute(text: str | os.PathLike) -> Path:
  """Returns the absolute path; paths in buckets are returned unchanged.

  Args:
    text: path.
  """
  return path(text) if in_bucket(text) else pathlib.Path(text).absolute()


def is_there(path: Path) -> bool:
  """Returns whether there is a file or a folder; on disks, also for a link to nothing.

  Args:
    path: path.
  """
  return path.exists() if in_bucket(path) else os.path.lexists(path)


def is_file(text: str | os.PathLike) -> bool:
  """Returns whether there is a file; False for names that a disk cannot have.

  Args:
    text: path.
  """
  return path(text).is_file() if in_bucket(text) else os.path.isfile(text)


def files_below(folder: Path) -> list[str]:
  """Returns the names of all files below a folder, relative to it, sorted.

  Args:
    folder: path of the folder.
  """
  if in_bucket(folder):
    return client().keys(folder)
  return [str(each.relative_to(folder)) for each in sorted(folder.rglob('*')) if each.is_file()]


def missing(paths: Iterable[str]) -> list[str]:
  """Returns those of some paths that do not exist, by one listing of each folder.

  Args:
    paths: paths, on disks or in buckets.
  """
  by_folder: dict[str, list[str]] = {}
  for each in paths:
    by_folder.setdefault(os.path.dirname(each), []).append(each)
  found = []
  for folder, members in by_folder.items():
    if len(members) == 1 and not in_bucket(folder):  # asks for less than a listing
      found += [each for each in members if not os.path.exists(each)]
      continue
    names = set(client().keys(folder) if in_bucket(folder) else _listed(folder))
    found += [each for each in members if os.path.basename(each) not in names]
  return found


def of_other_size(sizes: Mapping[str, int]) -> list[str]:
  """Returns the paths of existing files that have other sizes than these, in bytes.

  Args:
    sizes: expected size of each path, in bytes.
  """
  if any(map(in_bucket, sizes)):
    return client().of_other_size(sizes)
  return [path for path, size in sizes.items() if os.path.getsize(path) != size]


def _listed(folder: str) -> list[str]:
  try:
    return os.listdir(folder or os.curdir)
  except (FileNotFoundError, NotADirectoryError):
    return []


def digest(path: Path, expected_bytes: Any = None) -> tuple[int, str]:
  """Returns size in bytes and SHA-256 of a file, 64 hex digits.

  Args:
    path: path of the file.
    expected_bytes: a file of a disk with another size is not read, its digest is ''.

  Raises:
    FileNotFoundError: if it is missing, or no file.
  """
  if in_bucket(path):
    data = client().read(path)
    return len(data), hashlib.sha256(data).hexdigest()
  if not path.is_file():
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
  size = path.stat().st_size
  return size, files.sha256(path) if expected_bytes in (None, size) else ''


@contextlib.contextmanager
def atomically(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields an empty file on a disk, whose content takes the name `path` when the block ends.

  Before that, and if the block raises, `path` is unchanged.

  Args:
    path: path of the new file.

  Raises:
    OSError: if `path` cannot be written.
  """
  if not in_bucket(path):
    with files.atomically(path) as partial:
      yield partial
    return
  with tempfile.TemporaryDirectory() as folder:
    partial = pathlib.Path(folder, 'partial')
    partial.touch()
    yield partial
    client().write(path, partial.read_bytes())


@contextlib.contextmanager
def folder_atomically(path: Path, last: str) -> Iterator[pathlib.Path]:
  """Yields an empty folder on a disk, whose files take the name `path` when the block ends.

  If the block raises, no file is written. In a bucket, the files appear one by one.

  Args:
    path: must not exist.
    last: name of the file below the folder that is uploaded last: with it, the folder is complete.

  Raises:
    OSError: if `path` cannot be written.
  """
  if not in_bucket(path):
    with files.folder_atomically(path) as partial:
      yield partial
    return
  with tempfile.TemporaryDirectory() as folder:
    yield pathlib.Path(folder)
    for name in sorted(files_below(pathlib.Path(folder)), key=lambda name: (name == last, name)):
      client().write(path / name, pathlib.Path(folder, name).read_bytes())


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a UTF-8 text file atomically, and creates its folder if missing.

  Args:
    path: path of the file; an existing one is replaced.
    text: content.
  """
  if in_bucket(path):
    client().write(path, text.encode())
  else:
    files.write_text(path, text)


def write_agreed(path: Path, text: str) -> None:
  """Writes a text file that all processes of a pod write with the same content, at the same time.

  Buckets allow one write of an object a second, so in buckets only the first process writes.

  Args:
    path: path of the file.
    text: content.
  """
  if not in_bucket(path):
    files.write_text(path, text)
    return
  stamp, found = look(path)
  if found != text.encode():
    swap(path, text.encode(), stamp)


@contextlib.contextmanager
def local(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a file on a disk with the content of `path`: itself, or a temporary copy.

  Args:
    path: path of the file.

  Raises:
    FileNotFoundError: if it is missing in a bucket.
  """
  if not in_bucket(path):
    yield pathlib.Path(path)
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder, os.path.basename(path))
    copy.write_bytes(client().read(path))
    yield copy


def read_json(
  path: str | os.PathLike, remedy: str, *, max_bytes: int = files.MAX_JSON_BYTES
) -> dict[str, Any]:
  """Returns the object in a JSON file.

  Args:
    path: path of the file.
    remedy: what error messages advise to do.
    max_bytes: largest accepted size.

  Raises:
    UserError: as `files.read_json`.
    OSError: if a bucket cannot be read.
  """
  if not in_bucket(path):
    return files.read_json(path, remedy, max_bytes=max_bytes)
  try:
    data = client().read(path)
  except FileNotFoundError as error:
    raise UserError(f'{path} cannot be read ({error.strerror}): {remedy}') from error
  return files.parse_json(data, path, remedy, max_bytes=max_bytes)


def make_folder(folder: Path) -> None:
  """Creates a folder and its parents, if missing; buckets have none.

  Args:
    folder: path of the folder.
  """
  if not in_bucket(folder):
    folder.mkdir(parents=True, exist_ok=True)


def remove(folder: Path) -> None:
  """Deletes a folder and all files below it.

  Args:
    folder: path of the folder.
  """
  if in_bucket(folder):
    client().remove(folder)
  else:
    shutil.rmtree(folder, ignore_errors=True)


def removal(path: Path) -> str:
  """Returns the shell command that deletes a file.

  Args:
    path: path of the file.
  """
  return f'{"gcloud storage rm" if in_bucket(path) else "rm"} {shlex.quote(str(path))}'


def renaming(path: Path, name: str) -> str:
  """Returns the shell command that gives a folder another name.

  Args:
    path: path of the folder.
    name: its new name.
  """
  program = 'gcloud storage mv' if in_bucket(path) else 'mv'
  return f'{program} {shlex.quote(str(path))} {shlex.quote(str(path.with_name(name)))}'


def poll_seconds(path: Path) -> float:
  """Returns the pause between two looks for files that other processes write.

  Args:
    path: path of one of the files.
  """
  return 2.0 if in_bucket(path) else 0.2


def check_reachable(folder: Path) -> None:
  """Raises OSError, after seconds, if a bucket cannot be reached or read; disks are not asked.

  Args:
    folder: path, on a disk or in a bucket.
  """
  if in_bucket(folder):
    client().check_reachable(folder)


def check_writable(directory: Path) -> None:
  """Creates `directory` if missing, and writes a temporary file to it.

  Args:
    directory: path of the folder.

  Raises:
    OSError: if that fails; after seconds where a bucket cannot be reached.
  """
  if in_bucket(directory):
    client().check(directory, _TRIAL_BYTES)
    return
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:  # nameless, so no link can redirect it
      file.write(bytes(_TRIAL_BYTES))
      file.flush()
      os.fsync(file.fileno())
  except OSError as error:
    raise OSError(
      error.errno,
      f'cannot write to workdir {str(directory)!r} ({error.strerror}): free space or choose '
      'another',
    ) from error


def look(path: Path) -> tuple[Stamp, bytes | None]:
  """Returns stamp and content of a small file that `swap` writes; None if missing or empty.

  Args:
    path: path of the file.

  Raises:
    UserError: if the path of a disk is a link or no regular file.
  """
  if in_bucket(path):
    return client().look(path)
  with _exclusively(path) as file:
    return _looked(file)


def swap(path: Path, data: bytes | None, stamp: Stamp) -> Stamp | None:
  """Writes a file if its stamp is still `stamp`, as one step among all processes and hosts.

  Args:
    path: path of the file; on disks all its writers must use this function.
    data: new content; None deletes the file (on disks, empties it).
    stamp: stamp from `look`, or from the last `swap`.

  Returns:
    The new stamp; None if another process wrote the file.
  """
  if in_bucket(path):
    return client().swap(path, data, stamp)
  with _exclusively(path) as file:
    now, found = _looked(file)
    if now != stamp:
      return None
    if found is not None and data == found:
      os.utime(file.fileno())  # a new stamp, even on a full disk
    else:
      file.seek(0)
      file.truncate()
      if data:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return _looked(file)[0]


@contextlib.contextmanager
def _exclusively(path: pathlib.Path):
  """Opens a file exclusively, so that no process reads it between a check and a write."""
  with files.open_in_place(path, 'r+b') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield file


def _looked(file) -> tuple[Stamp, bytes | None]:
  file.seek(0)
  data = file.read(_MAX_SWAPPED_BYTES)
  return (data, os.fstat(file.fileno()).st_mtime_ns), data if data.strip() else None


def client() -> types.ModuleType:
  """Returns the client of buckets, whose import takes a second."""
  from audiolm_jax.storage import bucket

  return bucket

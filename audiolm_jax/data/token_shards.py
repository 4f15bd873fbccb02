"""Stores encoded examples in ArrayRecord shards with a manifest, `name.json`, written last.

Shards are named `name-00003-of-00016.array_record`. A record is the length of a JSON header (4
bytes), the header {name: [type, shape]} and the arrays, little-endian, in the order of the header;
it contains nothing executable. Integers are stored in 16 bits where they fit, and read as int32.

Each shard is one file, written by one process, in any order: call `write_shard` for all shards,
then `write_manifest` once. Shards without a manifest are incomplete. The process that writes a
shard also writes its entry of the manifest, next to it, so that no process has to read all shards.
A folder may be in a bucket (gs://), where each shard is written to a temporary file of the disk and
uploaded; records are read one by one from there.
"""

import errno
import json
import math
import os
import pathlib
import re
import resource
from collections.abc import Iterable, Mapping
from typing import Any

import grain
import numpy as np

from audiolm_jax import files, storage
from audiolm_jax.data import pipeline
from audiolm_jax.errors import UserError

_TYPES = ('<i2', '<i4', '<f4', '|u1')
# How ArrayRecord words an error of the system: `open() failed: Too many open files; opening ...`.
_SYSTEM_ERROR = re.compile(r'\w+\(\) failed: ')
# Threads that read batches from a bucket, where each record takes about 30 ms: with 128, a batch of
# 64 rows takes 15 ms.
_BUCKET_THREADS = 128
_AGAIN = 'encode or copy this shard again'
DAMAGE = 'Corrupted'  # in ArrayRecord's errors of a record whose checksum differs


def encode(example: Mapping[str, Any]) -> bytes:
  """Returns one example {name: array or number} as a record.

  Args:
    example: arrays or numbers by name.

  Raises:
    UserError: if a value is not an integer below 2**31 in magnitude, a float or a boolean.
  """
  header, parts = {}, []
  for name, value in example.items():
    array = np.asarray(value)
    if array.dtype.kind in 'iu':
      largest = int(np.abs(array.astype(np.int64)).max(initial=0))
      if largest >= 2**31:
        raise UserError(f'{name!r} holds {largest}, which does not fit in 32 bits')
      array = array.astype('<i2' if largest < 2**15 else '<i4')
    elif array.dtype.kind in 'fb':
      array = array.astype('<f4' if array.dtype.kind == 'f' else '|u1')
    else:
      raise UserError(f'{name!r} is of type {array.dtype}; only numbers can be stored')
    header[name] = [array.dtype.str, array.shape]
    parts.append(array.tobytes())
  text = json.dumps(header).encode()
  return b''.join([len(text).to_bytes(4, 'little'), text, *parts])


def decode(record: bytes) -> dict[str, np.ndarray]:
  """Returns the example of a record; integers as int32, booleans as uint8.

  Args:
    record: from `encode`.

  Raises:
    UserError: if the record is damaged.
  """
  try:
    at = 4 + int.from_bytes(record[:4], 'little')
    header = json.loads(record[4:at])
    example = {}
    for name, (kind, shape) in header.items():
      if kind not in _TYPES or not all(type(n) is int and 0 <= n <= len(record) for n in shape):
        raise UserError(f'type {str(kind)[:20]!r} or shape {str(shape)[:80]!r}')
      array = np.frombuffer(record, kind, math.prod(shape), at).reshape(shape)
      at += array.nbytes
      example[name] = array.astype(np.int32) if array.dtype.kind == 'i' else array
  except (ValueError, TypeError, AttributeError, RecursionError) as error:
    raise UserError(f'not a record of encoded examples ({error}): encode the data again') from error
  if at != len(record):
    raise UserError(
      f'the record has {len(record)} bytes, its header declares {at}: encode the data again'
    )
  return example


def shard_path(folder: str | os.PathLike, name: str, shard: int, num_shards: int) -> str:
  """Returns the path of a shard.

  Args:
    folder: folder of the shards.
    name: of the data set, such as 'train'.
    shard: number of the shard, from 0.
    num_shards: number of shards.
  """
  return os.path.join(folder, f'{name}-{shard:05d}-of-{num_shards:05d}.array_record')


def written(folder: str | os.PathLike, name: str) -> list[str]:
  """Returns the paths of the shards of a data set that exist, sorted.

  Args:
    folder: folder of the shards.
    name: of the data set.
  """
  shard = re.compile(re.escape(name) + r'-[^/]*\.array_record')
  there = storage.files_below(storage.path(folder))
  return sorted(os.path.join(folder, file) for file in there if shard.fullmatch(file))


def write_shard(
  folder: str | os.PathLike,
  name: str,
  shard: int,
  num_shards: int,
  examples: Iterable[Mapping[str, Any]],
) -> str:
  """Writes one shard and its entry atomically, and returns its path; replaces an existing one.

  Args:
    folder: folder of the shards.
    name: of the data set.
    shard: number of the shard, from 0.
    num_shards: number of shards.
    examples: examples of this shard, see `encode`.

  Returns:
    Path of the shard.
  """
  from array_record.python import array_record_module

  path = shard_path(folder, name, shard, num_shards)
  storage.make_folder(storage.path(folder))
  with storage.atomically(path) as partial:
    writer = array_record_module.ArrayRecordWriter(str(partial), 'group_size:1')
    try:
      for example in examples:
        writer.write(encode(example))
    finally:
      if writer.is_open():
        writer.close()
    # Before the shard has its name: a shard without an entry would be read once more.
    storage.write_text(_entry_path(path), json.dumps(_entry(path, partial)))
  return path


def _entry_path(shard: str) -> str:
  """Returns the path of a shard's entry, which exists until the manifest is written."""
  return f'{shard}.json'


def _entry(path: str, file: pathlib.Path) -> dict[str, Any]:
  """Returns the manifest's entry of the shard `path`, given its content."""
  return {
    'file': os.path.basename(path),
    'num_examples': len(grain.sources.ArrayRecordDataSource([str(file)])),
    'num_bytes': os.path.getsize(file),
    'sha256': files.sha256(file),
  }


def _entries(paths: list[str]) -> list[dict[str, Any]]:
  """Returns the manifest's entries of existing shards; reads shards only whose entry is missing."""
  absent = set(storage.missing(map(_entry_path, paths)))
  found = []
  for path in paths:
    entry = None if _entry_path(path) in absent else _stored_entry(path)
    if entry is None:
      with storage.local(path) as file:
        entry = _entry(path, file)
    found.append(entry)
  return found


def _stored_entry(path: str) -> dict[str, Any] | None:
  """Returns the entry that was written with a shard; None if it is damaged, or of another file."""
  try:
    entry = storage.read_json(_entry_path(path), 'it is written again')
  except UserError:
    return None
  size = entry.get('num_bytes')
  same_size = storage.in_bucket(path) or size == os.path.getsize(path)
  whole = _is_entry(entry) and entry.get('file') == os.path.basename(path)
  return entry if whole and same_size else None


def count(paths: Iterable[str]) -> int:
  """Returns the number of examples in existing shards, before their manifest is written.

  Args:
    paths: paths of shards.

  Raises:
    OSError: if a bucket cannot be read.
  """
  return sum(entry['num_examples'] for entry in _entries(list(paths)))


def write_manifest(
  folder: str | os.PathLike, name: str, num_shards: int, metadata: Mapping[str, Any]
):
  """Writes `name.json`: `metadata`, and the entry of each shard; then deletes single entries.

  Args:
    folder: folder of the shards.
    name: name of the data set.
    num_shards: number of shards.
    metadata: frame rates, and fingerprints of the codec and the k-means.

  Raises:
    UserError: if a shard is missing.
  """
  paths = [shard_path(folder, name, shard, num_shards) for shard in range(num_shards)]
  if missing := storage.missing(paths):
    raise UserError(f'{missing[0]} is missing: write every shard before the manifest')
  text = json.dumps({'metadata': dict(metadata), 'shards': _entries(paths)}, indent=2)
  storage.write_text(os.path.join(folder, f'{name}.json'), text)
  for path in paths:
    storage.path(_entry_path(path)).unlink(missing_ok=True)


class TokenShards:
  """Random access source of encoded examples.

  A damaged record raises, or, up to `max_bad_fraction` of the records, is None; the reasons are in
  `bad`, by index. An error of the system (too many open files, a failed disk or network) is no
  damage. Every shard that was read from stays open: opening raises the process's soft limit of open
  files by the number of shards, up to the hard limit. `num_threads` is the number of threads that
  should read from it (`pipeline.batches`). `metadata` is that of the manifest. Each entry of
  `expected` has to be in the metadata with the same value, so that a model reads no tokens of
  another codec.

  Raises:
    UserError: on opening, if a shard is missing, differs from the manifest in size or (with
      `verify`) content, or metadata differ from `expected`; on reading, naming the record, if more
      than `max_bad_fraction` are damaged.
    OSError: on reading, if the system could not open or read a shard.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    name: str,
    *,
    expected: Mapping[str, Any] | None = None,
    verify: bool = False,
    max_bad_fraction: float = 0.0,
  ):
    path = os.path.join(folder, f'{name}.json')
    if storage.missing([path]):
      raise UserError(f'{path} is missing: encoding did not finish; run it again')
    manifest = _manifest(path)
    self.metadata = manifest['metadata']
    self.bad: dict[int, str] = {}
    self._path, self._max_bad_fraction = path, max_bad_fraction
    in_bucket = storage.in_bucket(path)
    self.num_threads = _BUCKET_THREADS if in_bucket else pipeline.NUM_THREADS
    for key, value in (expected or {}).items():
      if self.metadata.get(key) != value:
        raise UserError(
          f'{path}: {key} is {self.metadata.get(key)!r}, this run has {value!r}: encode the data '
          'again'
        )
    shards = manifest['shards']
    paths = [shard_path(folder, name, i, len(shards)) for i in range(len(shards))]
    if missing := storage.missing(paths):
      raise UserError(f'{missing[0]} is missing: {_AGAIN}')
    sizes = {path: shard['num_bytes'] for path, shard in zip(paths, shards)}
    for path in storage.of_other_size(sizes):
      found, _ = storage.digest(storage.path(path), -1)
      raise UserError(f'{path} has {found} bytes, the manifest says {sizes[path]}: {_AGAIN}')
    for path, shard in zip(paths if verify else [], shards):
      if storage.digest(storage.path(path))[1] != shard['sha256']:
        raise UserError(f'{path} does not have the SHA-256 of the manifest: {_AGAIN}')
    _allow_open_files(len(paths))
    self._source = _opened(paths)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: int) -> dict[str, np.ndarray] | None:
    i = range(len(self))[i]
    try:
      return decode(self._source[i])
    except (ValueError, RuntimeError) as error:  # RuntimeError: ArrayRecord's checksum
      in_bucket = storage.in_bucket(self._path) and isinstance(error, RuntimeError)
      if _SYSTEM_ERROR.search(str(error)) or (in_bucket and DAMAGE not in str(error)):
        named = (number for number in errno.errorcode if os.strerror(number) in str(error))
        raise OSError(
          next(named, errno.EIO),
          f'{self._path}, record {i}: {error}. The record may be intact: mend the storage, or '
          'raise the limit of open files (`ulimit -n`), and start again',
        ) from error
      self.bad[i] = str(error)
      if len(self.bad) > self._max_bad_fraction * len(self):
        raise UserError(
          f'record {i} of {self._path} is damaged ({error}); with it {len(self.bad)} of '
          f'{len(self)} are, more than max_bad_fraction={self._max_bad_fraction}: encode or copy '
          'the shards again'
        ) from error
      return None


def _manifest(path: str) -> dict[str, Any]:
  """Returns the content of a manifest.

  Raises:
    UserError: if it is damaged.
  """
  manifest = storage.read_json(path, 'encode the data again')
  metadata, shards = manifest.get('metadata'), manifest.get('shards')
  if not (isinstance(metadata, dict) and isinstance(shards, list) and all(map(_is_entry, shards))):
    raise UserError(f'{path} does not list metadata and shards: encode the data again')
  return manifest


def _is_entry(shard: Any) -> bool:
  kinds = {'num_examples': int, 'num_bytes': int, 'sha256': str}
  return isinstance(shard, dict) and all(
    isinstance(shard.get(name), kind) for name, kind in kinds.items()
  )


def _allow_open_files(number: int):
  """Raises the soft limit of open files by a number, up to the hard limit."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft == resource.RLIM_INFINITY:
    return
  wanted = soft + number
  if hard != resource.RLIM_INFINITY:
    wanted = min(wanted, hard)
  resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _opened(paths: list[str]) -> grain.sources.ArrayRecordDataSource:
  """Opens shards.

  Raises:
    OSError: if a bucket cannot be read.
  """
  try:
    return grain.sources.ArrayRecordDataSource(paths)
  except RuntimeError as error:
    if paths and storage.in_bucket(paths[0]) and DAMAGE not in str(error):
      raise OSError(errno.EIO, f'shards cannot be read ({error})', paths[0]) from error
    raise

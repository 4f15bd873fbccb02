"""Encoded examples on disk: `name-00003-of-00016.array_record` files and a manifest, `name.json`,
written last.

A record is the length of a JSON header (4 bytes), the header {name: [type, shape]} and the arrays,
little-endian, in the header's order; nothing in it can be executed. Integers that fit are kept in
16 bits and come back as int32.

Each shard is a file of its own, so that many processes (or one that was stopped) can write them in
any order, a shard
being one process's: `write_shard` for every shard, then `write_manifest` once. No manifest, no data
set.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import grain
import numpy as np

from audiolm_jax import files
from audiolm_jax.errors import UserError

_TYPES = ('<i2', '<i4', '<f4', '|u1')


def encode(example: Mapping[str, Any]) -> bytes:
  """Returns one example {name: array or number} as a record.

  Raises ValueError for anything but integers below 2**31 in size, floats and booleans.
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
      raise UserError(f'{name!r} is of type {array.dtype}; numbers are stored')
    header[name] = [array.dtype.str, array.shape]
    parts.append(array.tobytes())
  text = json.dumps(header).encode()
  return b''.join([len(text).to_bytes(4, 'little'), text, *parts])


def decode(record: bytes) -> dict[str, np.ndarray]:
  """Returns the example that `encode` made into `record`; integers as int32, booleans as uint8.

  Raises ValueError when the record is not of that form.
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
      f'the record has {len(record)} bytes, its header tells of {at}: encode the data again'
    )
  return example


def shard_path(folder: str | os.PathLike, name: str, shard: int, num_shards: int) -> str:
  return os.path.join(folder, f'{name}-{shard:05d}-of-{num_shards:05d}.array_record')


def write_shard(
  folder: str | os.PathLike,
  name: str,
  shard: int,
  num_shards: int,
  examples: Iterable[Mapping[str, Any]],
) -> str:
  """Writes one shard, whole or not at all, and returns its path; one of that name is replaced."""
  from array_record.python import array_record_module

  path = shard_path(folder, name, shard, num_shards)
  os.makedirs(folder, exist_ok=True)
  with files.atomically(path) as partial:
    writer = array_record_module.ArrayRecordWriter(str(partial), 'group_size:1')
    try:
      for example in examples:
        writer.write(encode(example))
    finally:
      if writer.is_open():
        writer.close()
  return path


def count(paths: Iterable[str]) -> int:
  """Returns the number of examples in shards that are there."""
  return sum(len(grain.sources.ArrayRecordDataSource([path])) for path in paths)


def write_manifest(
  folder: str | os.PathLike, name: str, num_shards: int, metadata: Mapping[str, Any]
):
  """Writes `name.json`: `metadata` (frame rates, fingerprints of the codec and the k-means) and
  what each shard holds.

  Raises ValueError when a shard is missing.
  """
  shards = []
  for shard in range(num_shards):
    path = shard_path(folder, name, shard, num_shards)
    if not os.path.exists(path):
      raise UserError(f'{path} is missing: write every shard before the manifest')
    num_examples = len(grain.sources.ArrayRecordDataSource([path]))
    entry = {
      'file': os.path.basename(path),
      'num_examples': num_examples,
      'num_bytes': os.path.getsize(path),
    }
    shards.append({**entry, 'sha256': files.sha256(path)})
  text = json.dumps({'metadata': dict(metadata), 'shards': shards}, indent=2)
  files.write_text(os.path.join(folder, f'{name}.json'), text)


class TokenShards:
  """A random access source of what was encoded.

  A damaged record is an error, or, up to `max_bad_fraction` of the records, None; the reasons are
  in `bad`, by index. `metadata` is the manifest's. With `expected`, each of its entries must be in
  the metadata with the same value: a model must not read tokens of another codec.

  Raises ValueError, before anything is read, when a shard is missing, of another size or (with
  `verify`) of other content than the manifest says, or when the metadata are not as expected; when
  reading, naming the record, once more than `max_bad_fraction` turned out damaged.
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
    if not os.path.exists(path):
      raise UserError(f'{path} is missing: encoding did not finish; run it again')
    manifest = _manifest(path)
    self.metadata = manifest['metadata']
    self.bad: dict[int, str] = {}
    self._path, self._max_bad_fraction = path, max_bad_fraction
    for key, value in (expected or {}).items():
      if self.metadata.get(key) != value:
        raise UserError(
          f'{path}: {key} is {self.metadata.get(key)!r}, this run has {value!r}: encode the data '
          'again'
        )
    paths = []
    for i, shard in enumerate(manifest['shards']):
      paths.append(shard_path(folder, name, i, len(manifest['shards'])))
      _check(paths[-1], shard, verify)
    self._source = grain.sources.ArrayRecordDataSource(paths)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: int) -> dict[str, np.ndarray] | None:
    i = range(len(self))[i]
    try:
      return decode(self._source[i])
    except (ValueError, RuntimeError) as error:  # RuntimeError: ArrayRecord's own checksum
      self.bad[i] = str(error)
      if len(self.bad) > self._max_bad_fraction * len(self):
        raise UserError(
          f'record {i} of {self._path} is damaged ({error}); with it {len(self.bad)} of '
          f'{len(self)} are, more than max_bad_fraction={self._max_bad_fraction}: encode or copy '
          'the shards again'
        ) from error
      return None


def _manifest(path: str) -> dict[str, Any]:
  """Returns what `write_manifest` wrote; ValueError where it is damaged."""
  manifest = files.read_json(path, 'encode the data again')
  metadata, shards = manifest.get('metadata'), manifest.get('shards')
  kinds = {'num_bytes': int, 'sha256': str}
  is_shard = lambda shard: (
    isinstance(shard, dict)
    and all(isinstance(shard.get(name), kind) for name, kind in kinds.items())
  )
  if not (isinstance(metadata, dict) and isinstance(shards, list) and all(map(is_shard, shards))):
    raise UserError(f'{path} does not list metadata and shards: encode the data again')
  return manifest


def _check(path: str, shard: Mapping[str, Any], verify: bool):
  again = 'encode or copy this shard again'
  if not os.path.exists(path):
    raise UserError(f'{path} is missing: {again}')
  if os.path.getsize(path) != shard['num_bytes']:
    raise UserError(
      f'{path} has {os.path.getsize(path)} bytes, the manifest says {shard["num_bytes"]}: {again}'
    )
  if verify and files.sha256(path) != shard['sha256']:
    raise UserError(f'{path} does not have the SHA-256 of the manifest: {again}')

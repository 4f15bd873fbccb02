"""Objects in buckets (gs://), through tensorstore, with which Orbax writes arrays.

One client means one authentication (that of a TPU VM, or application default credentials), one
policy of retries, and no cache of listings: a process sees at once what another one wrote. Orbax,
JAX and `epath` use it as the file system 'gs' of fsspec.

tensorstore repeats requests that fail with 408, 429, 500 or 503, or whose connection drops. A
conditional write whose answer was lost may therefore report a failure: `swap` reads it back.
"""

import errno
import functools
import io
import os
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

# Read by tensorstore's HTTP client: a request that moves less than a byte a second for this long is
# repeated. Without a limit, it would hang with the network.
os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS', '30')
os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES', '1')
os.environ.setdefault('EPATH_USE_TF', 'false')  # TensorFlow has a client of its own

import fsspec
import tensorstore

from audiolm_jax.errors import UserError

_SCHEMES = ('gs', 'gcs')
_MISSING = 'missing'
_NOTHING = slice(0, 0)  # range of bytes
# Ours give up after about two minutes without a connection, those of `check` after seconds, and
# tensorstore's own, of the arrays that Orbax saves in the background, after a quarter of an hour.
_RETRIES = {'max_retries': 16, 'initial_delay': '1s', 'max_delay': '8s'}
_FEW_RETRIES = {'max_retries': 2, 'initial_delay': '500ms', 'max_delay': '1s'}


def look(path) -> tuple[bytes, bytes | None]:
  """Returns generation and content of an object; None as the content of a missing one."""
  kv, key = _split(path)
  found = _result(kv.read(key), path)
  return found.stamp.generation, None if found.state == _MISSING else found.value


def read(path) -> bytes:
  """Returns the content of an object.

  Raises:
    FileNotFoundError: if it is missing.
  """
  _, data = look(path)
  if data is None:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
  return data


def write(path, data: bytes) -> None:
  """Writes an object, which appears whole."""
  start_write(path, data)()


def start_write(path, data: bytes) -> Callable[..., Any]:
  """Starts to write an object; returns a function that waits for the end, at most some seconds."""
  kv, key = _split(path)
  future = kv.write(key, data)
  return lambda seconds=None: _result(future, path, seconds)


def swap(path, data: bytes | None, generation: bytes) -> bytes | None:
  """Writes (None: deletes) an object if its generation is `generation`.

  Returns:
    The new generation; None if another process wrote the object. Different writers must write
    different content, by which a write whose answer was lost is recognized.
  """
  kv, key = _split(path)
  if written := _result(kv.write(key, data, if_equal=generation), path).generation:
    return written
  now, found = look(path)
  return now if found == data else None


def keys(folder) -> list[str]:
  """Returns the names of the objects below a folder, relative to it, sorted."""
  return _keys(folder)


def _keys(folder, first: str = '', stop: str = '') -> list[str]:
  """Returns the names from `first` on and before `stop`."""
  kv, key = _split(folder)
  prefix = f'{key}/' if key else ''
  span = tensorstore.KvStore.KeyRange(prefix + first, prefix + stop) if stop else _below(prefix)
  names = []
  for _ in range(2):
    names = [name.decode()[len(prefix) :] for name in _result(kv.list(span), folder)]
    # tensorstore's listing is empty where it is refused. A read is an error there, and if it is
    # not, the second listing tells whether the first one was refused by chance.
    _result(kv.read(prefix or '/', byte_range=_NOTHING), folder)
    if names:
      break
  return sorted(name for name in names if not name.endswith('/') and name)  # folders of the console


def numbered(folder) -> list[str]:
  """Returns the names of the objects below a folder that begin with a digit, relative to it."""
  return _keys(folder, '0', ':')


def contents(paths) -> list[bytes | None]:
  """Returns the contents of objects, read at the same time; None for missing ones."""
  return [None if found.state == _MISSING else found.value for found in _read_all(paths)]


def exist(paths) -> list[bool]:
  """Returns whether objects exist, asked at the same time."""
  return [found.state != _MISSING for found in _read_all(paths, byte_range=_NOTHING)]


def _read_all(paths, **options) -> list:
  splits = [_split(path) for path in paths]
  futures = [kv.read(key, **options) for kv, key in splits]
  return [_result(future, path) for future, path in zip(futures, paths)]


def remove(folder) -> None:
  """Deletes all objects below a folder."""
  kv, key = _split(folder)
  for deletion in [kv.write(f'{key}/{name}', None) for name in keys(folder)]:
    _result(deletion, folder)


def check_reachable(folder) -> None:
  """Reads where there may be nothing.

  Raises:
    OSError: after seconds, if the bucket cannot be reached or read.
  """
  name, key = _name_and_key(folder)
  _result(_open(name, _FEW_RETRIES).read(key or '/', byte_range=_NOTHING), folder)


def check(folder, num_bytes: int) -> None:
  """Writes, lists and deletes an object below a folder.

  Raises:
    OSError: after seconds, if that fails.
  """
  name, key = _name_and_key(folder)
  kv = _open(name, _FEW_RETRIES)
  trial = f'{key}/.trial-{uuid.uuid4().hex}'.lstrip('/')
  _result(kv.write(trial, bytes(num_bytes)), folder)
  if not _result(kv.list(_below(trial)), folder):
    raise _explained('PERMISSION_DENIED: objects cannot be listed', folder)
  _result(kv.write(trial, None), folder)


def _below(prefix: str) -> tensorstore.KvStore.KeyRange | None:
  """Returns the range of the keys that begin with a prefix."""
  return (
    tensorstore.KvStore.KeyRange(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)) if prefix else None
  )


def _open(name: str, retries: Mapping[str, Any]) -> tensorstore.KvStore:
  context = {'gcs_request_retries': dict(retries)}
  try:
    return tensorstore.KvStore.open({'driver': 'gcs', 'bucket': name, 'context': context}).result()
  except ValueError as error:
    raise UserError(f'gs://{name}: {error}: give gs://BUCKET/FOLDER') from error


@functools.lru_cache(None)
def _opened(name: str) -> tensorstore.KvStore:
  return _open(name, _RETRIES)


def _split(path) -> tuple[tensorstore.KvStore, str]:
  name, key = _name_and_key(path)
  return _opened(name), key


def _name_and_key(path) -> tuple[str, str]:
  name, _, key = _FileSystem._strip_protocol(os.fspath(path)).partition('/')
  return name, key


def _result(future, path, seconds: float | None = None):
  """Returns the result of a request.

  Raises:
    OSError: if it failed, with a number that tells whether starting again may help.
  """
  try:
    return future.result(timeout=seconds)
  except ValueError as error:  # all errors of tensorstore
    raise _explained(str(error), path) from error


def _explained(reason: str, path) -> OSError:
  name, _ = _name_and_key(path)
  short = reason.partition(' [')[0][:300]  # the rest are places in tensorstore's source
  if re.search(r'PERMISSION_DENIED|UNAUTHENTICATED|HTTP response code: 40[13]', reason):
    return OSError(
      errno.EACCES,
      f'no access to bucket {name!r} ({short}): give the account of this machine the role '
      'roles/storage.objectUser on it, or run `gcloud auth application-default login`',
      str(path),
    )
  if re.search(r'NOT_FOUND|HTTP response code: 404', reason):
    return OSError(
      errno.ENXIO,  # not that of a missing file
      f'there is no bucket {name!r} ({short}): create it by `gcloud storage buckets create '
      f'gs://{name} --location=REGION`, in the region of the machines',
      str(path),
    )
  return OSError(
    errno.EIO, f'bucket {name!r} cannot be used ({short}): check the network', str(path)
  )


class _Writer(io.BytesIO):
  """Collects an object, which is written when closed, but not if the `with` block raises."""

  def __init__(self, path):
    super().__init__()
    self._path = path

  def close(self):
    if not self.closed:
      write(self._path, self.getvalue())
    super().close()

  def __exit__(self, kind, *unused):
    if kind is None:
      self.close()
    else:
      super().close()


class _FileSystem(fsspec.AbstractFileSystem):
  """Shows objects as files; a folder exists as long as there is an object below it."""

  protocol, root_marker = _SCHEMES, ''

  def __init__(self, **unused):
    super().__init__(use_listings_cache=False)

  @classmethod
  def _strip_protocol(cls, path):
    path = str(path)
    for scheme in _SCHEMES:
      path = path.removeprefix(f'{scheme}://')
    return path.rstrip('/')

  def _kind(self, path) -> str | None:
    kv, key = _split(path)
    if key and _result(kv.read(key, byte_range=_NOTHING), path).state != _MISSING:
      return 'file'
    return 'directory' if keys(path) else None

  def info(self, path, **unused):
    kind, name = self._kind(path), self._strip_protocol(path)
    if kind is None:
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return {'name': name, 'type': kind, 'size': None}

  # Those of fsspec return False for any error, as if an object were missing.
  def exists(self, path, **unused):
    return self._kind(path) is not None

  def isfile(self, path):
    return self._kind(path) == 'file'

  def isdir(self, path):
    return self._kind(path) == 'directory'

  def ls(self, path, detail=True, **unused):
    root, found = self._strip_protocol(path), {}
    for key in keys(path):
      head, slash, _ = key.partition('/')
      found[f'{root}/{head}'] = 'directory' if slash else 'file'
    entries = [{'name': name, 'type': kind, 'size': None} for name, kind in sorted(found.items())]
    entries = entries or [self.info(path)]
    return entries if detail else [entry['name'] for entry in entries]

  def _open(self, path, mode='rb', **unused):
    if mode not in ('rb', 'wb'):
      raise OSError(errno.EINVAL, f'objects are read or written whole, not in mode {mode}', path)
    return io.BytesIO(read(path)) if mode == 'rb' else _Writer(path)

  def rm(self, path, recursive=False, maxdepth=None):
    for each in [path] if isinstance(path, str) else path:
      self.info(each)
      if recursive:
        remove(each)
      self.rm_file(each)

  def rm_file(self, path):
    kv, key = _split(path)
    _result(kv.write(key, None), path)

  def mkdir(self, path, **unused):
    pass

  def makedirs(self, path, **unused):
    pass


for _scheme in _SCHEMES:
  fsspec.register_implementation(_scheme, _FileSystem, clobber=True)

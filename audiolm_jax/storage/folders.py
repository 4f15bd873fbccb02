"""Numbered folders that appear whole, with a listing of their files: the steps of a run.

A writer asks for a `draft`, fills it, and calls `seal` with the listing.

  disk:    NUMBER/ with digest.json, under another name until it is sealed and renamed (by Orbax)
  bucket:  data/NUMBER-NONCE/, named by NUMBER.json, which holds the listing and is written once

Objects cannot be renamed, so a bucket's folder has its final name while it is filled. It is whole
if NUMBER.json names it and Orbax's stamp, which is written after the seal, is in it. A paused
process that wakes after another one took its place fills a folder that nothing names, because
NUMBER.json is only ever created. Only the holder of the run's lock may write, remove or clear.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

from audiolm_jax import storage

LISTING = 'digest.json'
STAMP = 'commit_success.txt'  # of Orbax
_UNFINISHED = '.orbax-checkpoint-tmp'
_REMAINS = re.compile(r'^\d+\.(orbax-checkpoint-tmp.*|pruned)$')  # unfinished saves, deletions
_REJECTED = '.rejected'
_DATA = 'data'
_LISTING_IN_BUCKET = re.compile(r'\d+(\.rejected\+*)?\.json')
_FOLDER_IN_BUCKET = re.compile(r'\d+-[0-9a-f]+-\d+')


class _OnDisk:
  def __init__(self, directory: pathlib.Path):
    self._directory = directory

  def numbers(self, *, damaged: bool = False) -> list[int]:
    """Returns the numbers of the sealed folders, ascending; `damaged`: of those without a listing,
    too.
    """
    found = self._directory.iterdir() if self._directory.is_dir() else []
    numbers = [path.name for path in found if path.name.isdigit()]
    return sorted(
      int(name) for name in numbers if damaged or (self._directory / name / LISTING).is_file()
    )

  def folder(self, number: int) -> pathlib.Path:
    return self._directory / str(number)

  def listing(self, number: int) -> pathlib.Path:
    """Returns the file with the listing of a folder."""
    return self.folder(number) / LISTING

  def draft(self, number: int) -> pathlib.Path:
    """Returns the folder to give to Orbax, which writes to another one until the end."""
    return self.folder(number)

  def written(self, number: int) -> pathlib.Path:
    """Returns the folder in which the files of a draft are, before the seal."""
    [unfinished] = self._directory.glob(f'{number}{_UNFINISHED}*')
    return unfinished

  def seal(self, number: int, listing: Mapping[str, Any]) -> None:
    """Writes the listing of a draft; Orbax makes it whole."""
    with (self.written(number) / LISTING).open('w') as file:
      json.dump(listing, file, indent=1)
      file.flush()
      os.fsync(file.fileno())

  def remove(self, number: int) -> None:
    # Renamed first, so that a kill during the deletion leaves no partial folder.
    pruned = self._directory / f'{number}.pruned'
    self.folder(number).rename(pruned)
    shutil.rmtree(pruned)

  def reject(self, number: int) -> str:
    """Frees the number of a folder, and returns the name under which it is kept."""
    rejected = self._directory / f'{number}{_REJECTED}'
    while rejected.exists():
      rejected = rejected.with_name(rejected.name + '+')
    self.folder(number).rename(rejected)
    return rejected.name

  def clear(self, *, own: bool = False) -> None:
    """Deletes what killed or failed writers left; `own`: only what this start left."""
    del own  # a disk cannot tell
    for path in self._directory.iterdir():
      if _REMAINS.match(path.name):
        shutil.rmtree(path, ignore_errors=True)

  def clear_draft(self, number: int) -> None:
    """Deletes the remains of a failed draft, which would keep a full disk full."""
    for path in self._directory.glob(f'{number}{_UNFINISHED}*'):
      shutil.rmtree(path, ignore_errors=True)


class _InBucket:
  """Has the methods of `_OnDisk`.

  Args:
    directory: folder of the folders.
    nonce: hexadecimal digits of this start of the run, the same on all processes.
  """

  def __init__(self, directory: storage.Path, nonce: str):
    self._directory, self._nonce, self._num_drafts = directory, nonce, 0
    self._draft: storage.Path | None = None
    self._failed: list[tuple[int, storage.Path]] = []  # drafts, which late threads may still fill

  def numbers(self, *, damaged: bool = False) -> list[int]:
    named = {
      int(path.stem): name for path, name in self._listings().items() if _REJECTED not in path.name
    }
    whole = self._stamped({name for name in named.values() if name})
    return sorted(n for n, name in named.items() if name in whole or (damaged and name is None))

  def folder(self, number: int) -> storage.Path:
    [text] = storage.client().contents([self.listing(number)])
    return self._path((text and _named(text)) or f'{number}-unknown')

  def listing(self, number: int) -> storage.Path:
    return self._directory / f'{number}.json'

  def draft(self, number: int) -> storage.Path:
    self._num_drafts += 1  # a failed draft leaves files, which Orbax would not replace
    self._draft = self._path(f'{number}-{self._nonce}-{self._num_drafts}')
    return self._draft

  def written(self, number: int) -> storage.Path:
    return self._draft

  def seal(self, number: int, listing: Mapping[str, Any]) -> None:
    path = self.listing(number)
    text = json.dumps({'folder': self._draft.name, **listing}, indent=1)
    stamp, found = storage.look(path)
    if found is None and storage.swap(path, text.encode(), stamp) is not None:
      return
    raise OSError(errno.EEXIST, f'another process has written {number} meanwhile', str(path))

  def remove(self, number: int) -> None:
    folder = self.folder(number)
    self.listing(number).unlink()  # first, so that a kill leaves no partial folder with a name
    storage.remove(folder)

  def reject(self, number: int) -> str:
    rejected = self._directory / f'{number}{_REJECTED}.json'
    while rejected.exists():
      rejected = rejected.with_name(rejected.name.replace('.json', '+.json'))
    with storage.atomically(rejected) as partial:
      partial.write_bytes(self.listing(number).read_bytes())
    self.listing(number).unlink()
    return rejected.name

  def clear(self, *, own: bool = False) -> None:
    if own:
      for number, draft in self._failed:
        with contextlib.suppress(OSError):  # the next call tries again
          self._clear(number, draft)
      return
    listings = self._listings()
    whole = self._stamped({name for name in listings.values() if name})
    for path, name in listings.items():
      if name and name not in whole and _REJECTED not in path.name:
        path.unlink()  # killed between the seal and Orbax's stamp
    kept = whole | {name for path, name in listings.items() if _REJECTED in path.name}
    names = {name.partition('/')[0] for name in storage.files_below(self._directory / _DATA)}
    for name in sorted(names - kept):
      # What is deleted depends on reads: a listing may lack objects (bucket.keys).
      if not {name, None} & self._named_by_all(int(name.partition('-')[0])):
        storage.remove(self._path(name))

  def clear_draft(self, number: int) -> None:
    self._failed.append((number, self._draft))
    self._clear(number, self._draft)

  def _clear(self, number: int, draft: storage.Path) -> None:
    if self.folder(number) == draft:
      if (draft / STAMP).exists():
        return  # it failed after it was whole
      self.listing(number).unlink()
    storage.remove(draft)

  def _path(self, name: str) -> storage.Path:
    return self._directory / _DATA / name

  def _listings(self) -> dict[storage.Path, str | None]:
    """Returns all listings with the names of their folders, None if damaged."""
    client = storage.client()
    names = filter(_LISTING_IN_BUCKET.fullmatch, client.numbered(self._directory))
    paths = [self._directory / name for name in names]
    texts = zip(paths, client.contents(paths), strict=True)
    return {path: _named(text) for path, text in texts if text is not None}  # None: just removed

  def _named_by_all(self, number: int) -> set[str | None]:
    """Returns the folders named by listings of a number, also rejected ones; None if damaged."""
    texts = [storage.look(self.listing(number))[1]]
    rejected = self._directory / f'{number}{_REJECTED}.json'
    while (text := storage.look(rejected)[1]) is not None:
      texts.append(text)
      rejected = rejected.with_name(rejected.name.replace('.json', '+.json'))
    return {_named(text) for text in texts if text is not None}

  def _stamped(self, names: set[str]) -> set[str]:
    ordered = sorted(names)
    found = storage.client().exist([self._path(name) / STAMP for name in ordered])
    return {name for name, is_there in zip(ordered, found, strict=True) if is_there}


def _named(listing: bytes) -> str | None:
  """Returns the name of the folder in a listing; None if damaged."""
  try:
    name = json.loads(listing)['folder']
  except (ValueError, TypeError, KeyError, RecursionError):
    return None
  return name if isinstance(name, str) and _FOLDER_IN_BUCKET.fullmatch(name) else None


Folders = _OnDisk | _InBucket


def of(directory: storage.Path, nonce: str = '') -> Folders:
  """Returns the numbered folders of a directory.

  Args:
    directory: folder on a disk or in a bucket.
    nonce: needed to write to a bucket; see `_InBucket`.
  """
  return _InBucket(directory, nonce) if storage.in_bucket(directory) else _OnDisk(directory)

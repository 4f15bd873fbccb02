"""Lists the contents of a corpus, to detect changes between runs of programs."""

import collections
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from audiolm_jax import storage
from audiolm_jax.data import skipped
from audiolm_jax.errors import UserError

MAX_BYTES = 2**30  # of a saved inventory; enough for ten million files


def of(source: Any) -> list[str]:
  """Returns the lines of `source.inventory()`, or one line with the number of examples."""
  return source.inventory() if hasattr(source, 'inventory') else [f'{len(source)} examples']


def digest(lines: Sequence[str]) -> str:
  """Returns the SHA-256 of an inventory, 16 hex digits."""
  return hashlib.sha256('\n'.join(lines).encode('utf-8', 'surrogateescape')).hexdigest()[:16]


def difference(before: Sequence[str], now: Sequence[str]) -> str:
  """Returns a description of the changes, with some names; '' if there are none."""
  before_names, now_names = (
    {line.split('\t')[0]: line for line in lines} for lines in (before, now)
  )
  added = [name for name in now_names if name not in before_names]
  gone = [name for name in before_names if name not in now_names]
  changes = [(added, 'added'), (gone, 'gone')]
  if not added and not gone and list(before) != list(now):
    counts = collections.Counter(now)
    counts.subtract(before)
    changed = list(dict.fromkeys(line.split('\t')[0] for line, count in counts.items() if count))
    changes.append((changed or list(now_names)[:1], 'changed'))
  return ', '.join(
    f'{len(names)} {what} ({skipped.named(names)})' for names, what in changes if names
  )


def bind(path: str | os.PathLike, lines: Sequence[str], made: Sequence[str], remedy: str):
  """Saves the inventory before derived files are made, or checks that it has not changed.

  Args:
    path: file of the saved inventory.
    lines: the current inventory.
    made: existing derived files, listed before this call (other processes may add some).
    remedy: end of the error message.

  Raises:
    UserError: with changes and remedy, if the corpus has changed, or derived files exist without an
      inventory.
  """
  before = load(path)
  if before is None:
    if made:
      raise UserError(
        f'{made[0]} exists, but {path}, the list of its source files, is missing: {remedy}'
      )
    save(path, lines)
  elif changed := difference(before, lines):
    raise UserError(f'the corpus differs from {path}: {changed}. {remedy}')


def save(path: str | os.PathLike, lines: Sequence[str]):
  """Writes an inventory atomically."""
  storage.write_agreed(storage.path(path), json.dumps({'files': list(lines)}, indent=0))


def load(path: str | os.PathLike) -> list[str] | None:
  """Returns a saved inventory; None if there is no file.

  Raises:
    UserError: if the file is damaged.
  """
  if storage.missing([os.fspath(path)]) and not os.path.lexists(path):
    return None
  remedy = 'move it away, with the files made from this corpus'
  lines = storage.read_json(path, remedy, max_bytes=MAX_BYTES).get('files')
  if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
    raise UserError(f'{path} has no list of files: {remedy}')
  return lines

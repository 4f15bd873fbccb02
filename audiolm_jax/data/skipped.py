"""Records unreadable examples: counts and lists them with reasons, and limits their share."""

import json
import os

from audiolm_jax import files
from audiolm_jax.errors import UserError

NUM_NAMED = 3  # names shown in a message


def shown(path: str | bytes | os.PathLike) -> str:
  r"""Returns a path as printable UTF-8 text; invalid bytes appear as \xNN."""
  return os.fsencode(path).decode('utf-8', 'backslashreplace')


def named(names: list[str]) -> str:
  """Returns the first names, and the number of the others."""
  more = f' and {len(names) - NUM_NAMED} more' if len(names) > NUM_NAMED else ''
  return ', '.join(shown(name) for name in names[:NUM_NAMED]) + more


class Skipped(dict):
  """Maps indices of unreadable examples to reasons.

  Args:
    num_examples: number of all examples.
    max_fraction: largest accepted share of unreadable examples.
    what: plural noun for examples in messages.
    listing: file of JSON lines {'path', 'reason'}, in which paths appear once, also if several
      processes and runs add them; None writes no file.
  """

  def __init__(
    self,
    num_examples: int,
    max_fraction: float,
    what: str,
    listing: str | os.PathLike | None = None,
  ):
    super().__init__()
    self._num_examples, self._max_fraction, self._what, self._listing = (
      num_examples,
      max_fraction,
      what,
      listing,
    )

  def add(self, index: int, name: str | os.PathLike, reason: str):
    """Records example `index`.

    Raises:
      UserError: if more than `max_fraction` of all examples are recorded.
    """
    if index not in self:
      self[index] = reason
      if self._listing is not None:
        listed(self._listing, [(name, reason)])
    if len(self) > self._max_fraction * self._num_examples:
      where = '' if self._listing is None else f' (full list: {shown(self._listing)})'
      raise UserError(
        f'{len(self)} of {self._num_examples} {self._what} cannot be read, more than '
        f'max_bad_fraction={self._max_fraction}; the last: {shown(reason)}{where}. Repair them, '
        'move them away, or raise max_bad_fraction (--set corpus.max_bad_fraction=SHARE)'
      )


def listed(listing: str | os.PathLike, entries: list[tuple[str | os.PathLike, str]]):
  """Appends (path, reason) pairs to a file of JSON lines, except those whose path is listed."""
  there = {path for path, _ in read(listing)}
  lines = [
    json.dumps({'path': os.fspath(path), 'reason': reason}) + '\n'
    for path, reason in entries
    if os.fspath(path) not in there
  ]
  if lines:
    os.makedirs(os.path.dirname(os.path.abspath(listing)), exist_ok=True)
    with files.open_in_place(listing, 'a') as file:
      file.write(''.join(lines))  # in one call, because other processes may append, too


def read(listing: str | os.PathLike) -> list[tuple[str, str]]:
  """Returns the (path, reason) pairs of a listing, without damaged lines; none without a file."""
  if not os.path.isfile(listing):
    return []
  entries, _ = files.json_lines(listing)
  fields = [(entry.get('path'), entry.get('reason')) for entry in entries]
  return [pair for pair in fields if all(isinstance(field, str) for field in pair)]

"""Reads and writes Libri-Light's `.item` files and the layout of ZeroSpeech 2021.

  ROOT/phonetic/SET/SET.item, ROOT/phonetic/SET/*.wav     phones in context, for ABX
  ROOT/lexical/SET/gold.csv, ROOT/lexical/SET/*.wav       words and nonwords (sWUGGY)
  ROOT/syntactic/SET/gold.csv, ROOT/syntactic/SET/*.wav   sentences, grammatical or not (sBLIMP)

Item files and their audio may be anywhere below ROOT, as Libri-Light's item files are next to
LibriSpeech's folders. Source: arXiv 2011.11588 and its programs.
"""

import csv
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from audiolm_jax import audio, files
from audiolm_jax.data import folders
from audiolm_jax.errors import UserError

ITEM_HEADER = '#file onset offset #phone prev-phone next-phone speaker'
LEXICAL_COLUMNS = ('filename', 'id', 'voice', 'frequency', 'word', 'phones', 'length', 'correct')
SYNTACTIC_COLUMNS = ('filename', 'id', 'voice', 'type', 'subtype', 'transcription', 'correct')
# Names of frequency bands, each with its exclusive upper limit of occurrences.
_BANDS = ((1, 'oov'), (5, '1-5'), (20, '6-20'), (100, '21-100'), (math.inf, '>100'))
_SLACK = 0.1  # seconds by which a label may extend beyond its audio


class Item(NamedTuple):
  """Describes a phone in context: a segment of `file` from `onset` to `offset`, in seconds."""

  file: str
  onset: float
  offset: float
  phone: str
  before: str
  after: str
  speaker: str

  @property
  def context(self) -> tuple[str, str]:
    return self.before, self.after


class Sample(NamedTuple):
  """Describes one recording of a preference test.

  Of two recordings with the same pair and voice, the `correct` one should be likelier. `kind` is
  the frequency band of a word in sWUGGY ('oov', or the number of occurrences in LibriSpeech; '' for
  nonwords), or the type of a sentence in sBLIMP.
  """

  file: str
  pair: str
  voice: str
  correct: bool
  kind: str
  text: str


def read_items(path: str | os.PathLike) -> list[Item]:
  """Returns the items of a Libri-Light `.item` file.

  Raises:
    UserError: naming the line, if the header is missing, a line has a wrong number of columns, or
      its onset is not before its offset.
  """
  with open(path, encoding='utf-8', errors='surrogateescape') as file:  # names are bytes
    lines = file.read().splitlines()
  if not lines or not lines[0].startswith('#'):
    found = repr(lines[0][:60]) if lines else 'nothing'
    raise UserError(
      f'{path}: begins with {found}, not with the header {ITEM_HEADER!r}: is it an item file?'
    )
  items = []
  for number, line in enumerate(lines[1:], 2):
    columns = line.split()
    if len(columns) != len(Item._fields):
      raise UserError(
        f'{path}, line {number}: {len(columns)} columns, expected {len(Item._fields)}: '
        f'{ITEM_HEADER}'
      )
    name, onset, offset, *labels = columns
    try:
      onset, offset = float(onset), float(offset)
    except ValueError:
      onset = math.nan
    if not 0 <= onset < offset < math.inf:
      raise UserError(
        f'{path}, line {number}: {" ".join(columns[1:3])!r} is not an onset before an offset, '
        'in seconds'
      )
    items.append(Item(name, onset, offset, *labels))
  if not items:
    raise UserError(f'{path}: has no items after the header: copy or download it again')
  return items


def write_items(path: str | os.PathLike, items: Iterable[Item]):
  """Writes a Libri-Light `.item` file."""
  lines = (ITEM_HEADER, *(' '.join(map(str, item)) for item in items))
  files.write_text(path, ''.join(f'{line}\n' for line in lines))


def check_times(items: Sequence[Item], seconds: Mapping[str, float]):
  """Checks that no item ends more than 0.1 s after its audio.

  Args:
    items: the items.
    seconds: length of the audio of each file.

  Raises:
    UserError: naming the first item that does.
  """
  for item in items:
    if item.offset > seconds[item.file] + _SLACK:
      raise UserError(
        f'item {item.phone} of {item.file} ends at {item.offset:g} s, its audio at '
        f'{seconds[item.file]:g} s: the items belong to other audio'
      )


def item_file(root: str | os.PathLike, subset: str) -> pathlib.Path:
  """Returns the path of the item file SUBSET.item or SUBSET-clean.item below `root`.

  Raises:
    UserError: with the item files found, if none or several match.
  """
  there = sorted(pathlib.Path(root).rglob('*.item'))
  found = [path for path in there if path.stem in (subset, f'{subset}-clean')]
  if len(found) != 1:
    names = ', '.join(str(path.relative_to(root)) for path in there[:6]) or 'no item files'
    raise UserError(
      f'{root} has {names}; exactly one must be {subset}.item or {subset}-clean.item: name another '
      'subset'
    )
  return found[0]


def gold_file(root: str | os.PathLike, task: str, subset: str) -> str | None:
  """Returns ROOT/task/subset/gold.csv, or None if the folder ROOT/task does not exist.

  Raises:
    UserError: if the folder exists without the file.
  """
  if not os.path.isdir(os.path.join(root, task)):
    return None
  path = os.path.join(root, task, subset, 'gold.csv')
  if not os.path.isfile(path):
    there = sorted(os.listdir(os.path.join(root, task)))
    raise UserError(
      f'{path} does not exist; {task} has {", ".join(there) or "nothing"}: name a subset that has '
      'gold'
    )
  return path


def read_lexical(path: str | os.PathLike) -> list[Sample]:
  """Returns the words and nonwords of a gold.csv.

  Raises:
    UserError: if the file lacks columns or rows, or a value is illegal.
  """
  return [
    Sample(
      row['filename'],
      row['id'],
      row['voice'],
      correct,
      _band(path, row) if correct else '',
      row['word'],
    )
    for row, correct in _read_gold(path, LEXICAL_COLUMNS)
  ]


def read_syntactic(path: str | os.PathLike) -> list[Sample]:
  """Returns the sentences of a gold.csv.

  Raises:
    UserError: if the file lacks columns or rows, or a value is illegal.
  """
  return [
    Sample(
      row['filename'],
      '/'.join((row['type'], row['subtype'], row['id'])),
      row['voice'],
      correct,
      row['type'],
      row['transcription'],
    )
    for row, correct in _read_gold(path, SYNTACTIC_COLUMNS)
  ]


def _read_gold(path, columns: Sequence[str]) -> list[tuple[dict[str, str], bool]]:
  with files.open_csv(path, 'copy or download it again') as file:
    reader = csv.DictReader(file)
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
      raise UserError(
        f'{path}: has the columns {reader.fieldnames}, without {", ".join(missing)}: is it a gold '
        'file?'
      )
    rows = list(reader)
  if not rows:
    raise UserError(f'{path}: has no rows after the header: copy or download it again')
  for number, row in enumerate(rows, 2):
    if (
      row['correct'] not in ('0', '1') or not row['filename'] or None in row.values() or None in row
    ):
      raise UserError(
        f'{path}, line {number}: expected {len(columns)} values, with 0 or 1 for correct: copy or '
        'download it again'
      )
  return [(row, row['correct'] == '1') for row in rows]


def _band(path, row: dict[str, str]) -> str:
  try:
    frequency = float(row['frequency'])
  except ValueError:
    raise UserError(
      f'{path}: word {row["word"]!r} has frequency {row["frequency"]!r}, not a number'
    ) from None
  return next(name for end, name in _BANDS if frequency < end)


def write_gold(
  path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Mapping[str, object]]
):
  """Writes a gold.csv; missing values are empty."""
  with files.atomically(path) as partial, open(partial, 'w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, columns, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)


class Recordings:
  """Random access source of named recordings anywhere below a folder: {'waveform', 'file'}."""

  def __init__(self, root: str | os.PathLike, names: Iterable[str], sample_rate: int):
    """Finds the recordings.

    Raises:
      UserError: if recordings are missing, or several files have the same name.
    """
    self.names, self.sample_rate = sorted(set(names)), sample_rate
    wanted, found = set(self.names), {}
    for path in folders.find(root):
      name = os.path.splitext(os.path.basename(path))[0]
      if name in wanted and found.setdefault(name, path) != path:
        raise UserError(
          f'{found[name]} and {path} have the same name: give a folder with one of the two'
        )
    missing = [name for name in self.names if name not in found]
    if missing:
      raise UserError(
        f'{root}: no audio for {len(missing)} of {len(wanted)} recordings, such as '
        f'{", ".join(missing[:3])}: copy or download it again'
      )
    self._paths = found

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> dict:
    name = self.names[index]
    return {'file': name, 'waveform': audio.load(self._paths[name], self.sample_rate)}

"""Reads folders of music with a file of captions.

Formats are recognized by the header or the first line::

  CSV          file,caption[,caption2,...]: blank cells are ignored, and several lines of a file add
               captions
  JSON lines   {"file": ..., "caption": "..."} or {"file": ..., "captions": ["...", ...]}
  MusicCaps    ytid,start_s,end_s,...,caption: files are named by their ytid, with or without times
  MTG-Jamendo  TRACK_ID ... PATH DURATION TAGS, separated by tabs; the caption lists the tags
  FMA          tracks.csv, with three lines of header, and genres.csv in the same folder; files are
               named by the track, and the caption lists the genres and the tags

Files are matched by path below the folder, or by name, with or without extension.
"""

import ast
import csv
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from audiolm_jax import audio, files
from audiolm_jax.data import folders, skipped, texts
from audiolm_jax.data.example import Example
from audiolm_jax.errors import UserError

_REMEDY = 'see audiolm_jax/data/captions.py for the formats'
FMA_SUBSETS = ('small', 'medium', 'large')  # each has the tracks of those before
_MAX_CSV_BYTES = 2**30  # FMA's tracks.csv, with biographies, has 260 MB
_WHOLE_TRACK = 1.5  # a file of MusicCaps longer than a clip by this factor is a whole track


class Entry(NamedTuple):
  """Holds the captions of a clip; `names` are paths or names that its file may have."""

  names: tuple[str, ...]
  captions: tuple[str, ...]
  span: tuple[float, float] | None = None  # seconds in the track; None is the whole file
  subset: str | None = None  # smallest subset of FMA that has the track


class CaptionedFiles:
  """Random access source of audio files with 'waveform' and 'texts' (see `data.example`).

  Options are those of `folders.AudioFiles`.

  Raises:
    UserError: if a part has more than `num_texts` captions, or one has over `text_bytes` bytes.
  """

  def __init__(
    self,
    captions: Mapping[folders.Part, Sequence[str]],
    sample_rate: int,
    *,
    num_texts: int,
    text_bytes: int,
    **options,
  ):
    self.parts, self.sample_rate = list(captions), sample_rate
    self._captions, self._options = captions, options
    self._num_texts, self._text_bytes = num_texts, text_bytes
    self._files = folders.AudioFiles(self.parts, sample_rate, **options)
    self.bad = self._files.bad
    for part, written in captions.items():
      longest = max(len(text.encode('utf-8', 'replace')) for text in written)
      for field, needed in (('num_texts', len(written)), ('text_bytes', longest)):
        if needed > (most := {'num_texts': num_texts, 'text_bytes': text_bytes}[field]):
          raise UserError(
            f'{skipped.shown(part.path)}: its captions need {field}={needed}, more than {most}: '
            f'--set corpus.{field}={needed}'
          )

  def __len__(self) -> int:
    return len(self.parts)

  def captions(self) -> Iterator[str]:
    """Yields the captions of all parts, without reading audio."""
    for part in self.parts:
      yield from self._captions[part]

  def __getitem__(self, i: int) -> Example | None:
    return self._described(i, self._files[i])

  def crop(self, i: int, choose: Callable[[int], tuple[int, int]]) -> dict | None:
    """Returns the example with `waveform[first:stop]` only; see `folders.AudioFiles.crop`.

    Args:
      i: index of the example.
      choose: function from the length in samples to `first` and `stop`.
    """
    return self._described(i, self._files.crop(i, choose))

  def keep(self, parts: Sequence[folders.Part]) -> 'CaptionedFiles':
    """Returns a source of these parts, with the same settings.

    Args:
      parts: some of the source's parts.
    """
    sizes = dict(num_texts=self._num_texts, text_bytes=self._text_bytes)
    kept = {part: self._captions[part] for part in parts}
    return type(self)(kept, self.sample_rate, **sizes, **self._options)

  def refuse(self, i: int, reason: str):
    """Records example i as unreadable.

    Args:
      i: index of the example.
      reason: why it cannot be read.
    """
    self._files.refuse(i, reason)

  def inventory(self) -> list[str]:
    """Returns one line per part: that of `folders.AudioFiles.inventory`, and its captions."""
    lines = zip(self._files.inventory(), self.parts, strict=True)
    return ['\t'.join([line, *self._captions[part]]) for line, part in lines]

  def _described(self, i: int, example: dict | None) -> dict | None:
    if example is None:
      return None
    written = self._captions[self.parts[i]]
    return {**example, 'texts': texts.encode(written, self._text_bytes, self._num_texts)}


def parts(
  root: str | os.PathLike,
  entries: Sequence[Entry],
  *,
  max_unmatched: float = 0.0,
  listing: str | os.PathLike | None = None,
) -> dict[folders.Part, tuple[str, ...]]:
  """Returns the captions of each part of the audio files below `root`, sorted by path.

  Args:
    root: the folder.
    entries: captions, as `read` returns them.
    max_unmatched: largest accepted share of captions without files, and of files without captions.
    listing: file that lists these (see `data.skipped`); None for no file.

  Raises:
    UserError: with names and numbers, if more are unmatched, none matches, or names are ambiguous.
  """
  paths = folders.find(root, listing=listing)
  known = _by_name(paths, root)
  found: dict[folders.Part, tuple[str, ...]] = {}
  lonely = []
  for entry in entries:
    path = next((_only(name, known[name]) for name in entry.names if name in known), None)
    if path is None:
      lonely.append(entry.names[0])
      continue
    part = _part(path, entry.span)
    found[part] = (*found.get(part, ()), *entry.captions)
  used = {part.path for part in found}
  silent = [path for path in paths if path not in used]
  unmatched = [
    (lonely, len(entries), 'captions have no file', 'a caption without a file'),
    (silent, len(paths), 'files have no caption', 'a file without a caption'),
  ]
  for names, total, what, reason in unmatched:
    if listing is not None:
      skipped.listed(listing, [(name, reason) for name in names])
    if len(names) > max_unmatched * total or not found:
      share = -(-100 * len(names) // total) / 100
      accept = f', or accept a share of them by --set corpus.max_unmatched={share}' if found else ''
      if names is lonely and any(entry.subset == FMA_SUBSETS[-1] for entry in entries):
        accept += ', or name the subset of FMA, such as by --set corpus.subset=small'
      raise UserError(
        f'{len(names)} of {total} {what} below {skipped.shown(root)}: {skipped.named(names)}. '
        f'Correct the names in the file of captions, or add or move files{accept}'
      )
  return dict(sorted(found.items(), key=lambda pair: (pair[0].path, pair[0].start_seconds)))


def subset(entries: Sequence[Entry], name: str) -> list[Entry]:
  """Returns the entries of a subset of FMA, whose list names the tracks of all subsets.

  Args:
    entries: captions, as `read` returns them.
    name: one of `FMA_SUBSETS`; '' for all entries.

  Raises:
    UserError: if the entries are not FMA's.
  """
  if not name:
    return list(entries)
  if any(entry.subset is None for entry in entries):
    raise UserError(
      f'subset={name!r}: only tracks.csv of FMA names subsets, the file of captions does not: '
      '--set corpus.subset='
    )
  accepted = FMA_SUBSETS[: FMA_SUBSETS.index(name) + 1]
  return [entry for entry in entries if entry.subset in accepted]


def read(path: str | os.PathLike) -> list[Entry]:
  """Returns the entries of a file of captions; those without captions are left out.

  Args:
    path: CSV, JSON lines, or a list of MusicCaps, MTG-Jamendo or FMA.

  Raises:
    UserError: naming file and line, if the format is unknown or a line is wrong, or no caption is
      found.
  """
  if not os.path.isfile(path):
    raise UserError(f'no file of captions {skipped.shown(path)!r}: --set corpus.captions=FILE')
  if os.fspath(path).lower().endswith(('.jsonl', '.json')):
    entries = list(_json_lines(path))
  else:
    entries = list(_table(path))
  entries = [entry for entry in entries if entry.captions]
  if not entries:
    raise UserError(f'{skipped.shown(path)} has no captions: {_REMEDY}')
  for entry in entries:
    try:
      ' '.join(entry.captions).encode()
    except UnicodeEncodeError as error:
      raise UserError(
        f'{skipped.shown(path)}: a caption of {entry.names[0]!a} is not Unicode ({error.reason}): '
        'correct it'
      ) from error
  return entries


def _json_lines(path: str | os.PathLike) -> Iterator[Entry]:
  objects, bad = files.json_lines(path)
  if bad:
    raise UserError(f'{skipped.shown(path)}: {bad} lines are no JSON objects: {_REMEDY}')
  for number, line in enumerate(objects, 1):
    written = line.get('captions', [line.get('caption')])
    legal = isinstance(written, list) and all(isinstance(text, str) for text in written)
    if not legal or not isinstance(line.get('file'), str):
      raise UserError(
        f'{skipped.shown(path)}, line {number}: needs "file" and "caption" (a text) or "captions" '
        f'(a list of texts): {_REMEDY}'
      )
    yield Entry((line['file'],), _filled(written))


def _table(path: str | os.PathLike) -> Iterator[Entry]:
  with files.open_csv(path, _REMEDY, max_bytes=_MAX_CSV_BYTES) as file:
    first = file.readline()
    file.seek(0)
    lines = csv.reader(file, delimiter='\t' if '\t' in first else ',')
    header = [name.strip() for name in next(lines, [])]
    if {'ytid', 'start_s', 'end_s', 'caption'} <= set(header):
      make = _musiccaps
    elif {'PATH', 'TAGS'} <= set(header):
      make = _jamendo
    elif header[:1] == [''] and {'set', 'track'} <= set(header):
      header = _fma_header(path, header, lines)
      make = functools.partial(_fma, _fma_genres(path))
    elif header and header[0] == 'file' and any(name.startswith('caption') for name in header):
      make = _plain
    else:
      raise UserError(
        f'{skipped.shown(path)} begins with {files.printable(first.strip(), 60)!r}, no header of a '
        f'file of captions, such as file,caption: {_REMEDY}'
      )
    for line in filter(None, lines):
      if len(line) < len(header) or len(line) > len(header) and make is not _jamendo:
        raise UserError(
          f'{skipped.shown(path)}, line {lines.line_num} has {len(line)} fields, the header '
          f'{len(header)}: put captions with commas into quotes'
        )
      try:
        yield make(header, line)
      except ValueError as error:
        raise UserError(
          f'{skipped.shown(path)}, line {lines.line_num}: {files.printable(error, 80)}: {_REMEDY}'
        ) from error


def _plain(header: list[str], line: list[str]) -> Entry:
  pairs = list(zip(header, line, strict=True))
  return Entry((line[0],), _filled(text for name, text in pairs if name.startswith('caption')))


def _musiccaps(header: list[str], line: list[str]) -> Entry:
  row = dict(zip(header, line, strict=True))
  ytid, start, end = row['ytid'], row['start_s'], row['end_s']
  names = (ytid, f'{ytid}_{start}', f'{ytid}-{start}-{end}', f'[{ytid}]-[{start}-{end}]')
  return Entry(names, _filled([row['caption']]), (float(start), float(end)))


def _jamendo(header: list[str], line: list[str]) -> Entry:
  at = header.index('TAGS')  # the last column; each tag is one field, such as mood/theme---happy
  path = os.path.splitext(line[header.index('PATH')])[0]
  tags = ', '.join(tag.split('---')[-1] for tag in line[at:])
  return Entry((path, f'{path}.low'), _filled([tags]))


def _fma_header(
  path: str | os.PathLike, first: list[str], lines: Iterator[list[str]]
) -> list[tuple[str, str]]:
  """Returns the two names of each column, such as ('track', 'tags'); reads two lines."""
  header = list(zip(first, next(lines, [])))
  third = next(lines, [''])
  needed = [('set', 'subset'), *(('track', name) for name in ('genre_top', 'genres', 'tags'))]
  if third[0] != 'track_id' or (missing := [name for name in needed if name not in header]):
    reason = 'no line track_id' if third[0] != 'track_id' else f'no columns {missing}'
    raise UserError(
      f'{skipped.shown(path)} begins as tracks.csv of FMA, but has {reason}: give the original file'
    )
  return header


def _fma_genres(path: str | os.PathLike) -> dict[int, str]:
  """Returns the names of FMA's genres, of the file genres.csv in the folder of `path`."""
  genres_path = os.path.join(os.path.dirname(path), 'genres.csv')
  remedy = 'it has the names of the genres; put it there from fma_metadata.zip'
  if not os.path.isfile(genres_path):
    raise UserError(f'no file {skipped.shown(genres_path)}: {remedy}')
  with files.open_csv(genres_path, remedy) as file:
    try:
      return {int(line['genre_id']): line['title'] for line in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(
        f'{skipped.shown(genres_path)} has no columns genre_id and title: {remedy}'
      ) from error


def _fma(genres: Mapping[int, str], header: list[tuple[str, str]], line: list[str]) -> Entry:
  row = dict(zip(header, line, strict=True))
  number = int(line[0])
  name = f'{number:06d}'
  try:
    top, own, tags = (
      row['track', 'genre_top'],
      *(ast.literal_eval(row['track', column]) for column in ('genres', 'tags')),
    )
    words = [top, *(genres[genre] for genre in own), *tags]
  except (SyntaxError, TypeError) as error:
    raise ValueError(f'the genres or tags of track {number} are no lists') from error
  except KeyError as error:
    raise ValueError(f'genres.csv has no genre {error}') from error
  if (part := row['set', 'subset']) not in FMA_SUBSETS:
    raise ValueError(f'the subset {part!r} is none of {", ".join(FMA_SUBSETS)}')
  # Each word once: a top genre is mostly one of the genres, too.
  caption = ', '.join(dict.fromkeys(_filled(words)))
  return Entry((f'{name[:3]}/{name}.mp3', name), _filled([caption]), subset=part)


def _filled(written) -> tuple[str, ...]:
  return tuple(text.strip() for text in written if text.strip())


def _by_name(paths: list[str], root: str | os.PathLike) -> dict[str, list[str]]:
  known: dict[str, list[str]] = {}
  for path in paths:
    relative = os.path.relpath(path, root)
    names = {relative, os.path.basename(path)}
    for name in names | {os.path.splitext(name)[0] for name in names}:
      known.setdefault(name, []).append(path)
  return known


def _only(name: str, paths: list[str]) -> str:
  if len(paths) > 1:
    raise UserError(
      f'the caption of {name!r} may be that of {skipped.named(paths)}: give the path below the '
      'folder in the file of captions'
    )
  return paths[0]


def _part(path: str, span: tuple[float, float] | None) -> folders.Part:
  if span is None:
    return folders.Part(path)
  try:
    info = audio.info(path)
  except (UserError, OSError):
    return folders.Part(path)  # will count as unreadable
  start, end = span
  if info.num_samples / info.sample_rate < _WHOLE_TRACK * (end - start):
    return folders.Part(path)
  return folders.Part(path, start_seconds=start, num_seconds=end - start)

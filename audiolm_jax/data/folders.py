"""Audio files as a source: a folder of them, or any list of (parts of) files."""

import collections
import functools
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from audiolm_jax import audio
from audiolm_jax.data import skipped
from audiolm_jax.data.example import Example
from audiolm_jax.errors import UserError

EXTENSIONS = ('.wav', '.wave', '.flac', '.ogg', '.oga', '.opus', '.mp3')
# Audio and video that is not read: to be said, where it lies among files that are.
_OTHER_AUDIO = (
  '.aac',
  '.aif',
  '.aifc',
  '.aiff',
  '.alac',
  '.amr',
  '.ape',
  '.au',
  '.caf',
  '.gsm',
  '.m4a',
  '.m4b',
  '.mka',
  '.mkv',
  '.mov',
  '.mp2',
  '.mp4',
  '.ra',
  '.sph',
  '.voc',
  '.w64',
  '.webm',
  '.wma',
  '.wv',
)


class Part(NamedTuple):
  """A file, or a part of it; `num_seconds` None is to the end, `speaker` None is unknown."""

  path: str
  speaker: int | None = None
  start_seconds: float = 0.0
  num_seconds: float | None = None


class Found(NamedTuple):
  """Files below a folder, sorted; and what was left out: (path, reason)."""

  paths: list[str]
  left_out: list[tuple[str, str]]


class AudioFiles:
  """A random access source: `files[i]` is {'waveform' [T] float32, 'speaker' [] int32 where known}.

  It is None where the file cannot be read.

  An unreadable file and the reason go to `bad`, and as a line of JSON to the file `quarantine` when
  one is named (where it survives worker processes). `root` is what `inventory` tells paths from, so
  that a corpus may be moved.

  Raises ValueError, when reading, once more than `max_bad_fraction` of the parts turned out
  unreadable.
  """

  def __init__(
    self,
    parts: Sequence[Part],
    sample_rate: int,
    *,
    max_bad_fraction: float = 0.05,
    max_seconds: float = 3600.0,
    quarantine: str | None = None,
    root: str | os.PathLike = '',
  ):
    self.parts = list(parts)
    self.sample_rate = sample_rate
    self.bad = skipped.Skipped(len(self.parts), max_bad_fraction, 'audio files', quarantine)
    self._options = dict(
      max_bad_fraction=max_bad_fraction, max_seconds=max_seconds, quarantine=quarantine, root=root
    )
    self._max_seconds = max_seconds

  def __len__(self) -> int:
    return len(self.parts)

  def __getitem__(self, i: int) -> Example | None:
    return self._example(i, audio.load)

  def crop(self, i: int, choose: Callable[[int], tuple[int, int]]) -> dict | None:
    """Returns `files[i]` with `waveform[first:stop]` alone, where `first, stop =
    choose(len(waveform))`.

    Only that is decoded where `audio.load_slice` can; what is wrong with the rest of the file may
    not be noticed.
    """
    return self._example(i, functools.partial(audio.load_slice, choose=choose))

  def keep(self, parts: Sequence[Part]) -> 'AudioFiles':
    """Returns the source of some of its parts, with the same settings."""
    return type(self)(parts, self.sample_rate, **self._options)

  def refuse(self, i: int, reason: str):
    """Counts example i as unreadable, by what others find in it."""
    self.bad.add(range(len(self))[i], self.parts[i].path, reason)

  def inventory(self) -> list[str]:
    """Returns a line for each part, with the bytes of its file: equal for the same corpus in every
    locale.
    """
    sizes = {}
    for path in {part.path for part in self.parts}:
      try:
        sizes[path] = os.stat(path).st_size
      except OSError:
        sizes[path] = -1
    lines = []
    for part in self.parts:
      name = (
        os.path.relpath(part.path, self._options['root']) if self._options['root'] else part.path
      )
      stretch = part.start_seconds, 'end' if part.num_seconds is None else part.num_seconds
      fields = os.fsencode(name).decode('utf-8', 'surrogateescape'), sizes[part.path], *stretch
      lines.append('\t'.join(map(str, fields)))
    return lines

  def unchecked(self) -> int:
    """Returns how many files have no header that tells their length, so that a cut end would not be
    noticed.

    Opens every file whose format may lack it, as MP3s do.
    """
    return sum(not _tells_length(path) for path in dict.fromkeys(part.path for part in self.parts))

  def _example(self, i: int, load: Callable[..., np.ndarray]) -> dict | None:
    i = range(len(self))[i]
    part = self.parts[i]
    try:
      wave_T = load(
        part.path,
        self.sample_rate,
        start_seconds=part.start_seconds,
        num_seconds=part.num_seconds,
        max_seconds=self._max_seconds,
      )
    except (ValueError, OSError) as error:
      self.refuse(i, str(error))
      return None
    example = {'waveform': wave_T}
    return example if part.speaker is None else {**example, 'speaker': np.int32(part.speaker)}


def _tells_length(path: str) -> bool:
  if not path.lower().endswith('.mp3'):
    return True  # WAV and FLAC nearly always do, and OGG must
  try:
    return audio.info(path).tells_length
  except (ValueError, OSError):
    return True  # left out already


def scan(root: str | os.PathLike, extensions: tuple[str, ...] = EXTENSIONS) -> Found:
  """Returns the (audio) files below `root`, and what was left out although its name is that of
  audio.

  Links are followed, to the outside too; a file or folder that is reached in several ways counts
  once, by its own name before a link's. Left out are: what is no regular file, folders in a circle,
  macOS's `._` files, audio of other formats, and folders that cannot be listed.
  """
  paths, left_out, counted = [], [], set()
  for path, status in _walk(os.fspath(root), left_out):
    name = os.path.basename(path).lower()
    if not name.endswith(extensions):
      if name.endswith(_OTHER_AUDIO) and extensions == EXTENSIONS:
        left_out.append((path, 'not WAV, FLAC, OGG or MP3: convert it to FLAC'))
    elif name.startswith('._'):
      left_out.append((path, 'macOS metadata of another file, not audio: delete it'))
    elif status is None:  # counts as unreadable: behind many such links a disk may be missing
      paths.append(path)
    elif not stat.S_ISREG(status.st_mode):
      left_out.append((path, 'no regular file (a pipe, a socket or a device): move it away'))
    elif _identity(path, status) not in counted:
      counted.add(_identity(path, status))
      paths.append(path)
  return Found(sorted(paths), sorted(left_out))


def _walk(
  root: str, left_out: list[tuple[str, str]]
) -> Iterator[tuple[str, os.stat_result | None]]:
  """Yields (path, status) of all files below a folder: those in it first, then those behind
  links.
  """
  places, links, seen = [root], collections.deque(), set()
  while places or links:
    path = places.pop() if places else links.popleft()
    try:
      status = os.stat(path)
    except OSError:
      status = None
    if status is None or not stat.S_ISDIR(status.st_mode):
      yield path, status
    elif _identity(path, status) in seen:
      left_out.append((path, 'a link to a folder that is read already, or in a circle'))
    else:
      seen.add(_identity(path, status))
      try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)
      except OSError as error:
        left_out.append((path, f'a folder that cannot be listed ({error.strerror})'))
        continue
      places += [entry.path for entry in entries if not entry.is_symlink()]
      links += [entry.path for entry in reversed(entries) if entry.is_symlink()]


def _identity(path: str, status: os.stat_result) -> tuple | str:
  return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def find(
  root: str | os.PathLike,
  extensions: tuple[str, ...] = EXTENSIONS,
  *,
  listing: str | os.PathLike | None = None,
) -> list[str]:
  """Returns the paths of `scan`; what was left out goes to the file `listing` (data.skipped).

  Raises ValueError, with what was left out, when there are none.
  """
  paths, left_out = scan(root, extensions)
  if listing is not None:
    skipped.listed(listing, left_out)
  if not paths:
    kind = 'audio files' if extensions == EXTENSIONS else 'files'
    named = skipped.named([f'{path} ({reason})' for path, reason in left_out])
    raise UserError(
      f'{skipped.shown(root)}: no {kind} ({", ".join(extensions)}) in it or below'
      + (f'; left out: {named}' if left_out else '')
    )
  return paths


def same_files(paths: Sequence[str]) -> set:
  """Returns what tells the files of these paths from all others, however they are named or
  linked.
  """
  return {_identity(path, os.stat(path)) for path in paths if os.path.exists(path)}


def is_held_out(name: str, share: float) -> bool:
  """Returns whether a file or speaker belongs to the test split: its own bytes decide, not its
  neighbours.
  """
  return zlib.crc32(os.fsencode(name)) % 10_000 < share * 10_000


def split_name(part: Part, root: str | os.PathLike, speaker_folders: bool) -> str:
  """Returns the name that decides the split of a part: its path, or with `speaker_folders` its
  speaker's.
  """
  if speaker_folders:
    return os.path.basename(os.path.dirname(part.path))
  return os.path.relpath(part.path, root)


def examples(
  root: str | os.PathLike, sample_rate: int, *, speaker_folders: bool = False, **options
) -> AudioFiles:
  """Returns all audio files below `root`; with `speaker_folders` the name of a file's folder is its
  speaker.

  Speakers are numbered in the sorted order of their folders' names. `options` are those of
  `AudioFiles`; what is left out (see `scan`) is listed in `quarantine`, too.
  """
  paths = find(root, listing=options.get('quarantine'))
  names = [os.path.basename(os.path.dirname(path)) for path in paths]
  number = {name: i for i, name in enumerate(sorted(set(names)))}
  speakers = [number[name] if speaker_folders else None for name in names]
  parts = [Part(*pair) for pair in zip(paths, speakers, strict=True)]
  return AudioFiles(parts, sample_rate, root=root, **options)

"""Sources of audio files: a folder, or any list of files and parts of files."""

import collections
import errno
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
# Audio and video formats that cannot be read; `scan` reports them.
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
  """Identifies a file or a part of it."""

  path: str
  speaker: int | None = None  # None is unknown
  start_seconds: float = 0.0
  num_seconds: float | None = None  # None is the rest of the file


class Found(NamedTuple):
  """Holds the sorted paths below a folder, and excluded paths with reasons."""

  paths: list[str]
  left_out: list[tuple[str, str]]


class AudioFiles:
  """Random access source of audio files.

  `files[i]` has 'waveform' and, if known, 'speaker' (see `data.example`), or is None if the file
  cannot be read. Unreadable files are recorded with reasons in `bad`, and in the JSON lines of the
  file `quarantine` if given (also by worker processes). Paths in the `inventory` are relative to
  `root`, so that a corpus can be moved.

  Raises:
    UserError: on reading, if more than `max_bad_fraction` of the parts are unreadable.
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
    """Returns `files[i]` with `waveform[first:stop]` only, where `first, stop = choose(length)`.

    If possible (see `audio.load_slice`), only this slice is decoded; damage elsewhere in the file
    may go unnoticed.

    Args:
      i: index of the example.
      choose: function from the length in samples to `first` and `stop`.
    """
    return self._example(i, functools.partial(audio.load_slice, choose=choose))

  def keep(self, parts: Sequence[Part]) -> 'AudioFiles':
    """Returns a source of these parts, with the same settings.

    Args:
      parts: some of `files.parts`.
    """
    return type(self)(parts, self.sample_rate, **self._options)

  def refuse(self, i: int, reason: str):
    """Records example i as unreadable.

    Args:
      i: index of the example.
      reason: why it cannot be read.
    """
    self.bad.add(range(len(self))[i], self.parts[i].path, reason)

  def inventory(self) -> list[str]:
    """Returns one line per part, with the size of its file; independent of the locale."""
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
    """Returns the number of files whose headers state no length, so that truncation goes unnoticed.

    Opens all MP3 files, because other formats nearly always state it.
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
    return True  # WAV and FLAC nearly always state it, OGG always
  try:
    return audio.info(path).tells_length
  except (ValueError, OSError):
    return True  # already excluded


def scan(root: str | os.PathLike, extensions: tuple[str, ...] = EXTENSIONS) -> Found:
  """Returns the files with these extensions below `root`, and excluded paths with reasons.

  Links are followed, also out of `root`. A file or folder with several paths counts once, by its
  own name instead of a link if possible. Excluded paths are of audio files that are not regular,
  macOS's `._` files, audio of other formats, cycles of links, and folders that cannot be listed.

  Args:
    root: folder.
    extensions: in lower case, with the dot.
  """
  paths, left_out, counted = [], [], set()
  for path, status in _walk(os.fspath(root), left_out):
    name = os.path.basename(path).lower()
    if not name.endswith(extensions):
      if name.endswith(_OTHER_AUDIO) and extensions == EXTENSIONS:
        left_out.append((path, 'not WAV, FLAC, OGG or MP3: convert it to FLAC'))
    elif name.startswith('._'):
      left_out.append((path, 'macOS metadata of another file, not audio: delete it'))
    elif status is None:  # will count as unreadable, because broken links may mean a missing disk
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
  """Yields path and status of all files below a folder; files reached by links come last."""
  places, links, seen = [root], collections.deque(), set()
  while places or links:
    path = places.pop() if places else links.popleft()
    try:
      status = os.stat(path)
    except OSError as error:
      if error.errno == errno.ENAMETOOLONG:
        left_out.append((path, 'its path is too long for the system: move it up'))
        continue
      status = None
    if status is None or not stat.S_ISDIR(status.st_mode):
      yield path, status
    elif _identity(path, status) in seen:
      left_out.append((path, 'a link to a folder that is already included, or in a cycle'))
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
  """Returns the paths that `scan` finds, and appends excluded paths to `listing`.

  Args:
    root: the folder.
    extensions: lower-case ends of file names.
    listing: file of JSON lines (see `data.skipped`); None to ignore excluded paths.

  Raises:
    UserError: with the excluded paths, if no file is found.
  """
  paths, left_out = scan(root, extensions)
  if listing is not None:
    skipped.listed(listing, left_out)
  if not paths:
    kind = 'audio files' if extensions == EXTENSIONS else 'files'
    named = skipped.named([f'{path} ({reason})' for path, reason in left_out])
    raise UserError(
      f'{skipped.shown(root)}: no {kind} ({", ".join(extensions)}) in it or below'
      + (f'; excluded: {named}' if left_out else '')
    )
  return paths


def same_files(paths: Sequence[str]) -> set:
  """Returns the identities (device, inode) of files, independent of names and links.

  Args:
    paths: of existing files.
  """
  return {_identity(path, os.stat(path)) for path in paths if os.path.exists(path)}


def is_held_out(name: str, share: float) -> bool:
  """Returns whether a file or speaker belongs to the test split, by the checksum of its name.

  Args:
    name: path of the file, or name of the speaker.
    share: of the names that are held out, in [0, 1].
  """
  return zlib.crc32(os.fsencode(name)) % 10_000 < share * 10_000


def split_name(part: Part, root: str | os.PathLike, speaker_folders: bool) -> str:
  """Returns the name that decides the split of a part: its path or its speaker's folder.

  Args:
    part: a part of a file.
    root: folder of the corpus.
    speaker_folders: whether the folder of a file is its speaker.
  """
  if speaker_folders:
    return os.path.basename(os.path.dirname(part.path))
  return os.path.relpath(part.path, root)


def examples(
  root: str | os.PathLike, sample_rate: int, *, speaker_folders: bool = False, **options
) -> AudioFiles:
  """Returns a source of all audio files below `root`.

  Args:
    root: the folder.
    sample_rate: of the waveforms, in Hz.
    speaker_folders: whether the folder of a file is its speaker; speakers are numbered in the
      sorted order of these folders.
    **options: options of `AudioFiles`; `quarantine` also lists the paths that `scan` excludes.
  """
  paths = find(root, listing=options.get('quarantine'))
  names = [os.path.basename(os.path.dirname(path)) for path in paths]
  number = {name: i for i, name in enumerate(sorted(set(names)))}
  speakers = [number[name] if speaker_folders else None for name in names]
  parts = [Part(*pair) for pair in zip(paths, speakers, strict=True)]
  return AudioFiles(parts, sample_rate, root=root, **options)

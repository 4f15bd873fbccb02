"""Audio files as a source: a folder of them, or any list of (parts of) files."""

import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from audiolm_jax import audio, files

EXTENSIONS = ('.wav', '.flac', '.ogg', '.mp3')


class Part(NamedTuple):
  """A file, or a part of it; `num_seconds` None is to the end, `speaker` None is unknown."""

  path: str
  speaker: int | None = None
  start_seconds: float = 0.0
  num_seconds: float | None = None


class AudioFiles:
  """A random access source: `files[i]` is {'waveform' [T] float32, 'label' [] int32 where known}, None if unreadable.

  An unreadable file and the reason go to `bad`, and as a line of JSON to the file `quarantine` when one is named (where
  it survives worker processes).

  Raises ValueError, when reading, once more than `max_bad_fraction` of the parts turned out unreadable.
  """

  def __init__(
      self,
      parts: Sequence[Part],
      sample_rate: int,
      *,
      max_bad_fraction: float = 0.05,
      max_seconds: float = 3600.0,
      quarantine: str | None = None,
  ):
    self.parts = list(parts)
    self.sample_rate = sample_rate
    self.bad: dict[int, str] = {}
    self._max_bad_fraction = max_bad_fraction
    self._max_seconds = max_seconds
    self._quarantine = quarantine

  def __len__(self) -> int:
    return len(self.parts)

  def __getitem__(self, i: int) -> dict | None:
    return self._example(i, audio.load)

  def crop(self, i: int, choose: Callable[[int], tuple[int, int]]) -> dict | None:
    """Returns `files[i]` with `waveform[first:stop]` alone, where `first, stop = choose(len(waveform))`.

    Only that is decoded where `audio.load_slice` can; what is wrong with the rest of the file may not be noticed.
    """
    return self._example(i, functools.partial(audio.load_slice, choose=choose))

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
      self._refuse(i, str(error))
      return None
    return {'waveform': wave_T} if part.speaker is None else {'waveform': wave_T, 'label': np.int32(part.speaker)}

  def _refuse(self, i: int, reason: str):
    if i not in self.bad:
      self.bad[i] = reason
      if self._quarantine is not None:
        with files.open_in_place(self._quarantine, 'a') as file:
          file.write(json.dumps({'path': self.parts[i].path, 'reason': reason}) + '\n')
    if len(self.bad) > self._max_bad_fraction * len(self):
      raise ValueError(
          f'{len(self.bad)} of {len(self)} audio files cannot be read, more than max_bad_fraction='
          f'{self._max_bad_fraction}; the last: {reason}'
      )


def find(root: str | os.PathLike, extensions: tuple[str, ...] = EXTENSIONS) -> list[str]:
  """Returns the (audio) files below `root`, sorted, links to outside of it left out.

  Raises ValueError when there are none.
  """
  inside = os.path.join(os.path.realpath(root), '')
  paths = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]
  paths = [path for path in paths if path.lower().endswith(extensions) and os.path.realpath(path).startswith(inside)]
  if not paths:
    kind = 'audio files' if extensions == EXTENSIONS else 'files'
    raise ValueError(f'{root}: no {kind} ({", ".join(extensions)}) in it or below')
  return sorted(paths)


def examples(root: str | os.PathLike, sample_rate: int, *, speaker_folders: bool = False, **options) -> AudioFiles:
  """Returns all audio files below `root`; with `speaker_folders` the name of a file's folder is its speaker.

  Speakers are numbered in the sorted order of their folders' names. `options` are those of `AudioFiles`.
  """
  paths = find(root)
  names = [os.path.basename(os.path.dirname(path)) for path in paths]
  number = {name: i for i, name in enumerate(sorted(set(names)))}
  speakers = [number[name] if speaker_folders else None for name in names]
  return AudioFiles([Part(*pair) for pair in zip(paths, speakers, strict=True)], sample_rate, **options)

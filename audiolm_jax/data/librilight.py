"""Source of Libri-Light's unlabelled splits as downloaded: `unlab-*/<speaker>/<book>/*.flac`.

Each FLAC file is a chapter and has a JSON file of the same name. Chapters are read in parts, cut at
pauses in the voice activity of the JSON file.
"""

import os
from collections.abc import Sequence

from audiolm_jax import files
from audiolm_jax.data import folders, skipped
from audiolm_jax.errors import UserError

_MAX_SECONDS = 7 * 24 * 3600.0  # per chapter


def examples(
  root: str | os.PathLike,
  sample_rate: int = 16_000,
  *,
  splits: Sequence[str] = ('unlab-600', 'unlab-6k', 'unlab-60k'),
  part_seconds: float = 60.0,
  **options,
) -> folders.AudioFiles:
  """Returns a source of the parts of the splits found under `root`.

  A chapter without voice activity is one part. All JSON files are read once, here.

  Args:
    root: folder into which Libri-Light was unpacked.
    sample_rate: of the waveforms, in Hz.
    splits: names of the splits.
    part_seconds: largest length of a part, except for chapters without voice activity.
    **options: options of `folders.AudioFiles`.

  Raises:
    UserError: if none of the splits is found, or a path is not <speaker>/<book>/<file>.
  """
  there = [split for split in splits if os.path.isdir(os.path.join(root, split))]
  if not there:
    raise UserError(
      f'{root}: has none of {", ".join(splits)}: give the folder into which Libri-Light was '
      'unpacked'
    )
  parts = []
  for split in there:
    folder = os.path.join(root, split)
    for path in folders.find(folder, listing=options.get('quarantine')):
      speaker = os.path.relpath(path, folder).split(os.sep)[0]
      if not (speaker.isascii() and speaker.isdigit()):
        raise UserError(
          f'{skipped.shown(path)}: expected <speaker number>/<book>/<file> below {folder}'
        )
      for start, end in _voiced_parts(os.path.splitext(path)[0] + '.json', part_seconds):
        parts.append(folders.Part(path, int(speaker), start, None if end is None else end - start))
  return folders.AudioFiles(parts, sample_rate, root=root, **options)


def _voiced_parts(path: str, part_seconds: float) -> list[tuple[float, float | None]]:
  """Returns (start, end) of parts: joined voiced segments of at most `part_seconds`.

  Longer segments are cut. Without voice activity, the only part is the file, with end None.

  Raises:
    UserError: if the JSON file is damaged.
  """
  voiced = []
  if os.path.isfile(path):
    again = 'unpack it again'
    voiced = files.read_json(path, again).get('voice_activity') or []
    if not isinstance(voiced, list) or not all(map(_is_stretch, voiced)):
      raise UserError(f'{path}: voice_activity is no list of [start, end] in seconds: {again}')
  if not voiced:
    return [(0.0, None)]
  parts = []
  for start, end in voiced:
    if parts and end - parts[-1][0] <= part_seconds:
      parts[-1] = (parts[-1][0], end)
      continue
    while end - start > part_seconds:
      parts.append((start, start + part_seconds))
      start += part_seconds
    parts.append((start, end))
  return parts


def _is_stretch(pair: object) -> bool:
  numbers = isinstance(pair, list) and len(pair) == 2 and all(type(x) in (int, float) for x in pair)
  return numbers and 0 <= pair[0] <= pair[1] <= _MAX_SECONDS

"""Finds utterances of LibriSpeech (openslr.org/12, CC BY 4.0).

Files are named `SPLIT/speaker/chapter/speaker-chapter-number.flac`; they may be in any folder.
"""

import os
import re

from audiolm_jax.data import folders
from audiolm_jax.data.utterances import Utterance
from audiolm_jax.errors import UserError

_NAME = re.compile(r'(\d+)-(\d+)-\d+\.flac')


def utterances(root: str | os.PathLike) -> list[Utterance]:
  """Returns the utterances below `root`, sorted by path, with texts from adjacent `*.trans.txt`.

  Raises:
    UserError: if there is no FLAC file, or one without a name of LibriSpeech.
  """
  found, texts = [], {}
  for path in folders.find(root, ('.flac',)):
    folder, name = os.path.split(path)
    match = _NAME.fullmatch(name)
    if match is None:
      raise UserError(
        f"{path}: LibriSpeech's files are named speaker-chapter-number.flac: give their folder"
      )
    transcripts = os.path.join(folder, f'{match[1]}-{match[2]}.trans.txt')
    if transcripts not in texts:
      texts[transcripts] = _transcripts(transcripts)
    found.append(Utterance(path, int(match[1]), texts[transcripts].get(name.removesuffix('.flac'))))
  return found


def _transcripts(path: str) -> dict[str, str]:
  if not os.path.exists(path):
    return {}
  with open(path, encoding='utf-8') as file:
    return dict(line.split(' ', 1) for line in file.read().splitlines() if ' ' in line)


def held_out(utterance: Utterance) -> bool:
  """Returns whether the speaker belongs to the test split; for files without official splits."""
  return utterance.speaker % 5 == 0

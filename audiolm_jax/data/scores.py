"""Defines tunes read from scores (`data.abc_notation`, `data.musicxml`)."""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

SMALLEST_SCORE = 16  # quarter notes; shorter tunes are left out
LETTERS = {'C': 0, 'D': 2, 'E': 4, 'F': 5, 'G': 7, 'A': 9, 'B': 11}  # pitch classes


class Tune(NamedTuple):
  """Describes a tune.

  Attributes:
    name: file and number, unique in a folder.
    title: title, in small letters and without what follows a comma or dash.
    tonic: pitch class of the key, C is 0.
    is_minor: whether its third is minor (minor, Dorian, Phrygian).
    beat: quarter notes per beat: 1.5 for 6/8, 0.5 where most notes are sixteenths.
    bar: quarter notes per bar. Bars begin at multiples of it.
    voices: notes of each voice, sorted; columns are onset and duration in quarter notes, and the
      MIDI pitch.
  """

  name: str
  title: str
  tonic: int
  is_minor: bool
  beat: float
  bar: float
  voices: tuple[Float[np.ndarray, '_ 3'], ...]

  @property
  def length(self) -> float:
    """Length in quarter notes, of whole bars."""
    end = max(float((voice_N3[:, 0] + voice_N3[:, 1]).max()) for voice_N3 in self.voices)
    return np.ceil(round(end / self.bar, 6)) * self.bar

  @property
  def downbeats(self) -> list[float]:
    """Starts of bars at which the first voice has a note, in quarter notes."""
    onsets = self.voices[0][:, 0].tolist()
    return [onset for onset in onsets if abs(onset / self.bar - round(onset / self.bar)) < 1e-6]


class Unread(Exception):
  """A score that the readers leave out."""


def tune(
  name: str,
  title: str,
  tonic: int,
  is_minor: bool,
  bar: float,
  is_compound: bool,
  voices: tuple[Float[np.ndarray, '_ 3'], ...],
) -> Tune:
  """Returns a tune; `bar` and `is_compound` are those of its metre (`metre`).

  Raises:
    Unread: if it is shorter than SMALLEST_SCORE or has no note on a downbeat.
  """
  is_short = np.median(voices[0][:, 1]) < 0.5
  beat = (0.75 if is_short else 1.5) if is_compound else (0.5 if is_short else 1.0)
  made = Tune(name, title, tonic, is_minor, beat, bar, voices)
  if made.length < SMALLEST_SCORE or not made.downbeats:
    raise Unread
  return made


def metre(value: str) -> tuple[float, bool]:
  """Returns quarter notes per bar of a metre such as '6/8', and whether beats divide by three.

  Raises:
    Unread: if it is none.
  """
  match = re.fullmatch(r'(\d+)/(\d+)', {'C': '4/4', 'C|': '2/2'}.get(value, value))
  if match is None or not all(map(int, match.groups())):
    raise Unread
  above, below = map(int, match.groups())
  return 4 * above / below, above % 3 == 0 and below >= 8

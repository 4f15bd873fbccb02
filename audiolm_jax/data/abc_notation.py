"""Reads tunes in ABC notation (abcnotation.com, standard 2.1).

The reader covers what the collections in the package music21 need, and leaves out tunes that need
more: several voices, or changes of key, metre or unit. Ornaments and dynamics are ignored, chords
are reduced to their highest note, and repeats are not unfolded: endings follow one another.
"""

import functools
import os
import pathlib
import re

import numpy as np

from audiolm_jax.data import folders, scores
from audiolm_jax.errors import UserError

_SHARPS, _FLATS = 'FCGDAEB', 'BEADGCF'  # in the order of key signatures
_FIFTHS = {'F': -1, 'C': 0, 'G': 1, 'D': 2, 'A': 3, 'E': 4, 'B': 5}  # of major keys
# Fifths of a mode relative to major, and whether its third is minor.
_MODES = {
  '': (0, False),
  'maj': (0, False),
  'ion': (0, False),
  'mix': (-1, False),
  'lyd': (1, False),
  'm': (-3, True),
  'min': (-3, True),
  'aeo': (-3, True),
  'dor': (-2, True),
  'phr': (-4, True),
}
_KEY = re.compile(r'([A-G])([#b]?)\s*([A-Za-z]*)')
_LENGTH = r'(\d*)(/*)(\d*)'
_NOTE = r"(\^{1,2}|_{1,2}|=)?([A-Ga-g])([,']*)"
_TOKEN = re.compile(
  r"""(?P<ignored>"[^"]*"|![^!]*!|\+[^+]*\+|\{[^}]*\}|[~.uvTHLMPSJRO`\\$y\s])
  |(?P<bar>\[\||[:|]*\|[:|\]]*(?:\s*\[?\d[\d,-]*)?|::|:|\[\d[\d,-]*|\])
  |\[(?P<chord>(?:(?:\^{1,2}|_{1,2}|=)?[A-Ga-g][,']*\d*/*\d*)+)\](?P<chord_length>\d*/*\d*)
  |(?P<tuplet>\(\d(?::\d?){0,2})
  |(?P<slur>[()])
  |(?P<note>(?:\^{1,2}|_{1,2}|=)?[A-Ga-gzx][,']*\d*/*\d*)
  |(?P<tie>-)
  |(?P<broken>>+|<+)""",
  re.VERBOSE,
)
_TUPLETS = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}  # notes in the time of; others: 3 or 2 by metre


@functools.cache
def tunes(root: str | os.PathLike) -> tuple[scores.Tune, ...]:
  """Returns the tunes of all ABC files below a folder, sorted by file and place.

  Raises:
    UserError: if no tune can be read.
  """
  found = []
  for path in folders.find(root, ('.abc',)):
    text = pathlib.Path(path).read_text(encoding='utf-8', errors='replace')
    found += read(text, os.path.relpath(path, root))
  if not found:
    raise UserError(f'{root}: none of its ABC files has a tune that can be read')
  return tuple(found)


def read(text: str, name: str) -> list[scores.Tune]:
  """Returns the tunes of an ABC file that can be read, named `name`#number."""
  made = []
  for part in re.split(r'^(?=X:)', text, flags=re.MULTILINE)[1:]:
    head, _, rest = part.partition('\n')
    try:
      made.append(_tune(rest, f'{name}#{head[2:].split("%")[0].strip()}'))
    except (scores.Unread, ZeroDivisionError):
      continue
  return made


def _tune(text: str, name: str) -> scores.Tune:
  fields, body = {}, []
  for line in text.splitlines():
    line = re.sub(r'(?<!\\)%.*', '', line).strip()
    if match := re.match(r'([A-Za-z]):\s*(.*)', line):
      letter, value = match.groups()
      if letter in 'MKLVP' and 'K' in fields or letter == 'V':
        raise scores.Unread
      fields.setdefault(letter, value)
    elif 'K' in fields:
      if not line and body:
        break  # a blank line ends a tune
      body.append(line)
  tonic, is_minor, signature = _key(fields.get('K', ''))
  bar, is_compound = scores.metre(fields.get('M', ''))
  unit = _unit(fields.get('L', ''), bar)
  notes_N3 = _abc_notes('\n'.join(body), signature, unit, bar, is_compound)
  title = re.split(r',| --|\(', fields.get('T', '').lower())[0].strip()
  return scores.tune(name, title, tonic, is_minor, bar, is_compound, (notes_N3,))


def _key(value: str) -> tuple[int, bool, dict[str, int]]:
  """Returns tonic, whether the third is minor, and the accidental of each letter."""
  match = _KEY.match(value)
  if match is None:
    raise scores.Unread
  letter, accidental, mode = match.groups()
  mode = mode.lower() if mode.lower() == 'm' else mode.lower()[:3]
  if mode not in _MODES:
    raise scores.Unread
  shift = {'#': 1, 'b': -1, '': 0}[accidental]
  fifths, is_minor = _MODES[mode]
  fifths += _FIFTHS[letter] + 7 * shift
  if abs(fifths) > 7:
    raise scores.Unread
  order, alteration = (_SHARPS, 1) if fifths > 0 else (_FLATS, -1)
  return (
    (scores.LETTERS[letter] + shift) % 12,
    is_minor,
    dict.fromkeys(order[: abs(fifths)], alteration),
  )


def _unit(value: str, bar: float) -> float:
  if match := re.fullmatch(r'1/(\d+)', value):
    return 4 / int(match[1])
  return 0.25 if bar < 3 else 0.5  # the standard's default


def _scale(length: str) -> float:
  above, slashes, below = re.fullmatch(_LENGTH, length).groups()
  return int(above or 1) / (int(below) if below else 2 ** len(slashes))


def _abc_notes(body: str, signature, unit, bar, is_compound) -> np.ndarray:
  notes: list[list[float]] = []  # onset, duration, pitch
  barlines: list[float] = []
  time, factor, accidentals, is_tied = 0.0, 1.0, {}, False
  tuplet_left, tuplet_factor = 0, 1.0
  last: list[float] | None = None  # the last note or rest, with its duration in quarters
  at = 0
  while at < len(body):
    match = _TOKEN.match(body, at)
    if match is None:
      raise scores.Unread
    at, kind, text = match.end(), match.lastgroup, match[0]
    if kind == 'bar':
      accidentals = {}
      barlines.append(time)
    elif kind == 'tuplet':
      numbers = [int(number) if number else 0 for number in text[1:].split(':')] + [0, 0]
      tuplet_left = numbers[2] or numbers[0]
      tuplet_factor = (numbers[1] or _TUPLETS.get(numbers[0], 3 if is_compound else 2)) / numbers[0]
    elif kind == 'tie':
      is_tied = True
    elif kind == 'broken':
      if last is None:
        raise scores.Unread
      change = 0.5 ** len(text)
      longer, shorter = (2 - change, change) if text[0] == '>' else (change, 2 - change)
      time += last[1] * (longer - 1)
      last[1] *= longer
      factor = shorter
    elif kind in ('note', 'chord', 'chord_length'):
      sounds, scale = _sounds(match)
      duration = unit * scale * factor * (tuplet_factor if tuplet_left else 1.0)
      factor, tuplet_left = 1.0, max(0, tuplet_left - 1)
      pitches = [_pitch(sound, signature, accidentals) for sound in sounds]
      last = [time, duration, max(pitches, default=-1)]
      if is_tied and notes and notes[-1][2] == last[2]:
        notes[-1][1] += duration  # a broken rhythm after a tied note changes no tied length
      elif pitches:
        notes.append(last)
      is_tied = False
      time += duration
  if not notes:
    raise scores.Unread
  notes_N3 = np.array(notes)
  upbeat = next((line for line in barlines if line > 0), 0.0)
  notes_N3[:, 0] += (bar - upbeat) if upbeat < bar - 1e-6 else 0.0
  return notes_N3


def _sounds(match: re.Match) -> tuple[list[tuple[str, str, str]], float]:
  """Returns the notes of a chord, one note, or none for a rest; and the length."""
  if match['chord'] is None:
    text = match['note']
    name = re.match(r"(?:\^{1,2}|_{1,2}|=)?[A-Ga-gzx][,']*", text)[0]
    return re.findall(_NOTE, name), _scale(text[len(name) :])
  first = re.match(rf'{_NOTE}(\d*/*\d*)', match['chord'])
  return re.findall(_NOTE, match['chord']), _scale(first[4]) * _scale(match['chord_length'])


def _pitch(sound: tuple[str, str, str], signature: dict, accidentals: dict) -> int:
  accidental, letter, marks = sound
  octave = (6 if letter.islower() else 5) + marks.count("'") - marks.count(',')
  place = letter.upper(), octave
  if accidental:
    accidentals[place] = {'^': 1, '_': -1, '=': 0}[accidental[0]] * len(accidental)
  alteration = accidentals.get(place, signature.get(place[0], 0))
  return 12 * octave + scores.LETTERS[place[0]] + alteration

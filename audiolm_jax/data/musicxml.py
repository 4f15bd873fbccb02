"""Reads chorales in MusicXML, plain or compressed.

The reader covers what Bach's chorales in the package music21 need. Other scores are left out: those
with transposing instruments, or without exactly four parts. Repeats are not unfolded.
"""

import functools
import os
import xml.etree.ElementTree
import zipfile
from collections.abc import Iterator

import numpy as np

from audiolm_jax.data import folders, scores
from audiolm_jax.errors import UserError

_TIME = ('beats', 'beat-type')
_DAMAGED = (ValueError, KeyError, IndexError, ZeroDivisionError)  # of absent elements


@functools.cache
def chorales(root: str | os.PathLike) -> tuple[scores.Tune, ...]:
  """Returns the scores in four parts of all MusicXML files below a folder, sorted by file.

  Raises:
    UserError: if there is none.
  """
  paths = folders.find(root, ('.mxl', '.musicxml'))
  found = [read(path, os.path.relpath(path, root)) for path in paths]
  if not any(found):
    raise UserError(f'{root}: none of its MusicXML files has four parts that can be read')
  return tuple(filter(None, found))


def read(path: str | os.PathLike, name: str) -> scores.Tune | None:
  """Returns a MusicXML score in four parts, plain or compressed; None if it has others."""
  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as file:
        inner = [one for one in file.namelist() if not one.startswith('META-INF')]
        root = xml.etree.ElementTree.fromstring(file.read(inner[0]))
    else:
      root = xml.etree.ElementTree.parse(path).getroot()
    return _chorale(root, name)
  except (scores.Unread, xml.etree.ElementTree.ParseError, zipfile.BadZipFile, *_DAMAGED):
    return None


def _chorale(root: xml.etree.ElementTree.Element, name: str) -> scores.Tune:
  parts = root.findall('part')
  if len(parts) != 4 or root.find('.//transpose') is not None:
    raise scores.Unread
  bar, is_compound = scores.metre('/'.join(root.findtext(f'.//time/{n}', '') for n in _TIME))
  voices = tuple(np.array(sorted(_part_notes(part))) for part in parts)
  if not all(len(voice_N3) for voice_N3 in voices):
    raise scores.Unread
  fifths = int(root.findtext('.//key/fifths', '0'))
  major = 7 * fifths % 12
  tonic = int(voices[-1][-1, 2]) % 12  # the last bass note; files often lack the mode
  if tonic not in (major, (major + 9) % 12):
    raise scores.Unread
  first = parts[0].find('measure')
  upbeat = _measure_length(first)
  if upbeat < bar - 1e-6:
    for voice_N3 in voices:
      voice_N3[:, 0] += bar - upbeat
  return scores.tune(name, name.lower(), tonic, tonic != major, bar, is_compound, voices)


def _measure_length(measure: xml.etree.ElementTree.Element) -> float:
  divisions = float(measure.findtext('.//divisions', '1'))
  notes = [note for note in measure.findall('note') if note.find('chord') is None]
  return sum(float(note.findtext('duration', '0')) for note in notes) / divisions


def _part_notes(part: xml.etree.ElementTree.Element) -> Iterator[list[float]]:
  """Yields [onset, duration, pitch] of each note, tied notes as one."""
  time, divisions, previous, tied = 0.0, 1.0, 0.0, {}
  for item in part.iterfind('measure/*'):
    divisions = float(item.findtext('divisions', divisions))
    if item.tag not in ('note', 'backup', 'forward') or item.find('grace') is not None:
      continue
    duration = float(item.findtext('duration', '0')) / divisions
    if item.tag == 'note':
      onset = previous if item.find('chord') is not None else time
      if (pitch := item.find('pitch')) is not None:
        number = (
          12 * (int(pitch.findtext('octave', '')) + 1) + scores.LETTERS[pitch.findtext('step')]
        )
        number += int(pitch.findtext('alter', '0'))
        ties = {tie.get('type') for tie in item.findall('tie')}
        note = (
          tied.pop(number) if 'stop' in ties and number in tied else [onset, 0.0, float(number)]
        )
        note[1] += duration
        if 'start' in ties:
          tied[number] = note
        else:
          yield note
      previous = onset
      time += 0.0 if item.find('chord') is not None else duration
    else:
      time += duration if item.tag == 'forward' else -duration

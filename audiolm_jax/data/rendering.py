"""Renders notes with a sound font, by the package midirenderer (extra `music`)."""

import io
import os

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from audiolm_jax.errors import UserError
from audiolm_jax.metrics import extras

FONT = 'TimGM6mb.sf2'  # of the package pretty_midi; GPL-2, so it is read, not distributed
_PADDING_SECONDS = 1.0  # the renderer stops soon after the last event


def font_path(font: str = '') -> str:
  """Returns the path of a sound font; '' is TimGM6mb of the package pretty_midi.

  Raises:
    UserError: if the file is missing or no SF2 file, or the package is not installed.
  """
  path = font or str(extras.folder('pretty_midi', 'pretty_midi', extra='music') / FONT)
  if not os.path.isfile(path):
    raise UserError(f'{path!r} is no file: --set corpus.config.font=FILE must name a sound font')
  with open(path, 'rb') as file:
    head = file.read(12)
  if head[:4] != b'RIFF' or head[8:] != b'sfbk':
    raise UserError(
      f'{path} is no sound font in the format SF2 (sf3 cannot be read): give another '
      'file by --set corpus.config.font=FILE'
    )
  return path


def render(
  notes_N4: Float[np.ndarray, 'N 4'], program: int, seconds: float, sample_rate: int, font: str
) -> Float[np.ndarray, 'T']:
  """Returns the sound of notes, mono float32 of 16-bit resolution; sounds are cut at the end.

  Args:
    notes_N4: onset and end in seconds, MIDI pitch and velocity of each note.
    program: instrument of General MIDI, from 0.
    seconds: length of the result.
    sample_rate: of the result, in Hz.
    font: path of a sound font (`font_path`).

  Raises:
    UserError: if a package of the extra `music` is not installed, or the font is damaged.
  """
  pretty_midi = extras.load('pretty_midi', extra='music')
  renderer = extras.load('midirenderer', extra='music')
  part = pretty_midi.Instrument(program=program)
  for onset, end, pitch, velocity in np.asarray(notes_N4, float).tolist():
    part.notes.append(pretty_midi.Note(int(velocity), int(pitch), onset, end))
  # A controller that has no effect, which lets the renderer go on until the end.
  silent = pretty_midi.ControlChange(number=119, value=0, time=seconds + _PADDING_SECONDS)
  part.control_changes.append(silent)
  score = pretty_midi.PrettyMIDI()
  score.instruments.append(part)
  written = io.BytesIO()
  score.write(written)
  with open(font, 'rb') as file:
    data = file.read()
  try:
    sound = renderer.render_wave_from(data, written.getvalue())
  except (ValueError, RuntimeError) as error:
    raise UserError(f'{font} cannot be played ({error}): give another sound font') from error
  wave_TC, rate = soundfile.read(io.BytesIO(sound), dtype='float32', always_2d=True)
  wave_T = soxr.resample(wave_TC.mean(axis=1), rate, sample_rate)[: round(seconds * sample_rate)]
  if len(wave_T) < round(seconds * sample_rate):
    raise RuntimeError(f'{len(wave_T) / sample_rate:.2f} s were rendered, not {seconds}')
  # What a file of 16 bits would hold, so that stored clips equal rendered ones.
  return np.rint(np.clip(wave_T, -1, 1) * 32767).astype(np.float32) / 32768

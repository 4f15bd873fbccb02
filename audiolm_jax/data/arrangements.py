"""Sets tunes for instruments: attributes, chords, accompaniments, and the notes of a clip.

Notes are arrays [N, 4] with the columns onset and end in seconds, MIDI pitch, and velocity.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from audiolm_jax.data.scores import Tune

# Values of each attribute of captioned clips, in the order of their labels.
ATTRIBUTES = MappingProxyType(
  {
    'instrument': ('piano', 'harp', 'choir', 'flute', 'cello', 'sitar'),
    'register': ('low', 'high'),
    'dynamics': ('soft', 'loud'),
    'texture': ('line', 'chords'),
    'tempo': ('slow', 'medium', 'fast'),
    'mode': ('minor', 'major'),
  }
)
# Pairs of values that occur together in the split 'pairs' only.
HELD_OUT_PAIRS = (
  (('instrument', 'harp'), ('tempo', 'fast')),
  (('instrument', 'cello'), ('tempo', 'medium')),
  (('instrument', 'sitar'), ('tempo', 'slow')),
)
PROGRAMS = MappingProxyType(  # of General MIDI, from 0
  {'piano': 0, 'harp': 46, 'choir': 52, 'flute': 73, 'cello': 42, 'sitar': 104}
)
SETTINGS = ('hands', 'chorale')  # of piano clips
_TEMPI = {'slow': 66.0, 'medium': 104.0, 'fast': 160.0}  # beats per minute
_TEMPO_SPREAD = 0.05
_CENTRES = {'low': 55, 'high': 79}  # mean pitch of the melody
_BELOW = 16  # semitones from the melody's centre to the lowest root of a chord
_VELOCITIES = {'soft': 56, 'loud': 112}
_VELOCITY_SPREAD, _QUIETER = 6, 16  # accompaniments are quieter by the latter
_HANDS_TEMPI, _CHORALE_TEMPI = (80.0, 140.0), (60.0, 92.0)
_COVER_TEMPI, _COVER_SPREAD = (70.0, 150.0), 0.1  # of both recordings, and of each
_RIGHT_HAND, _LEFT_HAND = 74, 41  # mean pitch of the melody; lowest root of a chord
_PIANO_VELOCITIES = (52, 92)
_FARTHEST = 3  # semitones by which chorales are transposed
_DETACHED = 0.95  # share of a note's length that sounds
SCALES = {'major': (0, 2, 4, 5, 7, 9, 11), 'minor': (0, 2, 3, 5, 7, 8, 10)}
_TO_MODE = {'minor': {4: 3, 9: 8, 11: 10}, 'major': {3: 4, 8: 9, 10: 11}}
_DEGREES = (0, 4, 3, 5)  # chords I, V, IV and vi, or i, v, iv and VI; ties prefer the first


def random_attributes(random: np.random.Generator) -> dict[str, str]:
  """Draws one value of each attribute, independently and uniformly."""
  return {name: values[random.integers(len(values))] for name, values in ATTRIBUTES.items()}


def captioned(
  tune: Tune, attributes: Mapping[str, str], seconds: float, random: np.random.Generator
) -> tuple[Float[np.ndarray, 'N 4'], int]:
  """Returns the notes of a captioned clip of `seconds`, and the pitch class of its tonic.

  The melody is transposed to a random key and played in the given mode, which changes thirds,
  sixths and sevenths. Below it, each beat has one note, the root of the chord of the bar (texture
  'line'), or a triad ('chords').
  """
  mode = attributes['mode']
  tempo = _TEMPI[attributes['tempo']] * random.uniform(1 - _TEMPO_SPREAD, 1 + _TEMPO_SPREAD)
  melody_N3 = _stretch(tune, tempo, seconds, random)[0]
  melody_N3[:, 2] = _in_mode(melody_N3[:, 2], tune.tonic, mode)
  centre = _CENTRES[attributes['register']]
  shift = _shift(melody_N3, int(random.integers(12)), centre)
  melody_N3[:, 2] += shift
  tonic = (tune.tonic + shift) % 12
  accompaniment = []
  for start, chord in _chords(melody_N3, tune.bar, tonic, mode):
    pitches = _above(chord, centre - _BELOW)[: 3 if attributes['texture'] == 'chords' else 1]
    beats = np.arange(start, start + tune.bar - 1e-6, tune.beat)
    accompaniment += [(beat, tune.beat, pitch) for beat in beats for pitch in pitches]
  velocity = _VELOCITIES[attributes['dynamics']]
  parts = [(melody_N3, velocity), (np.array(accompaniment), velocity - _QUIETER)]
  return _timed(parts, tune, tempo, seconds, random), tonic


def piano(
  tune: Tune, setting: str, seconds: float, random: np.random.Generator
) -> tuple[Float[np.ndarray, 'N 4'], int, str]:
  """Returns the notes of a piano clip of `seconds`, its tonic's pitch class, and its mode.

  Chorales keep their four voices, and are transposed by up to three semitones. Tunes are set for
  two hands: the melody in any key, and broken, struck or alternating chords below it.
  """
  mode = 'minor' if tune.is_minor else 'major'
  tempi = _CHORALE_TEMPI if setting == 'chorale' else _HANDS_TEMPI
  tempo, velocity = random.uniform(*tempi), int(random.integers(*_PIANO_VELOCITIES))
  voices = _stretch(tune, tempo, seconds, random)
  if setting == 'chorale':
    shift = int(random.integers(-_FARTHEST, _FARTHEST + 1))
    for voice_N3 in voices:
      voice_N3[:, 2] += shift
    parts = [(voice_N3, velocity) for voice_N3 in voices]
  else:
    shift = _shift(voices[0], int(random.integers(12)), _RIGHT_HAND)
    voices[0][:, 2] += shift
    pattern = (_broken, _struck, _alternating)[random.integers(3)]
    chords = _chords(voices[0], tune.bar, (tune.tonic + shift) % 12, mode)
    left = [
      note for start, chord in chords for note in pattern(start, tune, _above(chord, _LEFT_HAND))
    ]
    parts = [(voices[0], velocity), (np.array(left), velocity - _QUIETER)]
  return _timed(parts, tune, tempo, seconds, random), (tune.tonic + shift) % 12, mode


def covers(
  tune: Tune, seconds: float, random: np.random.Generator
) -> list[Float[np.ndarray, 'N 4']]:
  """Returns the notes of two recordings of `seconds` of a melody, from the same bar.

  They differ in key, register, dynamics and tempo (by up to a fifth); the first has chords.
  """
  tempo, bar_seed = random.uniform(*_COVER_TEMPI), int(random.integers(2**32))
  mode = 'minor' if tune.is_minor else 'major'
  made = []
  for has_chords in (True, False):
    own_tempo = tempo * random.uniform(1 - _COVER_SPREAD, 1 + _COVER_SPREAD)
    melody_N3 = _stretch(tune, own_tempo, seconds, np.random.default_rng(bar_seed))[0]
    centre = int(random.choice(list(_CENTRES.values())))
    shift = _shift(melody_N3, int(random.integers(12)), centre)
    melody_N3[:, 2] += shift
    velocity = int(random.integers(*_PIANO_VELOCITIES))
    parts = [(melody_N3, velocity)]
    if has_chords:
      chords = _chords(melody_N3, tune.bar, (tune.tonic + shift) % 12, mode)
      struck = [
        note for start, chord in chords for note in _struck(start, tune, _above(chord, _LEFT_HAND))
      ]
      parts.append((np.array(struck), velocity - _QUIETER))
    made.append(_timed(parts, tune, own_tempo, seconds, random))
  return made


def _stretch(
  tune: Tune, tempo: float, seconds: float, random: np.random.Generator
) -> list[Float[np.ndarray, '_ 3']]:
  """Returns the voices of a clip in quarter notes from its start, a random downbeat of the melody.

  A tune that ends earlier starts again from its first bar.
  """
  needed = seconds * tempo / 60 * tune.beat
  first = random.choice(tune.downbeats)
  rounds = int(np.ceil((first + needed) / tune.length)) + 1
  voices = []
  for voice_N3 in tune.voices:
    turns = [voice_N3 + [turn * tune.length - first, 0, 0] for turn in range(rounds)]
    all_N3 = np.concatenate(turns)
    voices.append(all_N3[(all_N3[:, 0] > -1e-6) & (all_N3[:, 0] < needed - 1e-6)])
  return voices


def _shift(melody_N3: np.ndarray, transposition: int, centre: int) -> int:
  """Returns a transposition by these semitones and octaves, to a mean pitch close to `centre`."""
  mean = np.average(melody_N3[:, 2], weights=melody_N3[:, 1]) + transposition
  return transposition + 12 * round((centre - mean) / 12)


def _in_mode(pitch_N: np.ndarray, tonic: int, mode: str) -> np.ndarray:
  degree_N = (pitch_N - tonic) % 12
  return pitch_N + np.array([_TO_MODE[mode].get(int(one), one) - one for one in degree_N])


def _chords(
  melody_N3: np.ndarray, bar: float, tonic: int, mode: str
) -> list[tuple[float, list[int]]]:
  """Returns (start, pitch classes) of a triad per bar: the one that holds most of the melody."""
  scale = [(tonic + step) % 12 for step in SCALES[mode]]
  triads = [[scale[(degree + third) % 7] for third in (0, 2, 4)] for degree in _DEGREES]
  chords = []
  for number in range(int(melody_N3[-1, 0] // bar) + 1):
    inside = (melody_N3[:, 0] > number * bar - 1e-6) & (melody_N3[:, 0] < (number + 1) * bar - 1e-6)
    heard = [(int(pitch) % 12, duration) for _, duration, pitch in melody_N3[inside]]
    held = [sum(duration for pitch, duration in heard if pitch in triad) for triad in triads]
    chords.append((number * bar, triads[int(np.argmax(held))]))
  return chords


def _above(chord: list[int], lowest: int) -> list[int]:
  """Returns the pitches of a triad in root position, whose root is the first from `lowest`."""
  root = lowest + (chord[0] - lowest) % 12
  return [root + (pitch - chord[0]) % 12 for pitch in chord]


def _broken(start: float, tune: Tune, pitches: list[int]) -> list[tuple[float, float, int]]:
  step = tune.beat / 2
  order = (0, 1, 2, 1)
  times = np.arange(start, start + tune.bar - 1e-6, step)
  return [(time, step, pitches[order[n % 4]]) for n, time in enumerate(times)]


def _struck(start: float, tune: Tune, pitches: list[int]) -> list[tuple[float, float, int]]:
  return [(start, tune.bar, pitch) for pitch in pitches]


def _alternating(start: float, tune: Tune, pitches: list[int]) -> list[tuple[float, float, int]]:
  times = np.arange(start, start + tune.bar - 1e-6, tune.beat)
  bass, *others = pitches
  made = [(time, tune.beat, pitch) for time in times[1::2] for pitch in others]
  return [(time, tune.beat, bass - 12) for time in times[::2]] + made


def _timed(
  parts: list[tuple[np.ndarray, int]],
  tune: Tune,
  tempo: float,
  seconds: float,
  random: np.random.Generator,
) -> np.ndarray:
  per_quarter = 60 / tempo / tune.beat
  made = []
  for notes_N3, velocity in parts:
    onset_N, end_N = notes_N3[:, 0], notes_N3[:, 0] + _DETACHED * notes_N3[:, 1]
    drawn_N = velocity + random.integers(-_VELOCITY_SPREAD, _VELOCITY_SPREAD + 1, len(notes_N3))
    made.append(np.stack([onset_N * per_quarter, end_N * per_quarter, notes_N3[:, 2], drawn_N], 1))
  notes_N4 = np.concatenate(made)
  notes_N4 = notes_N4[notes_N4[:, 0] < seconds]
  notes_N4[:, 1] = np.minimum(notes_N4[:, 1], seconds)
  return notes_N4[np.lexsort((notes_N4[:, 2], notes_N4[:, 0]))].astype(np.float32)

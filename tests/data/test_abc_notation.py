"""ABC notation: pitches, lengths and keys by hand; what is left out."""

import numpy as np
import pytest

from audiolm_jax.data import abc_notation

FILLER = '| c8 | c8 | c8 | c8 |'  # makes tunes long enough


def read(body, key='C', metre='4/4', unit='1/8'):
  found = abc_notation.read(f'X:1\nT:A\nM:{metre}\nL:{unit}\nK:{key}\n{body}\n', 'a.abc')
  return found[0] if found else None


def notes(body, count, **fields):
  """Returns (onset, duration, pitch) of the first notes, in eighths."""
  return [
    (2 * onset, 2 * duration, pitch)
    for onset, duration, pitch in read(body + FILLER, **fields).voices[0][:count].tolist()
  ]


def pitches(body, count, **fields):
  return [pitch for _, _, pitch in notes(body, count, **fields)]


def test_octaves_and_lengths():
  # Middle C is 60.
  assert notes("C,2 C c/ c/2 c'3/2 z/ C3/ z/|", 6) == [
    (0, 2, 48),
    (2, 1, 60),
    (3, 0.5, 72),
    (3.5, 0.5, 72),
    (4, 1.5, 84),
    (6, 1.5, 60),
  ]


def test_accidentals_hold_for_their_bar_and_octave():
  assert pitches('^F F f =F F _B, B, | F8', 8) == [66, 66, 77, 65, 65, 58, 58, 65]
  assert pitches('F =F F ^^F | F8', 5, key='D') == [66, 65, 65, 67, 66]


@pytest.mark.parametrize(
  'key, tonic, is_minor, sharps_and_flats',
  [
    ('C', 0, False, ''),
    ('Bb', 10, False, 'BE'),
    ('F#m', 6, True, 'FCG'),
    ('E Minor', 4, True, 'F'),
    ('Ador', 9, True, 'F'),
    ('D Mixolydian', 2, False, 'F'),
    ('Aphr', 9, True, 'B'),
    ('Flyd', 5, False, ''),
  ],
)
def test_keys(key, tonic, is_minor, sharps_and_flats):
  tune = read('C D E F G A B c' + FILLER, key=key)
  assert (tune.tonic, tune.is_minor) == (tonic, is_minor)
  natural = dict(zip('CDEFGAB', (60, 62, 64, 65, 67, 69, 71)))
  changed = {
    letter
    for letter, pitch in zip('CDEFGAB', tune.voices[0][:7, 2], strict=True)
    if pitch != natural[letter]
  }
  assert changed == set(sharps_and_flats)


def test_broken_rhythms_and_tuplets():
  assert [duration for _, duration, _ in notes('c>d e<f g>>a z2 (3cde (3:2:2c2d|', 11)] == (
    pytest.approx([1.5, 0.5, 0.5, 1.5, 1.75, 0.25, 2 / 3, 2 / 3, 2 / 3, 4 / 3, 2 / 3])
  )
  assert [onset for onset, _, _ in notes('c>d e<f g>>a z2|', 6)] == [0, 1.5, 2, 2.5, 4, 5.75]


def test_ties_chords_and_what_is_ignored():
  assert notes('c4- c4- | c2 d2 "Am"!trill!~e2 {ga}([CEG]2)|', 4) == [
    (0, 10, 72),
    (10, 2, 74),
    (12, 2, 76),
    (14, 2, 67),
  ]


def test_endings_and_repeats_are_read_in_order():
  tune = read('|: C8 |1 D8 :|2 E8 |] % a comment\n|: F8 :: G8 :|')
  assert tune.voices[0][:, 2].tolist() == [60, 62, 64, 65, 67]
  assert tune.voices[0][:, 0].tolist() == [0, 4, 8, 12, 16] and tune.length == 20


def test_bars_begin_after_an_upbeat():
  tune = read('cd | e2 c2 g2 e2 | c6 cd | e8 | e8 | e8 |')
  assert tune.voices[0][:3, 0].tolist() == [3, 3.5, 4] and tune.bar == 4
  assert tune.downbeats == [4, 8, 12, 16, 20]


@pytest.mark.parametrize(
  'metre, unit, bar, beat',
  [
    ('C', '1/8', 4, 1),
    ('C|', '1/8', 4, 1),
    ('3/4', '1/8', 3, 1),
    ('6/8', '1/8', 3, 1.5),
    ('2/4', '1/16', 2, 0.5),
  ],
)
def test_metres(metre, unit, bar, beat):
  tune = read('cdef ' * 20, metre=metre, unit=unit)
  assert (tune.bar, tune.beat) == (bar, beat)


def test_what_needs_more_is_left_out_alone():
  good = f'M:4/4\nL:1/8\nK:C\nc8 {FILLER}\n'
  texts = {
    'key change': f'M:4/4\nL:1/8\nK:C\nc8 {FILLER}\nK:G\nc8|\n',
    'voices': f'M:4/4\nL:1/8\nV:1\nK:C\nc8 {FILLER}\n',
    'overlay': f'M:4/4\nL:1/8\nK:C\nc8 & e8 {FILLER}\n',
    'inline field': f'M:4/4\nL:1/8\nK:C\nc8 [K:G] {FILLER}\n',
    'no metre': f'M:none\nL:1/8\nK:C\nc8 {FILLER}\n',
    'no key': f'M:4/4\nL:1/8\nK:none\nc8 {FILLER}\n',
    'length of zero': f'M:4/4\nL:1/8\nK:C\nc/0 {FILLER}\n',
    'short': 'M:4/4\nL:1/8\nK:C\nc8 |\n',
  }
  joined = ''.join(f'X:{n}\nT:{name}\n{text}\n' for n, (name, text) in enumerate(texts.items()))
  found = abc_notation.read(f'% a book\n{joined}X:9\nT:The good, The\n{good}', 'a.abc')
  assert [(tune.name, tune.title) for tune in found] == [('a.abc#9', 'the good')]
  assert np.isfinite(found[0].voices[0]).all()


def test_a_folder_without_tunes_is_named(tmp_path):
  (tmp_path / 'a.abc').write_text('no tune')
  with pytest.raises(ValueError, match=f'{tmp_path}: none of its ABC files'):
    abc_notation.tunes(tmp_path)

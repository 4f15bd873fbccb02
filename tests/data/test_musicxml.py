"""MusicXML: onsets, ties and keys of small chorales written by hand."""

import pytest

from audiolm_jax.data import musicxml
from tests.data.toy_scores import chorale, note

BAR = note('E', 4, 8)
REST = '<note><rest/><duration>2</duration></note>'


def read(tmp_path, text):
  path = tmp_path / 'a.musicxml'
  path.write_text(text)
  return musicxml.read(path, 'a')


def soprano(first):
  return chorale([first + [BAR] * 4, *[[note('C', 4, 2)] + [BAR] * 4] * 2, bass('C')])


def bass(last):
  return [note('C', 3, 2)] + [BAR] * 3 + [note(last, 3, 8)]


def test_upbeats_rests_chords_ties_and_alterations(tmp_path):
  first = [
    note('G', 4, 2),
    note('F', 4, 1, alter=1) + note('B', 4, 1, alter=-1) + REST + note('C', 5, 4, tie='start'),
    note('C', 5, 2, tie='stop')
    + '<note><chord/><pitch><step>D</step><octave>5</octave></pitch><duration>2</duration></note>'
    + note('A', 4, 6),
  ]
  tune = read(tmp_path, soprano(first))
  assert tune.voices[0][:6].tolist() == [
    [3, 1, 67],
    [4, 0.5, 66],
    [4.5, 0.5, 70],
    [6, 3, 72],
    [8, 1, 74],
    [9, 3, 69],
  ]
  assert (tune.bar, tune.beat, len(tune.voices)) == (4, 1, 4)


def test_the_last_bass_note_tells_major_from_minor(tmp_path):
  parts = lambda last: [[BAR] * 5] * 3 + [bass(last)]
  key = lambda last, fifths: read(tmp_path, chorale(parts(last), fifths))
  assert (key('G', 1).tonic, key('G', 1).is_minor) == (7, False)
  assert (key('E', 1).tonic, key('E', 1).is_minor) == (4, True)
  assert key('D', 1) is None


@pytest.mark.parametrize(
  'text',
  [
    chorale([[BAR] * 5] * 3),
    chorale([[BAR] * 5] * 4).replace('<key>', '<transpose/><key>'),
    chorale([[BAR] * 5] * 3 + [[REST]]),
    chorale([[BAR] * 5] * 4).replace('<octave>4</octave>', ''),
    'no XML',
  ],
)
def test_other_scores_are_left_out(tmp_path, text):
  assert read(tmp_path, text) is None


def test_a_folder_without_chorales_is_named(tmp_path):
  (tmp_path / 'a.mxl').write_text('nothing')
  with pytest.raises(ValueError, match='none of its MusicXML files has four parts'):
    musicxml.chorales(tmp_path)

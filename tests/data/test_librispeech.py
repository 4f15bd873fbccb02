import os

import pytest

from audiolm_jax.data import librispeech


def fill(root, names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()


def test_texts_beside_the_files_are_read(tmp_path):
  fill(tmp_path, ['84/121/84-121-0001.flac', '84/121/84-121-0000.flac', '100/7/100-7-0000.flac'])
  (tmp_path / '84/121/84-121.trans.txt').write_text('84-121-0000 GO ON\n84-121-0001 OH\n')
  found = librispeech.utterances(tmp_path)
  assert [(os.path.basename(one.path), one.speaker, one.text) for one in found] == [
    ('100-7-0000.flac', 100, None),
    ('84-121-0000.flac', 84, 'GO ON'),
    ('84-121-0001.flac', 84, 'OH'),
  ]
  assert [librispeech.held_out(one) for one in found] == [True, False, False]


def test_other_files_are_refused(tmp_path):
  fill(tmp_path, ['voice.flac'])
  with pytest.raises(ValueError, match='voice.flac: LibriSpeech.s files are named speaker-chapter'):
    librispeech.utterances(tmp_path)

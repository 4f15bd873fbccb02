import json

import numpy as np
import pytest

from audiolm_jax import audio
from audiolm_jax.data import folders, librilight

RATE = 16_000


def fill(root, names, seconds=1.0):
  for i, name in enumerate(names):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    audio.save(root / name, np.full(int(seconds * RATE), (i + 1) / 16, np.float32), RATE)


def test_files_are_sorted_and_folders_are_speakers(tmp_path):
  fill(tmp_path, ['b/2.wav', 'a/1.flac', 'b/0.wav'])
  (tmp_path / 'a/notes.txt').write_text('x')
  source = folders.examples(tmp_path, RATE, speaker_folders=True)
  assert [int(source[i]['label']) for i in range(3)] == [0, 1, 1]
  assert [round(16 * float(source[i]['waveform'][0])) for i in range(3)] == [2, 3, 1]
  assert 'label' not in folders.examples(tmp_path, RATE)[0]


def test_bad_files_are_counted_and_too_many_stop(tmp_path):
  fill(tmp_path, [f'{i}.wav' for i in range(8)])
  (tmp_path / '3.wav').write_bytes(b'RIFF')
  (tmp_path / '5.wav').write_text('not audio')
  record = tmp_path / 'quarantine.jsonl'
  source = folders.examples(tmp_path, RATE, max_bad_fraction=0.25, quarantine=str(record))
  for _ in range(2):  # twice: a file counts once
    assert [i for i in range(8) if source[i] is None] == [3, 5]
  lines = [json.loads(line) for line in record.read_text().splitlines()]
  assert [line['path'][-5:] for line in lines] == ['3.wav', '5.wav'] and 'not WAV' in lines[1]['reason']
  strict = folders.examples(tmp_path, RATE, max_bad_fraction=0.2)
  assert strict[3] is None
  with pytest.raises(ValueError, match='2 of 8 audio files'):
    strict[5]


def test_a_crop_that_is_damaged_is_recorded_as_a_file_is(tmp_path):
  for i in range(3):
    noise_T = np.random.default_rng(i).uniform(-0.5, 0.5, 4 * RATE)
    audio.save(tmp_path / f'{i}.flac', noise_T, RATE)
  data = (tmp_path / '1.flac').read_bytes()
  (tmp_path / '1.flac').write_bytes(data[: len(data) // 2])  # the header still says 4 s
  record = tmp_path / 'quarantine.jsonl'
  source = folders.examples(tmp_path, RATE, max_bad_fraction=0.5, quarantine=str(record), speaker_folders=True)
  lengths = []

  def choose(length, first=3 * RATE):
    lengths.append(length)
    return first, first + 100

  crops = [source.crop(i, choose) for i in range(3)]
  assert crops[1] is None and source[1] is None and lengths == [4 * RATE] * 3
  np.testing.assert_array_equal(crops[2]['waveform'], source[2]['waveform'][3 * RATE : 3 * RATE + 100])
  assert crops[2]['label'] == source[2]['label'] and source.crop(-1, choose)['waveform'].shape == (100,)
  [line] = [json.loads(line) for line in record.read_text().splitlines()]
  assert line == {'path': str(tmp_path / '1.flac'), 'reason': source.bad[1]} and '1.flac: ' in line['reason']


def test_links_to_the_outside_are_left_out(tmp_path):
  fill(tmp_path, ['in/1.wav', 'out/2.wav'])
  (tmp_path / 'in/3.wav').symlink_to(tmp_path / 'out/2.wav')
  assert len(folders.examples(tmp_path / 'in', RATE)) == 1


def test_no_files(tmp_path):
  with pytest.raises(ValueError, match='no audio files'):
    folders.examples(tmp_path, RATE)


def test_librilight(tmp_path):
  fill(tmp_path, ['unlab-600/17/a/x.flac', 'unlab-600/4/b/y.flac'], seconds=5)
  voiced = [[0.5, 1.0], [1.25, 2.25], [2.75, 4.75]]
  (tmp_path / 'unlab-600/17/a/x.json').write_text(json.dumps({'voice_activity': voiced}))
  source = librilight.examples(tmp_path, part_seconds=1.75)
  lengths = [(int(source[i]['label']), len(source[i]['waveform']) / RATE) for i in range(len(source))]
  assert lengths == [(17, 1.75), (17, 1.75), (17, 0.25), (4, 5.0)]
  with pytest.raises(ValueError, match='unlab-6k'):
    librilight.examples(tmp_path, splits=['unlab-6k'])


@pytest.mark.parametrize('text', [
    '{"voice', '[]', '{"voice_activity": 3}', '{"voice_activity": [[0, NaN]]}', '{"voice_activity": [[0, 1e99]]}',
    '{"voice_activity": [[2, 1]]}', '{"voice_activity": [["a", 1]]}', '{"voice_activity": [3]}',
])  # fmt: skip
def test_torn_and_hostile_voice_activity_is_named(tmp_path, text):
  fill(tmp_path, ['unlab-600/17/a/x.flac'])
  (tmp_path / 'unlab-600/17/a/x.json').write_text(text)
  with pytest.raises(ValueError, match='x.json.*: unpack it again'):
    librilight.examples(tmp_path)


def test_a_record_of_bad_files_that_is_a_link_is_not_written_through(tmp_path):
  fill(tmp_path, ['in/1.wav'])
  (tmp_path / 'in/2.wav').write_text('not audio')
  (tmp_path / 'record').symlink_to(tmp_path / 'victim')
  record = str(tmp_path / 'record')
  source = folders.examples(tmp_path / 'in', RATE, max_bad_fraction=0.5, quarantine=record)
  with pytest.raises(ValueError, match='record is a link'):
    source[1]
  assert not (tmp_path / 'victim').exists()

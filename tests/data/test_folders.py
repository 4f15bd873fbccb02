import json
import os

import numpy as np
import pytest
import soundfile

from audiolm_jax import audio
from audiolm_jax.data import folders, librilight, skipped

RATE = 16_000


def fill(root, names, seconds=1.0):
  for i, name in enumerate(names):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    audio.save(root / name, np.full(int(seconds * RATE), (i + 1) / 16, np.float32), RATE)


def test_files_are_sorted_and_folders_are_speakers(tmp_path):
  fill(tmp_path, ['b/2.wav', 'a/1.flac', 'b/0.wav'])
  (tmp_path / 'a/notes.txt').write_text('x')
  source = folders.examples(tmp_path, RATE, speaker_folders=True)
  assert [int(source[i]['speaker']) for i in range(3)] == [0, 1, 1]
  assert [round(16 * float(source[i]['waveform'][0])) for i in range(3)] == [2, 3, 1]
  assert 'speaker' not in folders.examples(tmp_path, RATE)[0]


def test_bad_files_are_counted_and_too_many_stop(tmp_path):
  fill(tmp_path, [f'{i}.wav' for i in range(8)])
  (tmp_path / '3.wav').write_bytes(b'RIFF')
  (tmp_path / '5.wav').write_text('not audio')
  record = tmp_path / 'quarantine.jsonl'
  source = folders.examples(tmp_path, RATE, max_bad_fraction=0.25, quarantine=str(record))
  for _ in range(2):  # twice: a file counts once
    assert [i for i in range(8) if source[i] is None] == [3, 5]
  lines = [json.loads(line) for line in record.read_text().splitlines()]
  assert [line['path'][-5:] for line in lines] == ['3.wav', '5.wav'] and 'not WAV' in lines[1][
    'reason'
  ]
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
  source = folders.examples(
    tmp_path, RATE, max_bad_fraction=0.5, quarantine=str(record), speaker_folders=True
  )
  lengths = []

  def choose(length, first=3 * RATE):
    lengths.append(length)
    return first, first + 100

  crops = [source.crop(i, choose) for i in range(3)]
  assert crops[1] is None and source[1] is None and lengths == [4 * RATE] * 3
  np.testing.assert_array_equal(
    crops[2]['waveform'], source[2]['waveform'][3 * RATE : 3 * RATE + 100]
  )
  assert crops[2]['speaker'] == source[2]['speaker'] and source.crop(-1, choose)[
    'waveform'
  ].shape == (100,)
  [line] = [json.loads(line) for line in record.read_text().splitlines()]
  assert (
    line == {'path': str(tmp_path / '1.flac'), 'reason': source.bad[1]}
    and '1.flac: ' in line['reason']
  )


def test_links_are_followed_once_each_and_loops_are_named(tmp_path):
  fill(tmp_path, ['in/a/1.wav', 'out/2.wav', 'out/deep/3.flac'])
  root = tmp_path / 'in'
  (root / '0.wav').symlink_to(root / 'a/1.wav')  # counts once, by its own name
  (root / 'hard.wav').hardlink_to(root / 'a/1.wav')
  (root / '4.wav').symlink_to(tmp_path / 'out/2.wav')
  (root / 'b').symlink_to(tmp_path / 'out')
  (root / 'c').symlink_to(tmp_path / 'out')
  (root / 'a/loop').symlink_to(root)
  (root / 'gone.wav').symlink_to(root / 'nothing')
  (root / 'self.wav').symlink_to('self.wav')
  found = folders.scan(root)
  names = ['4.wav', 'a/1.wav', 'b/deep/3.flac', 'gone.wav', 'self.wav']
  assert found.paths == [str(root / name) for name in names]
  reasons = {path.removeprefix(f'{root}/'): reason for path, reason in found.left_out}
  assert set(reasons) == {'a/loop', 'c'} and 'in a cycle' in reasons['a/loop']
  source = folders.examples(root, RATE, max_bad_fraction=0.4)
  assert [source[i] is None for i in range(5)] == [False, False, False, True, True]
  assert 'No such file' in source.bad[3] and 'Too many levels' in source.bad[4]


def test_a_folder_of_links_alone_is_a_corpus(tmp_path):
  fill(tmp_path, ['out/1.wav', 'out/2.wav'])
  (tmp_path / 'in').mkdir()
  for name in ('1.wav', '2.wav'):
    (tmp_path / 'in' / name).symlink_to(tmp_path / 'out' / name)
  source = folders.examples(tmp_path / 'in', RATE)
  assert [round(16 * float(source[i]['waveform'][0])) for i in range(2)] == [1, 2]


def test_every_extension_of_what_can_be_read_is_found_and_what_is_left_out_is_said(tmp_path):
  fill(tmp_path, ['1.wav'])
  for name in ('2.wave', '3.WAV'):
    (tmp_path / name).write_bytes((tmp_path / '1.wav').read_bytes())
  soundfile.write(tmp_path / '4.ogg', np.zeros(RATE), RATE, subtype='OPUS')
  (tmp_path / '5.opus').write_bytes((tmp_path / '4.ogg').read_bytes())
  soundfile.write(tmp_path / '6.ogg', np.zeros(RATE), RATE, subtype='VORBIS')
  (tmp_path / '6.ogg').rename(tmp_path / '6.oga')
  (tmp_path / '._1.wav').write_bytes(b'\x00\x05\x16\x07')
  (tmp_path / '7.m4a').write_bytes(b'x')
  (tmp_path / 'notes.txt').write_bytes(b'x')
  os.mkfifo(tmp_path / '8.wav')
  listing = tmp_path / 'skipped.jsonl'
  for _ in range(2):  # twice: each is listed once
    source = folders.examples(tmp_path, RATE, quarantine=str(listing))
  names = [os.path.basename(part.path) for part in source.parts]
  assert names == ['1.wav', '2.wave', '3.WAV', '4.ogg', '5.opus', '6.oga']
  assert [len(source[i]['waveform']) for i in range(6)] == [RATE] * 6
  listed = [(os.path.basename(path), reason) for path, reason in skipped.read(listing)]
  assert [name for name, _ in listed] == ['._1.wav', '7.m4a', '8.wav']
  assert 'macOS' in listed[0][1] and 'convert' in listed[1][1] and 'no regular file' in listed[2][1]


def test_names_that_are_no_text_are_found_listed_and_counted(tmp_path):
  name = os.fsdecode(b'\xe9\xff.wav')
  (tmp_path / name).write_bytes(b'')
  fill(tmp_path, ['1.wav'])
  listing = tmp_path / 'skipped.jsonl'
  source = folders.examples(tmp_path, RATE, quarantine=str(listing), max_bad_fraction=0.5)
  assert source[0] is not None and source[1] is None
  assert [path for path, _ in skipped.read(listing)] == [str(tmp_path / name)]
  assert source.inventory()[1] == '\udce9\udcff.wav\t0\t0.0\tend'
  assert skipped.shown(name) == '\\xe9\\xff.wav'


def test_a_folder_with_only_what_is_left_out_says_why(tmp_path):
  (tmp_path / '._1.wav').write_bytes(b'')
  with pytest.raises(ValueError, match='no audio files.*excluded: .*_1.wav .macOS'):
    folders.find(tmp_path)


def test_a_subset_keeps_the_settings(tmp_path):
  fill(tmp_path, ['1.wav', '2.wav'])
  source = folders.examples(tmp_path, RATE, max_seconds=0.5, max_bad_fraction=1.0)
  assert source.keep(source.parts[1:])[0] is None and source.keep([]).inventory() == []
  assert source.keep(source.parts[1:]).inventory() == source.inventory()[1:]


def test_mp3s_whose_length_cannot_be_checked_are_counted(tmp_path):
  fill(tmp_path, ['1.wav'])
  soundfile.write(tmp_path / '2.mp3', np.zeros(RATE), RATE)
  data = (tmp_path / '2.mp3').read_bytes()
  (tmp_path / '3.mp3').write_bytes(data[data.index(data[:2], 4) :])  # without its tag
  (tmp_path / '4.mp3').write_bytes(b'no audio')
  assert folders.examples(tmp_path, RATE).unchecked() == 1


def test_no_files(tmp_path):
  with pytest.raises(ValueError, match='no audio files'):
    folders.examples(tmp_path, RATE)


def test_librilight(tmp_path):
  fill(tmp_path, ['unlab-600/17/a/x.flac', 'unlab-600/4/b/y.flac'], seconds=5)
  voiced = [[0.5, 1.0], [1.25, 2.25], [2.75, 4.75]]
  (tmp_path / 'unlab-600/17/a/x.json').write_text(json.dumps({'voice_activity': voiced}))
  source = librilight.examples(tmp_path, part_seconds=1.75)
  lengths = [
    (int(source[i]['speaker']), len(source[i]['waveform']) / RATE) for i in range(len(source))
  ]
  assert lengths == [(17, 1.75), (17, 1.75), (17, 0.25), (4, 5.0)]
  with pytest.raises(ValueError, match='unlab-6k'):
    librilight.examples(tmp_path, splits=['unlab-6k'])


@pytest.mark.parametrize(
  'text',
  [
    '{"voice',
    '[]',
    '{"voice_activity": 3}',
    '{"voice_activity": [[0, NaN]]}',
    '{"voice_activity": [[0, 1e99]]}',
    '{"voice_activity": [[2, 1]]}',
    '{"voice_activity": [["a", 1]]}',
    '{"voice_activity": [3]}',
  ],
)
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


def test_folders_too_deep_for_a_path_are_left_out_by_name(tmp_path):
  fill(tmp_path, ['1.wav'])
  descriptor = os.open(tmp_path, os.O_RDONLY)
  for _ in range(25):  # of 200 bytes: beyond the 4,096 of a path
    os.mkdir('d' * 200, dir_fd=descriptor)
    below = os.open('d' * 200, os.O_RDONLY, dir_fd=descriptor)
    os.close(descriptor)
    descriptor = below
  os.close(descriptor)
  found = folders.scan(tmp_path)
  assert found.paths == [str(tmp_path / '1.wav')]
  [(path, reason)] = found.left_out
  assert 4_096 - 201 < len(path) < 4_096 + 201 and 'path is too long for the system' in reason

"""Files under attack: links, kills, damage, and text that would steer a terminal."""

import json
import os
import pathlib
import re
import socket
import subprocess
import time

import numpy as np
import pytest

from audiolm_jax import arrays_file, audio, codes_file, files

ROOT = pathlib.Path(__file__).parent.parent


WRITERS = {
  'voice.wav': lambda path: audio.save(path, np.zeros(1600, np.float32), 16_000),
  'voice.alm': lambda path: codes_file.save(
    path, codes_file.Header(16_000, 320, 12, 1024, 320 * 5, '0' * 16), np.zeros((5, 12), np.int32)
  ),
  'text.json': lambda path: files.write_text(path, '{}'),
  'clusters.safetensors': lambda path: arrays_file.save(path, {'a': np.zeros(2)}, {'x': 'y'}),
}


@pytest.mark.parametrize('name', WRITERS)
def test_mode_of_what_is_written_is_that_of_the_umask(tmp_path, umask, name):
  WRITERS[name](tmp_path / name)
  assert (tmp_path / name).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize('name', WRITERS)
def test_links_of_predictable_temporary_names_are_not_followed(tmp_path, name):
  """The names that were used before; and no other name is used twice."""
  victim = tmp_path / 'victim'
  victim.write_text('precious')
  pid = f'{socket.gethostname()}.{os.getpid()}'
  folder = tmp_path / 'shared'
  folder.mkdir()
  for planted in (f'{name}.partial', f'{name}.tmp', f'{name}.{pid}.partial', f'{name}.{pid}.tmp'):
    (folder / planted).symlink_to(victim)
  WRITERS[name](folder / name)
  assert victim.read_text() == 'precious' and not (folder / name).is_symlink()
  used = set()
  for _ in range(3):
    with files.atomically(folder / 'x') as partial:
      used.add(partial.name)
  assert len(used) == 3


def test_a_foreseen_temporary_name_is_refused_not_followed(tmp_path, monkeypatch):
  monkeypatch.setattr(files.secrets, 'token_hex', lambda size: '0' * 2 * size)
  victim = tmp_path / 'victim'
  (tmp_path / f'a.{socket.gethostname()}.{os.getpid()}.{"0" * 16}.partial').symlink_to(victim)
  with pytest.raises(FileExistsError):
    files.write_text(tmp_path / 'a', 'x')
  assert not victim.exists() and not (tmp_path / 'a').exists()


def test_a_link_at_the_final_name_is_replaced_not_followed(tmp_path):
  victim = tmp_path / 'victim'
  victim.write_text('precious')
  (tmp_path / 'a').symlink_to(victim)
  files.write_text(tmp_path / 'a', 'new')
  assert victim.read_text() == 'precious' and (tmp_path / 'a').read_text() == 'new'


def test_a_missing_folder_is_named_by_the_file_that_was_asked_for(tmp_path):
  with pytest.raises(FileNotFoundError) as caught:
    audio.save(tmp_path / 'no' / 'a.wav', np.zeros(1600, np.float32), 16_000)
  assert caught.value.filename == str(tmp_path / 'no' / 'a.wav')


def test_files_take_their_name_when_they_are_whole(tmp_path):
  path = tmp_path / 'new' / 'a.json'
  files.write_text(path, 'one')
  with pytest.raises(RuntimeError):
    with files.atomically(path) as partial:
      partial.write_text('two')
      assert path.read_text() == 'one'
      raise RuntimeError
  assert [file.name for file in path.parent.iterdir()] == ['a.json'] and path.read_text() == 'one'


@pytest.mark.parametrize('name', ['x' * 251 + '.wav', 'ä' * 125 + '.wav'])
def test_the_longest_names_are_written(tmp_path, name):
  audio.save(tmp_path / name, np.zeros(1600, np.float32), 16_000)
  assert os.listdir(tmp_path) == [name]


def test_what_a_killed_writer_left_is_deleted_and_nothing_else(tmp_path):
  dead = subprocess.run(
    ['sh', '-c', 'echo $$'], capture_output=True, text=True, check=True
  ).stdout.strip()
  here, end = socket.gethostname(), f'{"0" * 16}.partial'
  old = {f'b.there.1.{end}', f'a.{here}.1.{end}'}
  gone = {f'a.{here}.{dead}.{end}', *old}
  stays = {
    f'c.{here}.1.{end}',
    f'a.there.{dead}.{end}',
    f'{dead}.partial',
    'x.partial',
    f'{"9" * 30}.{end}',
  }
  for name in gone | stays:
    (tmp_path / name).touch()
  for name in old:
    os.utime(tmp_path / name, (time.time() - 2 * 24 * 3600,) * 2)
  files.write_text(tmp_path / 'a', 'x')
  assert set(os.listdir(tmp_path)) == stays | {'a'}


def test_a_log_that_is_a_link_is_not_written_through(tmp_path):
  (tmp_path / 'log').symlink_to(tmp_path / 'victim')
  with pytest.raises(ValueError, match='log is a link, which is not written through: delete it'):
    files.open_in_place(tmp_path / 'log', 'a')
  assert not (tmp_path / 'victim').exists()


def test_a_pipe_is_refused_at_once(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(ValueError, match='pipe is no regular file: delete it'):
    files.open_in_place(tmp_path / 'pipe', 'r+')
  with pytest.raises(ValueError, match=r'pipe cannot be read \(no regular file\): copy it'):
    files.read_json(tmp_path / 'pipe', 'copy it')
  with pytest.raises(OSError, match='no regular file'):
    files.json_lines(tmp_path / 'pipe')


DAMAGED = {
  '': 'is not JSON',
  '{"a": 1': 'is not JSON',
  '[1, 2]': 'holds a list, not an object',
  '1' * 5000: 'is not JSON',
  '[' * 100_000: 'is not JSON',
  '{"a":' * 100_000: 'is not JSON',
  '"' + 'x' * 2000: 'has more than 1,000 bytes',
  '\x00\x1b[31m': 'is not JSON',
  '\udcff': 'is not JSON',
}


@pytest.mark.parametrize('text', DAMAGED, ids=range(len(DAMAGED)))
def test_hostile_and_torn_json_is_a_named_error(tmp_path, text):
  (tmp_path / 'a.json').write_bytes(os.fsencode(text))
  bound = 1000 if text.startswith('"') else files.MAX_JSON_BYTES
  with pytest.raises(ValueError, match=rf'a\.json {DAMAGED[text]}.*: make it again') as caught:
    files.read_json(tmp_path / 'a.json', 'make it again', max_bytes=bound)
  assert str(caught.value).isprintable()


def test_bad_lines_are_skipped_and_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(files, 'MAX_LINE_BYTES', 64)
  good = [{'step': 1}, {'step': 2, 'x': 'y' * 40}, {'step': 3}]
  bad = [b'{"step": 4, "lo', b'[1]', b'[' * 60, b'\xff\x00', b'"' + b'x' * 300 + b'"', b'7']
  one, two, three = (json.dumps(line).encode() for line in good)
  lines = [one, *bad[:3], two, b'', *bad[3:], three]
  (tmp_path / 'a').write_bytes(b'\n'.join(lines))
  assert files.json_lines(tmp_path / 'a') == (good, len(bad))


def test_a_line_of_just_the_bound_is_read(tmp_path, monkeypatch):
  monkeypatch.setattr(files, 'MAX_LINE_BYTES', 16)
  # with its end, the first is longer than the bound
  lines = [b'{"a": "1234567"}', b'{"a": "123456"}', b'{"b": 1}']
  (tmp_path / 'a').write_bytes(b'\n'.join(lines))
  assert files.json_lines(tmp_path / 'a') == ([{'a': '123456'}, {'b': 1}], 1)


@pytest.mark.parametrize(
  'text, shown',
  [
    ('plain name.wav', 'plain name.wav'),
    ('Ünï – 語.wav', 'Ünï – 語.wav'),
    ('\x1b]0;owned\x07\x1b[2J', r'\x1b]0;owned\x07\x1b[2J'),
    ('a\nb\rc\x7f', r'a\nb\rc\x7f'),
    ('\x9b31m', r'\x9b31m'),
    ('gpj\u202e.exe', r'gpj\u202e.exe'),
    ('caf\udce9', r'caf\udce9'),
    (pathlib.Path('a\x1bb'), r'a\x1bb'),
  ],
)
def test_terminal_escapes_in_names_are_printed_as_text(text, shown):
  assert files.printable(text) == shown
  shown.encode('utf-8')


def test_long_names_are_cut_and_lines_kept_where_wanted():
  assert files.printable('x' * 300, 5) == 'xxxxx...'
  assert files.printable('a\n\x1bb', keep='\n') == 'a\n\\x1bb'


def test_sha256_is_that_of_the_content(tmp_path):
  (tmp_path / 'a').write_bytes(b'abc')  # the example of FIPS 180-2
  assert (
    files.sha256(tmp_path / 'a')
    == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
  )


# Moves of whole files and folders, by the file that makes them: no writes.
MOVES = {
  'audiolm_jax/storage/folders.py': 2,
  'audiolm_jax/data/synthesized_benchmark.py': 1,
  'audiolm_jax/release.py': 1,
  'experiments/full_run.py': 1,
}
MOVE = re.compile(r'os\.(?:replace|rename|link)\(|\)\.rename\(|shutil\.(?:move|copy)')
BY_HAND = re.compile(r"f'[^']*\.(?:tmp|partial)'|NamedTemporaryFile|mks?temp|file_digest")


def test_nobody_else_writes_atomically_or_hashes_files_by_hand():
  for path in sorted(
    [*(ROOT / 'audiolm_jax').rglob('*.py'), *(ROOT / 'experiments').rglob('*.py')]
  ):
    if path == pathlib.Path(files.__file__):
      continue
    text, name = path.read_text(), path.relative_to(ROOT).as_posix()
    assert len(MOVE.findall(text)) == MOVES.get(name, 0), f'{name}: write by files.atomically'
    assert not BY_HAND.search(text), f'{name}: write by files.atomically, hash by files.sha256'


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
  with files.folder_atomically(tmp_path / 'made') as partial:
    (partial / 'a').write_text('1')
    assert not (tmp_path / 'made').exists()
  assert (tmp_path / 'made/a').read_text() == '1'
  with pytest.raises(KeyError), files.folder_atomically(tmp_path / 'failed') as partial:
    (partial / 'a').write_text('1')
    raise KeyError
  with pytest.raises(OSError), files.folder_atomically(tmp_path / 'made') as partial:
    (partial / 'a').write_text('2')
  assert (tmp_path / 'made/a').read_text() == '1'
  assert [path.name for path in tmp_path.iterdir()] == ['made']

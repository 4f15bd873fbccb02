"""The same calls on a disk and in a bucket; and what the client of buckets must be for us."""

import errno
import os
import pathlib
import time

import pytest

from audiolm_jax import errors, files, storage
from tests import bucket_server


@pytest.fixture(params=['disk', 'bucket'])
def folder(request, tmp_path):
  return tmp_path if request.param == 'disk' else request.getfixturevalue('bucket')


def test_files_are_written_read_listed_and_removed(folder):
  storage.write_text(folder / 'a' / 'text', 'größer')
  with storage.atomically(folder / 'a' / 'bytes') as partial:
    assert isinstance(partial, pathlib.Path) and partial.read_bytes() == b''
    partial.write_bytes(b'\0' * 5)
    assert not (folder / 'a' / 'bytes').exists()
  storage.write_text(folder / 'a-b', '')
  assert sorted(storage.files_below(folder)) == ['a-b', 'a/bytes', 'a/text']
  assert (folder / 'a' / 'text').read_text('utf-8') == 'größer'
  assert (folder / 'a').is_dir() and (folder / 'a' / 'text').is_file()
  assert sorted(path.name for path in folder.iterdir()) == ['a', 'a-b']
  assert not (folder / 'b').exists() and not (folder / 'a-').exists()
  empty = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
  assert storage.digest(folder / 'a-b') == (0, empty)
  with storage.local(folder / 'a' / 'text') as local:
    assert local.read_bytes() == 'größer'.encode()
  storage.remove(folder / 'a')
  assert storage.files_below(folder) == ['a-b']
  for read in (storage.digest, lambda path: path.read_text()):
    with pytest.raises(FileNotFoundError):
      read(folder / 'a' / 'text')


def test_what_all_processes_write_is_written_once(bucket, bucket_address):
  storage.write_agreed(bucket / 'a', 'same')
  before = bucket_server.counts(bucket_address)['upload']
  storage.write_agreed(bucket / 'a', 'same')
  assert bucket_server.counts(bucket_address)['upload'] == before
  storage.write_agreed(bucket / 'a', 'other')
  assert (bucket / 'a').read_text() == 'other'


def test_a_block_that_raises_writes_nothing(folder):
  with pytest.raises(KeyError):
    with storage.atomically(folder / 'a') as partial:
      partial.write_text('half')
      raise KeyError
  assert storage.files_below(folder) == []


def test_conditional_writes(folder):
  path = folder / 'lock'
  absent, found = storage.look(path)
  assert found is None
  first = storage.swap(path, b'mine', absent)
  assert first is not None and storage.look(path) == (first, b'mine')
  assert storage.swap(path, b'other', absent) is None
  time.sleep(0.01)  # file systems tell apart times of some milliseconds
  second = storage.swap(path, b'mine', first)  # a renewal
  assert second not in (None, first) and storage.swap(path, b'other', first) is None
  assert storage.look(path) == (second, b'mine')
  assert storage.swap(path, None, second) is not None and storage.look(path)[1] is None


def test_json_is_read_with_a_remedy(folder):
  storage.write_text(folder / 'good', '{"a": 1}')
  storage.write_text(folder / 'bad', '{"a"')
  assert storage.read_json(folder / 'good', 'mend it') == {'a': 1}
  with pytest.raises(errors.UserError, match='bad is not JSON.*mend it'):
    storage.read_json(folder / 'bad', 'mend it')
  with pytest.raises(errors.UserError, match='cannot be read .*: mend it'):
    storage.read_json(folder / 'missing', 'mend it')
  with pytest.raises(errors.UserError, match='more than 7 bytes'):
    storage.read_json(folder / 'good', 'mend it', max_bytes=7)


def test_paths():
  assert storage.path('runs/gs:/x') == pathlib.Path('runs/gs:/x')
  assert str(storage.path('gs://bucket/a') / 'b') == 'gs://bucket/a/b'
  assert storage.absolute('gs://bucket/a') == storage.path('gs://bucket/a')
  assert storage.absolute('a') == pathlib.Path.cwd() / 'a'
  assert storage.removal(storage.path('gs://bucket/a b')) == "gcloud storage rm 'gs://bucket/a b'"


def test_calls_that_fail_for_a_while_are_repeated(bucket, faults):
  for status in (503, 429):
    faults({'status': status, 'times': 2})
    storage.write_text(bucket / 'a', str(status))
    assert (bucket / 'a').read_text() == str(status)


def test_a_write_whose_answer_was_lost_is_recognized(bucket, faults):
  absent, _ = storage.look(bucket / 'lock')
  faults({'match': 'POST', 'lost': True, 'times': 1})
  first = storage.swap(bucket / 'lock', b'mine', absent)
  assert first is not None and storage.look(bucket / 'lock') == (first, b'mine')
  faults({'match': 'POST', 'lost': True, 'times': 1})
  second = storage.swap(bucket / 'lock', b'mine', first)
  assert second is not None and storage.look(bucket / 'lock') == (second, b'mine')


def test_missing_files_of_a_disk_take_one_listing(tmp_path, monkeypatch):
  (tmp_path / 'a').touch()
  paths = [str(tmp_path / name) for name in 'abc']
  elsewhere = [str(tmp_path / 'none' / name) for name in 'ab']
  listed = []
  listdir = os.listdir
  monkeypatch.setattr(os, 'listdir', lambda folder: listed.append(folder) or listdir(folder))
  monkeypatch.delattr(os.path, 'exists')
  assert storage.missing(paths + elsewhere) == paths[1:] + elsewhere
  assert listed == [str(tmp_path), str(tmp_path / 'none')]


def test_an_error_is_no_missing_file(bucket, faults):
  """fsspec's `exists` would be False: a run would begin again at step 0."""
  storage.write_text(bucket / 'a', '')
  faults({'status': 403})
  for ask in ('exists', 'is_file', 'is_dir', 'read_text'):
    with pytest.raises(PermissionError, match='no access to bucket .*roles/storage.objectUser'):
      getattr(bucket / 'a', ask)()
  with pytest.raises(PermissionError):
    storage.files_below(bucket)  # tensorstore's own listing is empty then
  faults({'match': 'GET .*/o[?]', 'status': 403})
  with pytest.raises(PermissionError, match='objects cannot be listed'):
    storage.check_writable(bucket)


def test_folders_that_the_console_makes_are_no_files(bucket):
  from audiolm_jax.storage import bucket as client

  storage.write_text(bucket / 'a' / 'b', '')
  kv, key = client._split(bucket)
  for name in (f'{key}/', f'{key}/a/'):
    kv.write(name, b'').result()
  assert storage.files_below(bucket) == ['a/b'] and storage.files_below(bucket / 'a') == ['b']


def test_what_cannot_be_used_is_named_in_seconds(bucket, faults):
  began = time.monotonic()
  forbidden, missing = (
    storage.path(f'gs://{name}/run') for name in (bucket_server.FORBIDDEN, bucket_server.MISSING)
  )
  with pytest.raises(PermissionError, match='roles/storage.objectUser'):
    storage.check_writable(forbidden)
  with pytest.raises(OSError, match=f'no bucket {missing.parent.name!r}.*gcloud storage buckets'):
    storage.check_writable(missing)
  with pytest.raises(errors.UserError, match='Invalid GCS bucket name: "B"'):
    storage.check_writable(storage.path('gs://B/run'))
  faults({'match': 'DELETE', 'status': 403})
  with pytest.raises(PermissionError):
    storage.check_writable(bucket)
  faults({'status': 503})
  with pytest.raises(OSError, match='check the network') as caught:
    storage.check_writable(bucket)
  assert caught.value.errno == errno.EIO  # command_line: starting again may help
  assert time.monotonic() - began < 20
  faults()
  storage.check_writable(bucket / 'fine')
  assert storage.files_below(bucket / 'fine') == []


def test_the_generation_of_a_missing_object_is_that_of_tensorstore(bucket):
  """`look` and `swap` rely on it: a read object and a missing one differ, for good."""
  absent, _ = storage.look(bucket / 'a')
  stamp = storage.swap(bucket / 'a', b'1', absent)
  storage.swap(bucket / 'a', None, stamp)
  assert storage.look(bucket / 'a') == (absent, None) and stamp != absent
  assert storage.look(bucket / 'b') == (absent, None)
  assert storage.swap(bucket / 'a', b'2', stamp) is None  # the old generation does not return


def test_reading_json_lines_is_that_of_files(tmp_path):
  (tmp_path / 'x').write_text('{"a": 1}\n[]\n')
  with open(tmp_path / 'x', 'rb') as file:
    assert files.parse_json_lines(file) == files.json_lines(tmp_path / 'x') == ([{'a': 1}], 1)

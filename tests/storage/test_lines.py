"""Lines that are added, on a disk and in a bucket, and what a killed process leaves of them."""

import json
import time

import pytest

from audiolm_jax import storage
from audiolm_jax.storage import growing, lines


@pytest.fixture(params=['disk', 'bucket'])
def path(request, tmp_path):
  folder = tmp_path if request.param == 'disk' else request.getfixturevalue('bucket')
  return folder / 'run' / 'metrics.jsonl'


def _steps(path):
  found, bad = lines.read(path)
  return [line['step'] for line in found], bad


def _write(opened, *steps):
  for step in steps:
    opened.write(json.dumps({'step': step}))


def test_lines_of_all_starts_are_read_in_order(path):
  with pytest.raises(FileNotFoundError):
    lines.read(path)
  for start in range(3):
    opened = lines.opened(path)
    _write(opened, start, start + 10)
    opened.close()
  assert _steps(path) == ([0, 10, 1, 11, 2, 12], 0)


def test_no_line_before_a_flush_is_lost(path):
  killed = lines.opened(path)  # and never closed
  _write(killed, 1, 2)
  killed.flush()
  follower = lines.opened(path)
  _write(follower, 3)
  follower.flush()
  _write(killed, 4)  # it was paused only
  killed.flush()
  assert sorted(_steps(path)[0]) == [1, 2, 3, 4]


def test_lines_are_put_in_place_of_earlier_ones_of_their_key(path):
  path.parent.mkdir(exist_ok=True, parents=True)
  for key, step in (('a', 1), ('a', 2), ('b', 3)):
    lines.put(path, key, json.dumps({'step': step}))
  assert _steps(path)[0][-2:] == [2, 3]
  if storage.in_bucket(path):
    assert storage.files_below(path) == ['a.jsonl', 'b.jsonl']


def test_a_growing_object_is_rewritten_in_the_background_and_then_the_next_begins(
  bucket, monkeypatch
):
  monkeypatch.setattr(growing, 'REWRITE_SECONDS', 0.0)
  monkeypatch.setattr(lines, '_MAX_OBJECT_BYTES', 40)
  opened = lines.opened(bucket / 'log')
  _write(opened, *range(6))
  deadline = time.monotonic() + 60
  while not storage.files_below(bucket / 'log') and time.monotonic() < deadline:
    time.sleep(0.01)  # the first line is written without a flush
  opened.flush()
  _write(opened, *range(6, 12))
  opened.flush()
  assert _steps(bucket / 'log') == (list(range(12)), 0)
  names = storage.files_below(bucket / 'log')
  assert len(names) > 1 and all(name.startswith('000001-') for name in names)


def test_lines_of_a_failed_write_are_written_later(bucket, faults):
  opened = lines.opened(bucket / 'log')
  faults({'match': 'POST', 'status': 403})
  _write(opened, 1)
  with pytest.warns(UserWarning, match='was not written, and is later: .*no access'):
    opened.flush()
  faults()
  _write(opened, 2)
  opened.close()
  assert _steps(bucket / 'log') == ([1, 2], 0)

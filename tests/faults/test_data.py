"""F8, F13 (worker processes) and F16 (one process): records and files that cannot be read, sources
that hang.
"""

import dataclasses
import json
import os
import pathlib
import time

import numpy as np
import pytest
import soundfile

from audiolm_jax import storage
from audiolm_jax.data import folders, pipeline, token_shards
from audiolm_jax.stages.base import Feature
from audiolm_jax.training import watchdog
from tests.faults import runs
from tests.training import toy, toy_run

FEATURES = {'waveform': Feature((1600,), np.float32, 16_000)}


def _folder(root: pathlib.Path, count: int = 24) -> pathlib.Path:
  random = np.random.default_rng(8)
  root.mkdir()
  for i in range(count):
    soundfile.write(root / f'{i:02d}.flac', 0.1 * random.normal(size=4000), 16_000)
  return root


def _spoil(root: pathlib.Path) -> list[str]:
  """A file cut short, one of another kind, one empty, and one that is gone behind a link."""
  (root / '03.flac').write_bytes((root / '03.flac').read_bytes()[:900])
  (root / '07.flac').write_text('this is no audio')
  (root / '11.flac').write_bytes(b'')
  (root / '15.flac').unlink()
  (root / '15.flac').symlink_to(root / 'gone.flac')
  return ['03.flac', '07.flac', '11.flac', '15.flac']


def _read(root, quarantine, position=None, count=9):
  source = folders.examples(root, 16_000, max_bad_fraction=0.2, quarantine=str(quarantine))
  batches = pipeline.batches(source, FEATURES, batch_size=8, seed=1, num_threads=1)
  if position is not None:
    batches.set_state(position)
  return [next(batches) for _ in range(count)], batches.get_state()


def test_f8_unreadable_files_are_skipped_and_listed(tmp_path, outcome):
  root = _folder(tmp_path / 'audio')
  bad = _spoil(root)
  whole, _ = _read(root, tmp_path / 'first.jsonl')
  listed = [json.loads(line) for line in (tmp_path / 'first.jsonl').read_text().splitlines()]
  assert sorted(os.path.basename(line['path']) for line in listed) == bad and all(
    line['reason'] for line in listed
  )
  part, position = _read(root, tmp_path / 'second.jsonl', count=4)
  rest, _ = _read(root, tmp_path / 'third.jsonl', position, count=5)
  for one, other in zip(whole, part + rest, strict=True):
    np.testing.assert_array_equal(one['waveform'], other['waveform'])
  names = [
    {
      os.path.basename(json.loads(line)['path'])
      for line in (tmp_path / f'{name}.jsonl').read_text().splitlines()
    }
    for name in ('second', 'third')
  ]
  assert set.union(*names) == set(bad)
  source = folders.examples(root, 16_000, max_bad_fraction=0.1)
  with pytest.raises(
    ValueError,
    match='3 of 24 audio files cannot be read, more than max_bad_fraction=0.1; the last: ',
  ):
    [source[i] for i in range(24)]
  outcome(
    'F8',
    '4 of 24 files cut, foreign, empty, gone: the same 4 skipped and listed with reasons by every run, '
    'resume at batch 4 bitwise; stops at the 3rd with max_bad_fraction=0.1',
  )


def test_f8_damaged_records_are_refused_or_counted_by_choice(place, outcome):
  rows = [
    {'waveform': np.random.default_rng(i).normal(size=2000).astype(np.float32)} for i in range(12)
  ]
  token_shards.write_shard(place, 'train', 0, 1, rows)
  token_shards.write_manifest(place, 'train', 1, {})
  path = storage.path(token_shards.shard_path(place, 'train', 0, 1))
  whole = path.read_bytes()
  # between the records the file is zeros
  content = [at for at in range(len(whole)) if any(whole[at : at + 4])]
  # up to where a flip hits a record, not the frame of one
  for at in content[len(content) // 2 :: 97]:
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    source = token_shards.TokenShards(place, 'train', max_bad_fraction=0.1)
    read = [source[i] for i in range(12)]
    if source.bad:
      break
  [bad] = source.bad
  assert [i for i in range(12) if read[i] is None] == [bad]
  strict = token_shards.TokenShards(place, 'train')
  with pytest.raises(ValueError, match=rf'record {bad} of .*train.*1 of 12 .*max_bad_fraction=0'):
    strict[bad]
  batches = [
    [next(iterator)['waveform'] for _ in range(4)]
    for iterator in (
      pipeline.batches(source, FEATURES, batch_size=4, seed=1, num_threads=1)
      for source in 2 * [source]
    )
  ]
  np.testing.assert_array_equal(*batches)
  outcome(
    'F8',
    'a flipped bit in an ArrayRecord: named error, or one counted skip where max_bad_fraction allows it',
  )


def test_f13_worker_processes_change_nothing(tmp_path, outcome):
  root = _folder(tmp_path / 'audio')
  source = folders.examples(root, 16_000)
  make = lambda workers: pipeline.batches(
    source, FEATURES, batch_size=8, seed=1, num_workers=workers
  )
  batches = {workers: make(workers) for workers in (0, 1, 2)}
  read = {workers: [next(iterator) for _ in range(3)] for workers, iterator in batches.items()}
  other = make(1)
  other.set_state(batches[2].get_state())  # saved with two workers, resumed with one
  batches[0].set_state(batches[2].get_state())
  for _ in range(3):
    np.testing.assert_array_equal(next(other)['waveform'], next(batches[0])['waveform'])
  for workers in (1, 2):
    for one, two in zip(read[0], read[workers], strict=True):
      np.testing.assert_array_equal(one['waveform'], two['waveform'])
  outcome('F13', '0, 1 and 2 worker processes, and resuming with another number: the same batches')


def test_f16_a_source_that_hangs_saves_and_ends(reference, place, monkeypatch, outcome):
  """A reader that is slow is named; one that hangs ends the run after a save of all that was
  trained.
  """
  monkeypatch.setattr(
    toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, slow_seconds=1.0, timeout_seconds=30.0)
  )

  class Stalling(toy.Batches):
    def __next__(self):
      index = self.get_state()['next_index']
      if index in (9, 20):
        time.sleep(3.0 if index == 9 else 10_000)
      return super().__next__()

  began = time.monotonic()
  with pytest.warns(
    UserWarning, match=r'process 0 of 1 on .*: data of step 9 has taken 1 s so far'
  ):
    with pytest.raises(watchdog.StalledError, match='data of step 20 has not ended after 30 s'):
      toy_run.train(place, Stalling)
  seconds = time.monotonic() - began
  assert runs.newest(place) == 20
  [line] = watchdog.read(place)
  assert line['seconds']['data'] >= 33.0 and 0 < line['goodput'] < 1
  monkeypatch.undo()
  result = toy_run.train(place)
  runs.assert_same_run(place, result, reference)
  last = watchdog.read(place)[-1]
  outcome(
    'F16',
    f'one process: slow reader named, hanging one ended with step 20 saved after {seconds:.0f} s, of '
    f'which {line["seconds"]["data"]:.1f} s counted as waiting for data; resumed bitwise; goodput then '
    f'{last["goodput"]:.2f}',
  )

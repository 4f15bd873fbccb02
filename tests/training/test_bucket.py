"""Training in a bucket: the same steps, bit for bit, and the same promises as on a disk."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from audiolm_jax import storage, testing
from audiolm_jax.storage import folders
from audiolm_jax.training import (
  checkpoints,
  configs,
  lock,
  metrics_writer,
  saving,
  sharding,
  watchdog,
)
from tests.training import toy, toy_run

PARTS = {'params': {'w': jnp.arange(4.0)}, 'state': {}}
METADATA = {'config': configs.describe(toy.Config()), 'fingerprints': {}}


class Cut(BaseException):
  """Ends a run where it stands: nothing that catches errors sees it."""


def _cut_at(index, before=lambda: None):
  class Batches(toy.Batches):
    def __next__(self):
      if self.get_state()['next_index'] == index:
        before()
        raise Cut
      return super().__next__()

  return Batches


def _entries(directory):
  """Returns the names of the listings and the folders of steps."""
  names = (name.removeprefix('data/') for name in storage.files_below(directory))
  return {name.partition('/')[0] for name in names}


@pytest.fixture
def short(monkeypatch):
  changed = dataclasses.replace(toy_run.TRAIN, num_steps=12, save_every=4, eval_every=8)
  monkeypatch.setattr(toy_run, 'TRAIN', changed)


def test_a_run_that_was_cut_and_had_failing_calls_is_bitwise_that_on_a_disk(
  short, bucket, faults, tmp_path, monkeypatch
):
  run, logged, write = bucket / 'run', {}, saving.Checkpointer._write_digest

  def write_digest(self):
    if self._saving not in logged and storage.in_bucket(self._directory):
      logged[self._saving] = max(metrics_writer.read(run))
      # Orbax calls this before its stamp: a step without seal is never whole.
      written = self._folders.written(self._saving)
      assert (written / 'params').is_dir() and not (written / folders.STAMP).exists()
      assert self._saving not in checkpoints.steps(self._directory)
    write(self)

  monkeypatch.setattr(saving.Checkpointer, '_write_digest', write_digest)
  expected = toy_run.train(tmp_path / 'run')
  faults({'status': 503, 'rate': 0.01}, {'match': 'POST', 'lost': True, 'rate': 0.01})
  with pytest.raises(Cut):
    toy_run.train(run, _cut_at(10))
  assert checkpoints.steps(run / 'checkpoints') == [4, 8]
  # what a killed process leaves: files of a save, and of one killed before Orbax's stamp
  there = folders.of(run / 'checkpoints', 'abc')
  for number in (9, 10):
    storage.write_text(there.draft(number) / 'params' / 'd', 'half')
  there.seal(10, {'files': {}})
  result = toy_run.train(run)
  testing.assert_trees_equal(jax.device_get(result.variables), jax.device_get(expected.variables))
  assert result.step == 12 and checkpoints.steps(run / 'checkpoints') == [8, 12]
  assert len(_entries(run / 'checkpoints')) == 5  # the mark of the folder, two steps
  metrics, on_disk = metrics_writer.read(run), metrics_writer.read(tmp_path / 'run')
  assert list(metrics) == list(on_disk) and len(on_disk) == 12
  for step, values in on_disk.items():
    for name in values.keys() - {'time', 'steps_per_second'}:
      assert metrics[step][name] == values[name], (step, name)
  assert set(logged) >= {4, 8, 12} and all(step <= seen for step, seen in logged.items())
  lines = watchdog.read(run)
  assert [line['step'] for line in lines] == [8, 12] and lines[1]['lost_steps'] == 1
  assert (run / 'lock').exists() is False


def test_a_run_whose_lock_was_taken_ends_at_its_next_save(short, bucket):
  def take():
    stamp, _ = storage.look(bucket / 'lock')
    storage.swap(bucket / 'lock', b'{"pid": 1, "host": "other", "token": "t"}', stamp)

  class Batches(toy.Batches):
    def __next__(self):
      if self.get_state()['next_index'] == 6:
        take()
      return super().__next__()

  with pytest.raises(lock.LostError, match='was taken over by another process'):
    toy_run.train(bucket, Batches)
  assert checkpoints.steps(bucket / 'checkpoints') == [4]
  assert json.loads((bucket / 'lock').read_text())['host'] == 'other'


def _save(checkpointer, *steps):
  for step in steps:
    parts = jax.tree.map(lambda x: x + step, PARTS)
    checkpointer.save(step, parts, {'next_index': step}, METADATA)
  checkpointer.close()


def test_old_steps_go_and_some_are_kept_for_good(bucket):
  _save(saving.Checkpointer(bucket, max_to_keep=1, keep_every=2), 1, 2, 3, 4, 5)
  assert checkpoints.steps(bucket) == [2, 4, 5]
  assert len(_entries(bucket)) == 7 and '1.json' not in _entries(bucket)


def test_a_damaged_step_is_rejected_and_another_mesh_reads_the_one_before(bucket):
  _save(saving.Checkpointer(bucket), 1, 2)
  largest = max(
    (name for name in storage.files_below(bucket) if 'data/2-' in name and '/d/' in name),
    key=lambda name: len((bucket / name).read_bytes()),
  )
  data = bytearray((bucket / largest).read_bytes())
  data[len(data) // 2] ^= 1
  (bucket / largest).write_bytes(bytes(data))
  name = largest.split('/', 2)[2]
  with pytest.raises(ValueError, match=f'checkpoint .*2: {name} differs from its digest'):
    checkpoints.load_variables(bucket, 2, config=toy.Config())
  mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=4), jax.devices()[:4])
  placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp'))
  targets = {'params': {'w': jax.ShapeDtypeStruct((4,), jnp.float32, sharding=placed)}, 'state': {}}
  with pytest.warns(UserWarning, match='using step 1'):
    brought = checkpoints.load_parts(bucket, targets)
  testing.assert_trees_equal(brought['params'], {'w': jnp.arange(4.0) + 1})
  checkpointer = saving.Checkpointer(bucket)
  with pytest.warns(UserWarning, match='kept as 2.rejected.json, continuing from step 1'):
    restored = checkpointer.restore(targets, METADATA['config'])
  assert restored.step == 1 and restored.data_position == {'next_index': 1}
  assert restored.parts['params']['w'].sharding == placed
  _save(checkpointer, 2)
  assert checkpoints.steps(bucket) == [1, 2] and (bucket / largest).exists()
  assert checkpoints.step_fault(bucket, 2) is None


def test_a_bucket_that_fails_for_long_is_a_failed_save(bucket, faults):
  checkpointer = saving.Checkpointer(bucket)
  faults({'match': r'POST .*name=.*metadata', 'status': 403})
  with pytest.raises(OSError, match=r'checkpoint 1 could not be written .*complete steps: \[\]'):
    _save(checkpointer, 1)
  faults()
  _save(saving.Checkpointer(bucket), 1)
  assert checkpoints.steps(bucket) == [1]


def test_a_folder_of_others_is_refused(bucket):
  storage.write_text(bucket / 'holiday.jpg', '')
  with pytest.raises(ValueError, match="holds .'holiday.jpg'. but no audiolm_jax.json: choose an"):
    saving.Checkpointer(bucket)

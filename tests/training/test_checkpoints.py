"""Checkpoints under corruption, wrong configs, other meshes and locks."""

import dataclasses
import errno
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from audiolm_jax import storage, testing
from audiolm_jax.training import checkpoints, configs, lock, optimizers, saving, sharding
from audiolm_jax.training import step as step_lib
from tests.training import toy

CONFIG = toy.Config()
OPTIMIZER = {
  name: optimizers.OptimizerConfig(name='adafactor', clip_norm=1.0) for name in ('hidden', 'output')
}


def _parts_on(mesh_config, devices=None):
  mesh = sharding.make_mesh(mesh_config, devices)
  init, shapes, shardings = step_lib.make_init(
    CONFIG.make(), OPTIMIZER, mesh, accumulate_steps=2, keep_ema=True
  )
  parts = init(jax.random.key(0))._asdict()
  targets = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )._asdict()
  del parts['step'], targets['step']
  return parts, targets


def _metadata():
  return {'config': configs.describe(CONFIG), 'fingerprints': {'codec': 'abc'}}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Steps 1 and 2, whose parameters differ by one, saved on eight devices."""
  directory = tmp_path_factory.mktemp('saved') / 'checkpoints'
  parts, targets = _parts_on(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
  checkpointer = saving.Checkpointer(directory)
  checkpointer.save(1, parts, {'next_index': 1}, _metadata())
  checkpointer.save(
    2, dict(parts, params=jax.tree.map(lambda x: x + 1, parts['params'])), None, _metadata()
  )
  checkpointer.close()
  return directory, parts, targets


@pytest.fixture
def directory(saved, tmp_path):
  return shutil.copytree(saved[0], tmp_path / 'checkpoints')


@pytest.fixture
def toy_is_a_stage(monkeypatch):
  """Puts the toy where stages live: nothing else may be imported on a checkpoint's word."""
  monkeypatch.setitem(sys.modules, 'audiolm_jax.stages.toy', toy)
  for kind in (toy.Config, toy.Inner):
    monkeypatch.setattr(kind, '__module__', 'audiolm_jax.stages.toy')


def _restore(directory, targets, config=CONFIG):
  checkpointer = saving.Checkpointer(directory)
  try:
    return checkpointer.restore(targets, configs.describe(config))
  finally:
    checkpointer.close()


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def test_restores_bitwise_on_another_mesh(saved, directory):
  _, parts, _ = saved
  shutil.rmtree(directory / '2')
  _, targets = _parts_on(sharding.MeshConfig(), jax.devices()[:1])
  restored = _restore(directory, targets)
  assert (restored.step, restored.data_position) == (1, {'next_index': 1})
  testing.assert_trees_equal(restored.parts, parts)
  assert all(
    x.sharding == t.sharding
    for x, t in zip(jax.tree.leaves(restored.parts), jax.tree.leaves(targets))
  )


def test_every_flipped_truncated_or_deleted_file_is_found(directory):
  step = directory / '2'
  assert checkpoints.fault(step) is None
  files = [
    path
    for path in step.rglob('*')
    if path.is_file() and str(path.relative_to(step)) not in checkpoints.UNDIGESTED
  ]
  assert len(files) > 20
  for path in files:
    original = path.read_bytes()
    # a flip in its layout may change nothing: what it says is still compared
    if path.name != checkpoints.DIGEST:
      _flip(path)
      assert path.name in checkpoints.fault(step)
    path.write_bytes(original[:-1])
    assert path.name in checkpoints.fault(step)
    path.unlink()
    assert path.name in checkpoints.fault(step)
    path.write_bytes(original)
  assert checkpoints.fault(step) is None


@pytest.mark.parametrize('damage', [_flip, pathlib.Path.unlink])
def test_damage_to_undigested_stamps_never_changes_weights(saved, directory, damage):
  _, parts, targets = saved
  for name in checkpoints.UNDIGESTED:
    damage(directory / '2' / name)
  restored = _restore(directory, targets)
  testing.assert_trees_equal(
    restored.parts['params'], jax.tree.map(lambda x: x + 1, parts['params'])
  )


def test_bad_newest_step_falls_back_with_a_warning_and_frees_its_number(saved, directory):
  _, parts, targets = saved
  _flip(max((directory / '2' / 'params').rglob('d/*'), key=lambda path: path.stat().st_size))
  with pytest.warns(UserWarning, match=r'checkpoint 2 .* continuing from step 1'):
    restored = _restore(directory, targets)
  assert restored.step == 1
  testing.assert_trees_equal(restored.parts, parts)
  assert (directory / '2.rejected').is_dir() and checkpoints.steps(directory) == [1]


def test_no_good_step_is_an_error(saved, directory):
  for step in ('1', '2'):
    _flip(directory / step / 'metadata' / 'metadata')
  with pytest.raises(ValueError, match='no good checkpoint .*2: metadata.* 1: metadata'):
    _restore(directory, saved[2])
  assert (directory / '2').is_dir() and (directory / '1').is_dir()


def test_killed_saves_are_cleared_only_in_our_directories(saved, directory, tmp_path):
  for name in ('7.orbax-checkpoint-tmp', '0.pruned', 'notes.orbax-checkpoint-tmp'):
    (directory / name).mkdir()
  assert _restore(directory, saved[2]).step == 2
  assert sorted(path.name for path in directory.iterdir()) == [
    '1',
    '2',
    'audiolm_jax.json',
    'notes.orbax-checkpoint-tmp',
  ]
  (tmp_path / 'foreign' / '7.orbax-checkpoint-tmp').mkdir(parents=True)
  with pytest.raises(ValueError, match='choose an empty directory'):
    saving.Checkpointer(tmp_path / 'foreign')
  assert (tmp_path / 'foreign' / '7.orbax-checkpoint-tmp').is_dir()


def test_other_config_lists_the_fields(saved, directory):
  with pytest.raises(ValueError, match='inner.noise: checkpoint 0.01, now 0.5') as caught:
    _restore(directory, saved[2], dataclasses.replace(CONFIG, inner=toy.Inner(noise=0.5), width=17))
  assert 'width: checkpoint 16, now 17' in str(caught.value)


def test_other_structure_lists_the_leaves(saved, directory):
  targets = dict(
    saved[2],
    state={'mean': jax.ShapeDtypeStruct((4,), jnp.float32), 'new': saved[2]['state']['count']},
  )
  with pytest.raises(ValueError) as caught:
    _restore(directory, targets)
  for line in (
    "state.mean: checkpoint ((16,), 'float32'), now ((4,), 'float32')",
    "state.new: checkpoint (absent), now ((), 'int32')",
    "state.count: checkpoint ((), 'int32'), now (absent)",
  ):
    assert line in str(caught.value)


def test_old_steps_go_only_after_a_newer_one_is_whole(tmp_path, monkeypatch):
  checkpointer = saving.Checkpointer(tmp_path / 'c', max_to_keep=1)
  parts = {'params': {'w': jnp.arange(4.0)}, 'state': {}}
  checkpointer.save(1, parts, None, _metadata())
  checkpointer.wait()

  def full(self):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(saving.Checkpointer, '_write_digest', full)
  broken = saving.Checkpointer(tmp_path / 'c', max_to_keep=1)
  broken.save(2, parts, None, _metadata())
  with pytest.raises(OSError, match=r'checkpoint 2 could not be written .*No space left.* \[1\]'):
    broken.wait()
  assert sorted(path.name for path in (tmp_path / 'c').iterdir()) == ['1', 'audiolm_jax.json']
  monkeypatch.undo()
  checkpointer.save(2, parts, None, _metadata())
  checkpointer.close()
  assert checkpoints.steps(tmp_path / 'c') == [2]


def test_some_steps_are_kept_for_good(tmp_path):
  checkpointer = saving.Checkpointer(tmp_path / 'c', max_to_keep=2, keep_every=4)
  for step in range(1, 11):
    checkpointer.save(step, {'params': {'w': jnp.arange(4.0)}, 'state': {}}, None, _metadata())
  checkpointer.close()
  assert checkpoints.steps(tmp_path / 'c') == [4, 8, 9, 10]
  with pytest.raises(ValueError, match='keep_every=0'):
    saving.Checkpointer(tmp_path / 'd', keep_every=0)


def test_load_variables_rebuilds_config_and_weights(toy_is_a_stage, tmp_path):
  parts, _ = _parts_on(sharding.MeshConfig(), jax.devices()[:1])
  parts['ema_params'] = jax.tree.map(lambda x: x * 2, parts['params'])
  checkpointer = saving.Checkpointer(tmp_path / 'run' / 'checkpoints')
  checkpointer.save(5, parts, None, _metadata())
  checkpointer.close()
  config, variables, metadata = checkpoints.load_variables(tmp_path / 'run')
  assert config == CONFIG and metadata['fingerprints'] == {'codec': 'abc'} and metadata['step'] == 5
  testing.assert_trees_equal(variables.params, parts['ema_params'])
  testing.assert_trees_equal(variables.state, parts['state'])
  _, raw, _ = checkpoints.load_variables(tmp_path / 'run', 5, use_ema=False)
  testing.assert_trees_equal(raw.params, parts['params'])
  folder = tmp_path / 'run' / 'checkpoints' / '5'
  for unread in ('params', 'opt_state'):
    _flip(folder / unread / 'manifest.ocdbt')
  testing.assert_trees_equal(
    checkpoints.load_variables(tmp_path / 'run').variables.params, parts['ema_params']
  )
  _flip(folder / 'ema_params' / 'manifest.ocdbt')
  for step in (5, None):
    with pytest.raises(ValueError, match='manifest.ocdbt'):
      checkpoints.load_variables(tmp_path / 'run', step)


@pytest.mark.parametrize(
  'path', ['os.path', 'tests.training.toy.Config', 'audiolm_jax.stages.base.Stage']
)
def test_checkpoints_cannot_name_foreign_classes(path):
  with pytest.raises(ValueError, match='only'):
    configs.rebuild({'class': path, 'fields': {}}, '0.1.0')


def test_unknown_field_names_field_and_versions(toy_is_a_stage):
  described = configs.describe(CONFIG)
  described['fields']['depth'] = 3
  with pytest.raises(
    ValueError, match=r"audiolm_jax 9.9 sets .*Config fields \['depth'\], which audiolm_jax 0"
  ):
    configs.rebuild(described, '9.9')


def test_one_trainer_per_directory(tmp_path):
  with lock.held(tmp_path):
    with pytest.raises(
      ValueError, match=f'in use by process {os.getpid()} on {socket.gethostname()}'
    ):
      with lock.held(tmp_path):
        pass
  with lock.held(tmp_path):  # given back
    pass


@pytest.mark.parametrize('reused', [False, True])
def test_lock_of_a_dead_process_is_taken_over(tmp_path, reused):
  dead = subprocess.run(['sh', '-c', 'echo $$'], capture_output=True, text=True, check=True)
  # our own id, but another start: the id was used again
  pid = os.getpid() if reused else int(dead.stdout)
  (tmp_path / 'lock').write_text(
    json.dumps({'pid': pid, 'host': socket.gethostname(), 'started': '1'})
  )
  with lock.held(tmp_path):
    assert json.loads((tmp_path / 'lock').read_text())['pid'] == os.getpid()


def test_lock_of_another_host_is_respected(tmp_path):
  (tmp_path / 'lock').write_text(json.dumps({'pid': 1, 'host': 'elsewhere', 'started': '1'}))
  with pytest.raises(ValueError, match='on elsewhere.*is gone, run .rm '):
    with lock.held(tmp_path):
      pass


def test_unwritable_workdir_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='cannot write to workdir .*file/run'):
    storage.check_writable(pathlib.Path(tmp_path / 'file' / 'run'))


HUBERT = 'audiolm_jax.pretrained.hubert.Config'


@pytest.mark.parametrize(
  'data, message',
  [
    ({}, 'names the config class'),
    ({'class': 7, 'fields': {}}, 'names the config class'),
    ({'class': ['x'] * 3, 'fields': {}}, 'names the config class'),
    ({'class': HUBERT}, 'of unknown form'),
    ({'class': HUBERT, 'fields': [1]}, 'of unknown form'),
    ({'class': HUBERT, 'fields': {'width': {'class': 3, 'fields': {}}}}, 'of unknown form'),
    ({'class': HUBERT, 'fields': {'width': {'dtype': 'float77'}}}, "dtype 'float77'"),
    ({'class': HUBERT, 'fields': {'width': {'dtype': ['f4']}}}, 'of dtype'),
    ({'class': HUBERT, 'fields': {'width': {'dtype': 'O'}}}, "dtype 'O'"),
    ({'class': HUBERT, 'fields': {'width': {'dtype': 'i4,i4'}}}, "dtype 'i4,i4'"),
    ({'class': HUBERT, 'fields': {'width': {'dtype': 'zeros'}}}, "dtype 'zeros'"),
    ({'class': HUBERT, 'fields': {'width': [0] * 5000}}, '5,000 items in a list'),
    ({'class': HUBERT, 'fields': {'no such': 1}}, 'which audiolm_jax'),
    ({'class': 'audiolm_jax.pretrained.no_such.Config', 'fields': {}}, 'does not have'),
    ({'class': 'audiolm_jax.pretrained..Config', 'fields': {}}, 'does not have'),
  ],
)
def test_hostile_configs_are_named_errors(data, message):
  with pytest.raises(ValueError, match=message):
    configs.rebuild(data, '0.1.0')


@pytest.mark.parametrize('wrap', [lambda x: [x], lambda x: {'a': x}])
def test_configs_nested_too_deep_are_a_named_error(wrap):
  data = 1
  for _ in range(500):
    data = wrap(data)
  with pytest.raises(ValueError, match='nested deeper than 32'):
    configs.rebuild({'class': HUBERT, 'fields': {'width': data}}, '0.1.0')


@pytest.mark.parametrize(
  'text',
  [
    '{',
    '[]',
    '7',
    '"x"',
    '{}',
    '{"pid": "1", "host": "a"}',
    '{"pid": -1, "host": "a"}',
    '{"pid": 1}',
    '[' * 4000,
    '{"pid": 1, "host": 3}',
    '{"pid": ' + '9' * 30 + ', "host": "a"}',
    'x' * 10_000,
    '{"pid": true, "host": "a"}',
  ],
)
def test_a_torn_or_hostile_lock_is_a_named_error_and_stays(tmp_path, text):
  (tmp_path / 'lock').write_text(text)
  with pytest.raises(ValueError, match="lock' is damaged: if no process uses .* run .rm "):
    with lock.held(tmp_path):
      pass
  assert (tmp_path / 'lock').read_text() == text
  (tmp_path / 'lock').unlink()  # the remedy
  with lock.held(tmp_path):
    pass


def test_a_lock_that_is_a_link_or_a_pipe_is_refused(tmp_path):
  victim = tmp_path / 'victim'
  victim.write_text('')
  (tmp_path / 'lock').symlink_to(victim)
  with pytest.raises(ValueError, match='lock is a link'):
    with lock.held(tmp_path):
      pass
  assert victim.read_text() == ''
  (tmp_path / 'lock').unlink()
  os.mkfifo(tmp_path / 'lock')
  with pytest.raises(ValueError, match='lock is no regular file'):
    with lock.held(tmp_path):
      pass


def test_the_host_of_a_lock_steers_no_terminal(tmp_path):
  (tmp_path / 'lock').write_text(json.dumps({'pid': 1, 'host': '\x1b[2Jx', 'started': '1'}))
  with pytest.raises(ValueError, match=r'on \\x1b\[2Jx: choose'):
    with lock.held(tmp_path):
      pass


def test_a_trial_follows_no_link_and_leaves_nothing(tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / f'.trial-{os.getpid()}').symlink_to(tmp_path / 'victim')
  storage.check_writable(tmp_path / 'run')
  assert not (tmp_path / 'victim').exists()
  assert os.listdir(tmp_path / 'run') == [f'.trial-{os.getpid()}']


@pytest.mark.parametrize(
  'text, reason',
  [
    ('{"files"', 'cannot be read: .* is not JSON'),
    ('[]', 'holds a list'),
    ('{}', 'does not list files'),
    ('{"files": []}', 'does not list files'),
    ('{"files": {"a": 3}}', 'does not list files'),
    ('{"files": {"../../victim": [0, ""]}}', 'lists ../../victim, which is outside'),
    ('{"files": {"/etc/passwd": [0, ""]}}', 'lists /etc/passwd, which is outside'),
    ('{"files": {"\\u001b[2J": [0, ""]}}', r'^\\x1b\[2J is missing'),
  ],
)
def test_a_hostile_digest_is_a_named_fault(tmp_path, text, reason):
  (tmp_path / checkpoints.DIGEST).write_text(text)
  assert re.search(reason, checkpoints.fault(tmp_path))


@pytest.mark.parametrize(
  'change, field',
  [
    ({'format': '1'}, 'format'),
    ({'version': None}, 'version'),
    ({'config': []}, 'config'),
    ({'structure': {'params': [1]}}, 'structure'),
    ({'structure': {'params': {'a': 3}}}, 'structure'),
    ({'fingerprints': []}, 'fingerprints'),
  ],
)
def test_hostile_metadata_are_a_named_error(tmp_path, change, field):
  good = {
    'format': 1,
    'version': '0.1.0',
    'config': {},
    'structure': {'params': {'a': [[1], 'float32']}},
  }
  (tmp_path / 'metadata').mkdir()
  path = tmp_path / 'metadata' / 'metadata'
  path.write_text(json.dumps(good))
  assert checkpoints.read_metadata(tmp_path) == good | {'fingerprints': {}}
  path.write_text(json.dumps(good | change))
  with pytest.raises(ValueError, match=f'metadata has no valid entry {field}'):
    checkpoints.read_metadata(tmp_path)

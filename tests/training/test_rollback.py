"""What the guard calls divergence, and runs that go back: bounded, past the bad batch, exact
through kills.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from audiolm_jax.training import checkpoints, errors, metrics_writer, rollback, sharding
from audiolm_jax.training import step as step_lib
from tests import contract
from tests.training import toy, toy_run

CONFIG = rollback.RollbackConfig(max_rollbacks=2, rate_factor=0.25, explosion=30.0, window=8)


def wild(*indices, value=1e3):
  """Returns make_batches whose targets are `value` at the given batches: finite, and nothing the
  model has seen.
  """

  class Wild(toy.Batches):
    def __next__(self):
      index, batch = self._index, super().__next__()
      return batch | {'target': np.full_like(batch['target'], value)} if index in indices else batch

  return Wild


@pytest.fixture(autouse=True)
def with_rollback(monkeypatch):
  monkeypatch.setattr(toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, rollback=CONFIG))


def _guard(losses=(), **changes):
  guard = rollback.Guard(dataclasses.replace(CONFIG, **changes))
  for loss in losses:
    assert guard.fault({'loss': loss, 'grad_norm/a': 0.0}, True) is None
  return guard


def test_an_explosion_is_a_multiple_of_the_median():
  # eight; the median, 1.05, ignores the two outliers
  losses = [9.0, 1.0, 1.1, 0.9, 1.0, 29.0, 1.0, 1.2]
  fault = lambda loss: _guard(losses).fault({'loss': loss, 'grad_norm/a': 1e9}, True)
  assert fault(31.4) is None
  assert fault(31.6) == 'loss 31.6 is above 30 times its median 1.05'
  # 30 times 1.05
  assert _guard([1.0, 1.2, 1.1, 0.9]).fault({'loss': 33.0, 'grad_norm/a': 0.0}, True)
  # too few to tell
  assert _guard([1.0, 1.2, 1.1]).fault({'loss': 33.0, 'grad_norm/a': 0.0}, True) is None
  assert (
    _guard(losses).fault({'loss': np.nan, 'grad_norm/a': 0.0}, False) == "{'loss': nan} not finite"
  )


def test_gradients_explode_at_their_own_threshold():
  guard = rollback.Guard(CONFIG)
  for _ in range(8):
    assert guard.fault({'loss': 1.0, 'grad_norm/a': 2.0}, True) is None
  assert 'grad_norm/a 2001 is above 1000 times its largest 2' in guard.fault(
    {'loss': 1.0, 'grad_norm/a': 2001.0}, True
  )
  assert guard.fault({'loss': 1.0, 'grad_norm/a': 1999.0}, True) is None


def test_gradients_that_grow_step_by_step_do_not_explode():
  """Critics do, when they begin: from 0.2 to 250 within fifty steps was measured, and called an
  explosion.
  """
  guard = rollback.Guard(CONFIG)
  for norm in (0.0, 0.0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.3, 5.0, 90.0, 400.0):
    assert guard.fault({'loss': 1.0, 'grad_norm/a': norm}, True) is None


def test_the_past_goes_back_with_a_checkpoint_but_not_the_count():
  guard = _guard([1.0] * 8)
  saved = json.loads(json.dumps(guard.get_state()))
  for _ in range(8):
    guard.fault({'loss': 20.0, 'grad_norm/a': 0.0}, True)
  guard.roll_back()
  guard.set_state(saved)
  assert guard.metrics() == {'rollbacks': 1, 'rate_scale': 0.25} and guard.rollbacks_left == 1
  assert guard.fault({'loss': 31.0, 'grad_norm/a': 0.0}, True)
  again = rollback.Guard(CONFIG)
  again.set_state(json.loads(json.dumps(guard.get_state())))
  assert again.get_state() == guard.get_state()


@pytest.mark.parametrize(
  'changes',
  [{'rate_factor': 1.0}, {'explosion': 1.0}, {'max_rollbacks': 0}, {'window': 3}, {'early': 0}],
)
def test_settings_that_cannot_help_are_refused(changes):
  with pytest.raises(ValueError, match=next(iter(changes))):
    rollback.RollbackConfig(**changes)


def test_the_scale_multiplies_the_update():
  stage, optimizer = toy.Config().make(), toy_run.TRAIN.optimizer
  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
  init, _, shardings = step_lib.make_init(stage, optimizer, mesh)
  train_step = step_lib.make_train_step(stage, optimizer, mesh, shardings)
  batch = sharding.global_batch(next(toy.Batches()), mesh)
  start = jax.tree.map(np.array, init(jax.random.key(0)).params)
  moved, rates = [], []
  for scale in (1.0, 0.25):
    state, metrics = train_step(init(jax.random.key(0)), batch, np.int32(0), np.float32(scale))
    moved.append(jax.tree.map(lambda new, old: np.array(new) - old, state.params, start))
    rates.append(float(metrics['learning_rate']))
  jax.tree.map(
    lambda whole, part: np.testing.assert_allclose(part, whole / 4, rtol=1e-3, atol=1e-7), *moved
  )
  assert rates[1] == rates[0] / 4


@pytest.mark.parametrize(
  'make_batches', [wild(20), lambda: toy.Batches(poison=20)], ids=['explosion', 'not finite']
)
def test_a_bad_batch_is_left_behind(make_batches, tmp_path):
  """From the save at 18, with batches 21, 22, ...: the same as a run that is told to do exactly
  that.
  """
  events = []
  result = toy_run.train(tmp_path, make_batches, report=events.append)
  assert result.step == 48
  [event] = [event for event in events if 'message' in event]
  assert event['step'] == 18 and event['metrics'] == {'rollbacks': 1, 'rate_scale': 0.25}
  assert event['message'].startswith('step 20: ')
  assert event['message'].endswith('rollback 1 of 2, learning rates x 0.25, back to step 18')
  metrics = metrics_writer.read(tmp_path)
  assert {metrics[step]['rate_scale'] for step in range(19, 49)} == {0.25}
  np.testing.assert_allclose(metrics[19]['learning_rate'], 0.25e-2)
  assert metrics[48]['eval/loss'] < metrics[16]['eval/loss'] and metrics[18]['rate_scale'] == 0.25

  stage, c = toy.Config().make(), toy_run.TRAIN
  mesh = sharding.make_mesh(sharding.MeshConfig())
  init, _, shardings = step_lib.make_init(stage, c.optimizer, mesh, keep_ema=True)
  train_step = step_lib.make_train_step(stage, c.optimizer, mesh, shardings, ema_decay=c.ema_decay)
  train_state, batches = init(jax.random.key(0)), toy.Batches()
  for step in range(48):
    batches.set_state({'next_index': step if step < 18 else step + 3})
    batch = sharding.global_batch(next(batches), mesh)
    scale = np.float32(1.0 if step < 18 else 0.25)
    train_state, _ = train_step(train_state, batch, np.int32(step), scale)
  contract.assert_trees_equal(
    jax.device_get(result.variables.params), jax.device_get(train_state.ema_params)
  )


def test_a_state_that_exploded_is_not_saved(tmp_path, monkeypatch):
  """The update of step 17 ruins the parameters, and the save at 18 comes before any step has seen
  it.
  """
  make_train_step, ruined = step_lib.make_train_step, []

  def make(*args, **options):
    train_step = make_train_step(*args, **options)

    def advance(state, batch, step, rate):
      state, metrics = train_step(state, batch, step, rate)
      if step == 17 and not ruined:
        ruined.append(step)
        state = state._replace(params=jax.tree.map(lambda p: 1e3 * p + 1e3, state.params))
      return state, metrics

    return advance

  monkeypatch.setattr(step_lib, 'make_train_step', make)
  events = []
  result = toy_run.train(tmp_path, toy.Batches, report=events.append)
  [event] = [event for event in events if 'message' in event]
  assert event['message'].startswith('step 18: before its save loss ') and event[
    'message'
  ].endswith('back to step 12')
  assert result.step == 48 and result.metrics['rollbacks'] == 1


def test_before_the_first_save_it_goes_back_to_the_start(tmp_path):
  result = toy_run.train(tmp_path, lambda: toy.Batches(poison=3))
  assert result.step == 48 and result.metrics['rollbacks'] == 1


def test_rollbacks_are_bounded(tmp_path):
  """Batches 20 and 30 are forgiven, 40 is not; the checkpoint before it stays, and the count with
  it.
  """
  with pytest.raises(
    errors.DivergedError,
    match=r'step \d+: loss .* times its median .*, after 2 rollbacks; .* keeps',
  ):
    toy_run.train(tmp_path, wild(20, 30, 40))
  before = checkpoints.steps(tmp_path / 'checkpoints')
  with pytest.raises(
    errors.NonFiniteError, match='after 2 rollbacks; the state before it is saved'
  ):
    toy_run.train(tmp_path, lambda: toy.Batches(poison=40))
  assert checkpoints.steps(tmp_path / 'checkpoints')[-1] > before[-1]


@pytest.mark.parametrize('killed_at', [19, 20, 21, 26])
def test_resume_is_exact_around_a_rollback(killed_at, tmp_path):
  """Cut off before, at and after the step that leads back, and after the next save: bitwise the
  whole run.
  """
  whole = toy_run.train(tmp_path / 'whole', wild(20, 33))

  class Cut(wild(20, 33)):
    calls = 0

    def __next__(self):
      Cut.calls += 1
      if Cut.calls > killed_at:
        raise KeyboardInterrupt
      return super().__next__()

  with pytest.raises(KeyboardInterrupt):
    toy_run.train(tmp_path / 'cut', Cut)
  resumed = toy_run.train(tmp_path / 'cut', wild(20, 33))
  assert resumed.metrics['rollbacks'] == whole.metrics['rollbacks'] == 2
  contract.assert_trees_equal(jax.device_get(resumed.variables), jax.device_get(whole.variables))
  expected, got = (metrics_writer.read(tmp_path / name) for name in ('whole', 'cut'))
  for step, values in expected.items():
    for name in set(values) - {'time', 'steps_per_second'}:
      assert got[step][name] == values[name], (step, name)

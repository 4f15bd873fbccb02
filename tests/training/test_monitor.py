"""What the monitor calls divergence and what follows; runs that roll back: bounded, past the bad batch,
exact through kills. Metrics compared with expectations.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from audiolm_jax import testing
from audiolm_jax.training import checkpoints, errors, metrics_writer, monitor, sharding
from audiolm_jax.training import step as step_lib
from tests.training import toy, toy_run

CONFIG = monitor.RollbackConfig(max_rollbacks=2, rate_factor=0.25, explosion=30.0, window=8)


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


GO_ON = monitor.Verdict(monitor.Action.GO_ON)


def _monitor(losses=(), **changes):
  watched = monitor.Monitor(dataclasses.replace(CONFIG, **changes))
  for loss in losses:
    assert watched.step({'loss': loss, 'grad_norm/a': 0.0}, True) == GO_ON
  return watched


def _counts(watched):
  state = watched.get_state()
  return {name: state[name] for name in ('count', 'rate_scale', 'skipped', 'in_a_row')}


def test_an_explosion_is_a_multiple_of_the_median_and_rolls_back():
  # eight; the median, 1.05, ignores the two outliers
  losses = [9.0, 1.0, 1.1, 0.9, 1.0, 29.0, 1.0, 1.2]
  verdict = lambda loss: _monitor(losses).step({'loss': loss, 'grad_norm/a': 1e9}, True)
  assert verdict(31.4) == GO_ON
  assert verdict(31.6) == (
    monitor.Action.ROLL_BACK,
    'loss 31.6 is above 30 times its median 1.05: rollback 1 of 2, learning rates x 0.25',
  )
  metrics = {'loss': 33.0, 'grad_norm/a': 0.0}
  # 30 times 1.05
  assert _monitor([1.0, 1.2, 1.1, 0.9]).step(metrics, True).action is monitor.Action.ROLL_BACK
  # too few to tell
  assert _monitor([1.0, 1.2, 1.1]).step(metrics, True) == GO_ON
  assert _monitor(losses).step({'loss': np.nan, 'grad_norm/a': 0.0}, False) == (
    monitor.Action.ROLL_BACK,
    "{'loss': nan} not finite: rollback 1 of 2, learning rates x 0.25",
  )


def test_after_the_last_rollback_the_run_stops():
  watched = _monitor([1.0] * 4)
  actions = [watched.step({'loss': 31.0, 'grad_norm/a': 0.0}, True) for _ in range(3)]
  assert [verdict.action for verdict in actions] == [
    monitor.Action.ROLL_BACK,
    monitor.Action.ROLL_BACK,
    monitor.Action.STOP,
  ]
  assert actions[2].reason == 'loss 31 is above 30 times its median 1, after 2 rollbacks'
  # what is wrong is not remembered: the median stays
  assert watched.get_state()['past']['loss'] == [1.0] * 4
  assert watched.metrics() == {'rollbacks': 2.0, 'rate_scale': 0.0625}


def test_without_rollback_an_explosion_is_reported_and_belongs_to_the_past():
  watched = monitor.Monitor(None)
  for _ in range(4):
    assert watched.step({'loss': 1.0}, True) == GO_ON
  assert watched.step({'loss': 11.0}, True) == (
    monitor.Action.GO_ON,
    'loss 11 is above 10 times its median 1',
  )
  assert watched.get_state()['past']['loss'] == [1.0] * 4 + [11.0]
  assert watched.step({'loss': np.inf}, False) == (monitor.Action.STOP, "{'loss': inf} not finite")
  assert watched.metrics() == {} and not watched.tries_states


def test_skips_are_counted_in_a_row_and_in_all():
  watched = monitor.Monitor(None, max_skipped=2)
  bad = lambda: watched.step({'loss': np.nan, 'grad_norm/a': 1.0}, False)
  skipped = "{'loss': nan} not finite: batch skipped, "
  assert bad() == (monitor.Action.SKIP, skipped + '1 of at most 2 in a row, 1 in all')
  assert bad() == (monitor.Action.SKIP, skipped + '2 of at most 2 in a row, 2 in all')
  assert bad() == (monitor.Action.STOP, "{'loss': nan} not finite")
  assert watched.step({'loss': 1.0, 'grad_norm/a': 1.0}, True) == GO_ON
  assert bad() == (monitor.Action.SKIP, skipped + '1 of at most 2 in a row, 3 in all')
  assert watched.metrics() == {'skipped_batches': 3.0}
  assert _counts(watched) == {'count': 0, 'rate_scale': 1.0, 'skipped': 3, 'in_a_row': 1}
  # skipping comes before rolling back
  both = monitor.Monitor(CONFIG, max_skipped=1)
  metrics = {'loss': np.nan}
  assert both.step(metrics, False).action is monitor.Action.SKIP
  assert both.step(metrics, False).action is monitor.Action.ROLL_BACK
  with pytest.raises(ValueError, match='max_skipped_batches=-1'):
    monitor.Monitor(None, max_skipped=-1)


def test_a_state_is_checked_by_its_loss_and_not_remembered():
  watched = _monitor([1.0] * 4)
  assert watched.tries_states and watched.state(29.0) == GO_ON
  assert watched.get_state()['past']['loss'] == [1.0] * 4
  for loss, fault in (
    (31.0, 'loss 31 is above 30 times its median 1'),
    (np.nan, 'loss nan not finite'),
  ):
    verdict = _monitor([1.0] * 4).state(loss)
    assert verdict.action is monitor.Action.ROLL_BACK
    assert verdict.reason.startswith(f'before its save {fault}: rollback 1 of 2')


def test_gradients_explode_at_their_own_threshold():
  watched = monitor.Monitor(CONFIG)
  for _ in range(8):
    assert watched.step({'loss': 1.0, 'grad_norm/a': 2.0}, True) == GO_ON
  assert watched.step({'loss': 1.0, 'grad_norm/a': 1999.0}, True) == GO_ON
  watched = monitor.Monitor(CONFIG)
  for _ in range(8):
    watched.step({'loss': 1.0, 'grad_norm/a': 2.0}, True)
  verdict = watched.step({'loss': 1.0, 'grad_norm/a': 2001.0}, True)
  assert verdict.reason.startswith('grad_norm/a 2001 is above 1000 times its largest 2: ')


def test_gradients_that_grow_step_by_step_do_not_explode():
  """Discriminators do, when they begin: from 0.2 to 250 within fifty steps was measured, and called an
  explosion.
  """
  watched = monitor.Monitor(CONFIG)
  for norm in (0.0, 0.0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.3, 5.0, 90.0, 400.0):
    assert watched.step({'loss': 1.0, 'grad_norm/a': norm}, True) == GO_ON


def test_the_past_goes_back_with_a_checkpoint_but_not_the_count():
  watched = _monitor([1.0] * 8)
  saved = json.loads(json.dumps(watched.get_state()))
  for _ in range(8):
    watched.step({'loss': 20.0, 'grad_norm/a': 0.0}, True)
  rolled_back = watched.step({'loss': np.nan, 'grad_norm/a': 0.0}, False)
  assert rolled_back.action is monitor.Action.ROLL_BACK
  watched.set_state(saved)
  assert watched.metrics() == {'rollbacks': 1, 'rate_scale': 0.25}
  assert watched.get_state() == saved | {'count': 1, 'rate_scale': 0.25}
  again = monitor.Monitor(CONFIG)
  again.set_state(json.loads(json.dumps(watched.get_state())))
  assert again.get_state() == watched.get_state()
  # 31 times the median of the checkpoint, no more than 2 times that of the steps since
  assert watched.step({'loss': 31.0, 'grad_norm/a': 0.0}, True).action is monitor.Action.ROLL_BACK


@pytest.mark.parametrize(
  'changes',
  [{'rate_factor': 1.0}, {'explosion': 1.0}, {'max_rollbacks': 0}, {'window': 3}, {'early': 0}],
)
def test_settings_that_cannot_help_are_refused(changes):
  with pytest.raises(ValueError, match=next(iter(changes))):
    monitor.RollbackConfig(**changes)


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
  testing.assert_trees_equal(
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


def test_a_skipped_batch_is_not_what_a_state_is_tried_on(tmp_path, monkeypatch):
  """With a save at every step the state before a skipped batch is saved again: no rollback."""
  train = dataclasses.replace(
    toy_run.TRAIN, num_steps=8, save_every=1, eval_every=None, max_skipped_batches=1
  )
  monkeypatch.setattr(toy_run, 'TRAIN', train)
  events = []
  result = toy_run.train(tmp_path, lambda: toy.Batches(poison=5), report=events.append)
  assert result.step == 8
  assert (result.metrics['rollbacks'], result.metrics['skipped_batches']) == (0, 1)
  [event] = [event for event in events if 'message' in event]
  assert event['step'] == 5 and 'batch skipped, 1 of at most 1' in event['message']


def test_rollbacks_are_bounded(tmp_path):
  """Batches 20 and 30 are forgiven, 40 is not; the checkpoint before it stays, and the count with
  it.
  """
  with pytest.raises(
    errors.DivergedError,
    match=r'step \d+: loss .* times its median .*, after 2 rollbacks; earlier checkpoints remain',
  ):
    toy_run.train(tmp_path, wild(20, 30, 40))
  before = checkpoints.steps(tmp_path / 'checkpoints')
  with pytest.raises(
    errors.NonFiniteError, match='after 2 rollbacks; the state before it is saved'
  ):
    toy_run.train(tmp_path, lambda: toy.Batches(poison=40))
  assert checkpoints.steps(tmp_path / 'checkpoints')[-1] > before[-1]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run that rolls back twice and is never cut off: (its result, its metrics by step)."""
  directory = tmp_path_factory.mktemp('whole')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, rollback=CONFIG))
    result = toy_run.train(directory, wild(20, 33))
  return result, metrics_writer.read(directory)


@pytest.mark.parametrize('killed_at', [19, 20, 21, 26])
def test_resume_is_exact_around_a_rollback(killed_at, whole, tmp_path):
  """Cut off before, at and after the step that leads back, and after the next save: bitwise the
  whole run.
  """

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
  result, expected = whole
  assert resumed.metrics['rollbacks'] == result.metrics['rollbacks'] == 2
  testing.assert_trees_equal(jax.device_get(resumed.variables), jax.device_get(result.variables))
  got = metrics_writer.read(tmp_path / 'cut')
  for step, values in expected.items():
    for name in set(values) - {'time', 'steps_per_second'}:
      assert got[step][name] == values[name], (step, name)


LOSS = monitor.ExpectedMetric(metric='loss', step=25, low=0.5, high=1.0)
HELD_OUT = monitor.ExpectedMetric(metric='eval/loss', step=40, low=0.0, high=1.0)


def test_a_band_belongs_to_the_first_value_from_its_step_on():
  compare = lambda step, value, every=10: monitor.compare_with_expected(
    [LOSS], step, {'loss': value}, log_every=every, eval_every=None
  )
  for step in (10, 20, 40):
    assert compare(step, 9.0) == ({}, [])
  assert compare(30, 0.75) == ({'unexpected/loss': 0.0}, [])
  for value in (0.4, 1.1, float('nan')):
    outside, [line] = compare(30, value)
    assert outside == {'unexpected/loss': 1.0} and 'expects 0.5 to 1 from step 25 on' in line
  assert compare(25, 9.0, every=5)[0] and not compare(30, 9.0, every=5)[0]


def test_held_out_metrics_have_their_own_rhythm():
  compare = lambda step, every: monitor.compare_with_expected(
    [HELD_OUT], step, {'eval/loss': 2.0}, log_every=1, eval_every=every
  )[0]
  assert compare(48, 16) and not compare(32, 16) and not compare(64, 16)
  assert compare(1000, None)  # evaluated at the end alone


def test_an_empty_band_is_refused():
  with pytest.raises(ValueError, match='low=2.0 must be below high=1.0'):
    monitor.ExpectedMetric(metric='loss', step=0, low=2.0, high=1.0)


def test_a_run_outside_says_so_and_goes_on(tmp_path, monkeypatch):
  low, high = (
    monitor.ExpectedMetric(metric=name, step=16, low=1e3, high=1e4)
    for name in ('loss', 'eval/loss')
  )
  train = dataclasses.replace(
    toy_run.TRAIN,
    rollback=None,
    num_steps=20,
    expected_metrics=(low, high, dataclasses.replace(LOSS, step=999)),
  )
  monkeypatch.setattr(toy_run, 'TRAIN', train)
  events = []
  assert toy_run.train(tmp_path, report=events.append).step == 20
  said = [event for event in events if 'message' in event]
  assert [event['step'] for event in said] == [16, 16]
  assert all(
    'step 16: ' in event['message'] and 'expects 1000 to 10000' in event['message']
    for event in said
  )
  logged = {
    name
    for values in metrics_writer.read(tmp_path).values()
    for name in values
    if 'unexpected' in name
  }
  assert logged == {'unexpected/loss', 'unexpected/eval/loss'}

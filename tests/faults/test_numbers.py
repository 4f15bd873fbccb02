"""F10, F11, F12, F20: numbers that are not finite or explode, other meshes, too little memory."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import testing
from audiolm_jax.training import checkpoints, errors, loop, metrics_writer, monitor, sharding
from audiolm_jax.training import step as step_lib
from tests.faults import runs
from tests.training import toy, toy_run


def poisoned(*indices, values=(np.nan,)):
  """Returns make_batches with one of `values` in each of the batches of these indices, in turn."""
  value_of = dict(zip(indices, itertools.cycle(values)))

  class Poisoned(toy.Batches):
    def __next__(self):
      index, batch = self._index, super().__next__()
      if index in value_of:
        batch['waveform'][0, 0] = value_of[index]
      return batch

  return Poisoned


def test_f10_a_bad_batch_is_left_out(place, monkeypatch, outcome):
  """As a run over the same batches without the bad ones; too many in a row stop it with the state
  before them.
  """
  monkeypatch.setattr(toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, max_skipped_batches=2))

  class Without(toy.Batches):
    """Batches 5, 18 and 19 are passed over: 18 is that of a save and 17 the last before one."""

    def __next__(self):
      while self._index in (5, 18, 19):
        self._index += 1
      return super().__next__()

  values = np.nan, np.inf
  bad = poisoned(5, 18, 19, values=values)
  events = []
  result = toy_run.train(place / 'skipping', bad, report=events.append)
  without = toy_run.train(place / 'without', Without)
  assert result.step == 48
  testing.assert_trees_equal(jax.device_get(result.variables), jax.device_get(without.variables))
  messages = [event['message'] for event in events if 'message' in event]
  assert len(messages) == 3 and "step 5, batch at {'next_index': 5}: " in messages[0]
  assert 'batch skipped, 2 of at most 2 in a row, 3 in all' in messages[2]
  metrics = metrics_writer.read(place / 'skipping')
  assert (
    metrics[48]['skipped_batches'] == 3
    and metrics[48]['loss'] == metrics_writer.read(place / 'without')[48]['loss']
  )
  with pytest.raises(errors.NonFiniteError, match='step 18: .*saved as step 18'):
    toy_run.train(place / 'stopped', poisoned(18, 19, 20, values=values))
  # Cut and resumed in the middle of a row of bad ones.
  with pytest.raises(runs.Cut):
    toy_run.train(place / 'cut', runs.cut_at(19, bad))
  resumed = toy_run.train(place / 'cut', bad)
  testing.assert_trees_equal(jax.device_get(resumed.variables), jax.device_get(without.variables))
  outcome(
    'F10',
    'NaN or infinity in 3 batches: left out, told with step and data position, state bitwise that of a run '
    'without them (also when cut there); a third in a row stops it, state before saved',
  )


def test_f10_the_state_is_untouched(outcome):
  """The step itself: on a bad batch every bit of the state stays."""
  stage, c = toy.Config().make(), toy_run.TRAIN
  mesh = sharding.make_mesh(sharding.MeshConfig())
  init, _, shardings = step_lib.make_init(stage, c.optimizer, mesh, keep_ema=True)
  train_step = step_lib.make_train_step(stage, c.optimizer, mesh, shardings, ema_decay=c.ema_decay)
  state = init(jax.random.key(0))
  before = jax.device_get(state)
  batch = sharding.global_batch(next(poisoned(0)()), mesh)
  state, metrics = train_step(state, batch, np.int32(0))
  assert not metrics['applied']
  testing.assert_trees_equal(jax.device_get(state), before)
  outcome('F10', 'step on a NaN batch: every array of the state bit-identical')


def test_f11_a_spike_is_told_of_or_left_behind(place, monkeypatch, outcome):
  """A loss of a hundred times the others: without rollback it is told of and training goes on."""

  class Spiking(toy.Batches):
    def __next__(self):
      index, batch = self._index, super().__next__()
      return batch | {'target': np.full_like(batch['target'], 1e2)} if index == 20 else batch

  found = {}
  limits = functools.partial(monitor.RollbackConfig, window=8, explosion=30.0)
  # the toy does not take the 50 steps of the default
  monkeypatch.setattr(monitor, 'RollbackConfig', limits)
  for name, config in (('told', None), ('left behind', limits())):
    monkeypatch.setattr(toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, rollback=config))
    events = []
    result = toy_run.train(place / name, Spiking, report=events.append)
    assert result.step == 48
    [found[name]] = [event['message'] for event in events if 'message' in event]
  assert (
    "step 20, batch at {'next_index': 20}: " in found['told']
    and 'times its median' in found['told']
  )
  assert 'rollback 1 of 5' in found['left behind']
  outcome('F11', f'told: "{found["told"][:90]}..."; or left behind by rollback')


MESHES = {
  '8 devices (2, 2, 2)': (8, sharding.MeshConfig(data=2, fsdp=2, tensor=2)),
  '4 devices (1, 4, 1)': (4, sharding.MeshConfig(data=1, fsdp=4)),
  '2 devices (1, 1, 2)': (2, sharding.MeshConfig(data=1, tensor=2)),
  '1 device': (1, sharding.MeshConfig()),
}


def test_f12_other_meshes_and_device_counts(place, monkeypatch, outcome):
  """Saved by eight devices at step 24; restored by each mesh, bitwise, and trained to the end with
  the same losses.
  """
  make_mesh = sharding.make_mesh
  settings = toy_run.TRAIN

  def use(name):
    count, mesh = MESHES[name]
    monkeypatch.setattr(
      loop.sharding, 'make_mesh', lambda config: make_mesh(config, jax.devices()[:count])
    )
    monkeypatch.setattr(toy_run, 'TRAIN', dataclasses.replace(settings, mesh=mesh))

  first = next(iter(MESHES))
  use(first)
  with pytest.raises(runs.Cut):
    toy_run.train(place / 'saved', runs.cut_at(26))
  toy_run.train(runs.copy(place / 'saved', place / first))
  expected = metrics_writer.read(place / first)
  worst = {}
  for name in list(MESHES)[1:]:
    use(name)
    toy_run.train(runs.copy(place / 'saved', place / name))
    metrics = metrics_writer.read(place / name)
    pairs = [(metrics[step]['loss'], expected[step]['loss']) for step in range(25, 49)]
    worst[name] = max(abs(one - other) / other for one, other in pairs)
    assert worst[name] <= 1e-5, worst
    # What was restored, before any step of its own.
    c = toy_run.TRAIN
    init, shapes, shardings = step_lib.make_init(
      toy.Config().make(), c.optimizer, loop.sharding.make_mesh(c.mesh), keep_ema=True
    )
    targets = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    parts = checkpoints.load_parts(
      place / 'saved', {'params': targets.params, 'opt_state': targets.opt_state}
    )
    if name == list(MESHES)[1]:
      reference = jax.device_get(parts)
    testing.assert_trees_equal(jax.device_get(parts), reference)
  text = ', '.join(f'{name} {value:.1e}' for name, value in worst.items())
  outcome(
    'F12',
    f'saved on {first}; parameters bitwise when restored, losses of 24 further steps differ at most by: {text}',
  )


def test_f20_too_little_memory_is_explained(place, outcome):
  """A step that asks for more memory than there is, after a save."""

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Hungry(toy.Config):
    def make(self):
      stage = super().make()

      def loss(params, state, batch, key):
        value, aux = stage.loss(params, state, batch, key)
        size = 2**46  # numbers: more than any machine holds
        more = jnp.sort(
          jnp.sin(jax.lax.stop_gradient(value) * jnp.arange(size, dtype=jnp.float32))
        )[size // 2]
        return value + 0.0 * more, aux

      return stage._replace(loss=loss)

  config = Hungry()
  settings = dataclasses.replace(
    toy_run.TRAIN, mesh=sharding.MeshConfig(), ema_decay=None, eval_every=None
  )
  loop.train(
    toy.Config().make(),
    config,
    dataclasses.replace(settings, num_steps=8),
    make_batches=toy.Batches,
    workdir=place,
  )
  with pytest.raises(
    errors.OutOfMemoryError, match=r'Each device holds .*params .* MiB.*of batch_size=8 examples'
  ) as caught:
    loop.train(config.make(), config, settings, make_batches=toy.Batches, workdir=place)
  assert checkpoints.step_fault(place / 'checkpoints', 8) is None
  outcome('F20', f'"{str(caught.value)[:150]}..."; step 8 intact')

"""Fine-tuning: a run begins with what another learnt, or says what does not fit."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.core import meta

from audiolm_jax import testing
from audiolm_jax.stages import base
from audiolm_jax.training import checkpoints, loop
from tests.training import toy, toy_run

SHORT = dataclasses.replace(toy_run.TRAIN, num_steps=6, eval_every=None)


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
  directory = tmp_path_factory.mktemp('pretrained')
  _train(directory)
  return directory


def _train(workdir, config=toy.Config(), train_config=SHORT, **options):
  return loop.train(
    config.make(), config, train_config, make_batches=toy.Batches, workdir=workdir, **options
  )


def _restored(workdir):
  """Returns the variables of a checkpoint, the average left aside."""
  shapes = meta.unbox(jax.eval_shape(toy.Config().make().init, jax.random.key(0)))
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)
  targets = jax.tree.map(place, {'params': shapes.params, 'state': shapes.state})
  return base.Variables(**checkpoints.load_parts(workdir, targets))


def test_params_and_state_come_over_and_the_count_starts_again(pretrained, tmp_path):
  """With a rate of 0 the run ends with the params it began with; its own average begins at them."""
  still = dataclasses.replace(
    SHORT, optimizer=dataclasses.replace(SHORT.optimizer, learning_rate=0.0)
  )
  result = _train(tmp_path, train_config=still, init_from=pretrained)
  assert result.step == 6
  theirs, ours = _restored(pretrained), _restored(tmp_path)
  testing.assert_trees_equal(jax.device_get(ours.params), jax.device_get(theirs.params))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), result.variables.params, theirs.params
  )
  assert ours.state['count'] == theirs.state['count'] + 6


def test_the_optimizer_comes_over_when_asked(pretrained, tmp_path):
  """Both runs see batch 0 first: moments of the past make another first step."""
  one_step = dataclasses.replace(SHORT, num_steps=1)
  results = [
    _train(tmp_path / str(flag), train_config=one_step, init_from=pretrained, **options)
    for flag, options in enumerate(({}, {'init_optimizer': True}))
  ]
  fresh, carried = (result.metrics for result in results)
  assert (
    fresh['loss'] == carried['loss'] and fresh['grad_norm/hidden'] == carried['grad_norm/hidden']
  )
  # The first step of Adam has the length of the rate in each of 16 * 8 + 8 + 8 + 1 coordinates; a
  # later one is shorter.
  np.testing.assert_allclose(fresh['update_norm'], 1e-2 * np.sqrt(145), rtol=1e-3)
  assert carried['update_norm'] < 0.9 * fresh['update_norm']


def test_a_checkpoint_of_its_own_comes_first(pretrained, tmp_path):
  own = _train(tmp_path)
  again = _train(tmp_path, init_from=pretrained)
  testing.assert_trees_equal(jax.device_get(again.variables), jax.device_get(own.variables))


def test_what_does_not_fit_is_listed(pretrained, tmp_path):
  with pytest.raises(ValueError) as error:
    _train(tmp_path / 'shape', config=toy.Config(widths=(4, 1)), init_from=pretrained)
  assert "params.hidden.kernel: checkpoint ((16, 8), 'float32'), now ((16, 4), 'float32')" in str(
    error.value
  )
  assert 'params.output.kernel' in str(error.value) and 'state.mean' not in str(error.value)
  with pytest.raises(ValueError, match='opt_state.* checkpoint .*absent'):
    adafactor = dataclasses.replace(
      SHORT, optimizer=dataclasses.replace(SHORT.optimizer, name='adafactor')
    )
    _train(
      tmp_path / 'optimizer', train_config=adafactor, init_from=pretrained, init_optimizer=True
    )
  with pytest.raises(ValueError, match='no good checkpoint in .*nowhere'):
    _train(tmp_path / 'missing', init_from=tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='init_optimizer needs init_from'):
    _train(tmp_path / 'alone', init_optimizer=True)

"""The shared contract checks hold for a good toy stage and catch bad ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import testing
from audiolm_jax.stages import base
from tests.training import toy


@pytest.fixture(scope='module')
def batch():
  return next(toy.Batches())


def _changed(change):
  """Returns a config whose stage's loss is changed by `change(loss, params, state, batch, key)`."""

  class Bad(toy.Config):
    def make(self):
      stage = super().make()
      return stage._replace(loss=lambda *args: change(stage.loss, *args))

  return Bad()


def test_good_stage_passes(batch, tmp_path):
  testing.check_stage(toy.Config(), batch, tmp_path)


def test_bfloat16_and_float32_batches_are_told_apart(batch):
  wrong = dict(batch, waveform=batch['waveform'].astype(np.float64))
  with pytest.raises(AssertionError, match='waveform'):
    testing.prepare(toy.Config(), wrong)


def test_parameter_without_gradient_is_named_and_can_be_excused(batch):
  def cut(loss, params, *rest):
    bias = jax.lax.stop_gradient(params['hidden']['bias'])
    return loss(dict(params, hidden=dict(params['hidden'], bias=bias)), *rest)

  case = testing.prepare(_changed(cut), batch)
  with pytest.raises(AssertionError, match='hidden.bias'):
    testing.check_gradients(case, {})
  testing.check_gradients(case, {r'^hidden\.bias$': 'cut by this test'})


def test_state_that_changes_in_evaluation_is_caught(batch):
  def update(loss, params, state, batch, key):
    value, aux = loss(params, state, batch, key)
    return value, base.Aux(dict(aux.state, count=aux.state['count'] + 1), aux.metrics)

  with pytest.raises(AssertionError, match='count'):
    testing.check_evaluation(testing.prepare(_changed(update), batch))


def test_loss_that_depends_on_the_number_of_devices_is_caught(batch):
  def biased(loss, params, state, batch, key):
    value, aux = loss(params, state, batch, key)
    return value * jnp.float32(1 + 1e-3 * (next(devices) > 0)), aux

  devices = iter([0, 1])  # one trace for each placement
  with pytest.raises(AssertionError):
    testing.check_devices(testing.prepare(_changed(biased), batch))


def test_stage_that_does_not_learn_is_caught(batch, tmp_path):
  frozen = _changed(lambda loss, params, *rest: loss(jax.lax.stop_gradient(params), *rest))
  case = testing.prepare(frozen, batch)
  optimizer = testing.optimizers.OptimizerConfig()
  with pytest.raises(AssertionError, match='fell from'):
    testing.check_overfits_and_restores(case, tmp_path, optimizer, num_steps=3, factor=0.5)


def test_stage_that_is_made_otherwise_when_it_is_loaded_is_caught(batch, tmp_path):
  stages = iter([toy.Config().make(), toy.Config(widths=(4, 1)).make()])

  class Forgetful(toy.Config):
    def make(self):
      return next(stages)

  case = testing.prepare(Forgetful(), batch)
  optimizer = testing.optimizers.OptimizerConfig()
  with pytest.raises(ValueError, match=r'params.hidden.kernel: checkpoint \(\(16, 8\)'):
    testing.check_overfits_and_restores(case, tmp_path, optimizer, num_steps=1, factor=1.0)

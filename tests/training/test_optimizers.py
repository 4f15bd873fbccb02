"""Optimizers against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from audiolm_jax.training import optimizers

Config = optimizers.OptimizerConfig


def _step(transformation, params, grads):
  updates, _ = transformation.update(grads, transformation.init(params), params)
  return optax.apply_updates(params, updates)


def test_schedules_match_their_formulas():
  peak, warmup, total = 0.5, 4, 20
  for step in (0, 1, 3, 4, 7, 19, 20, 30):
    rise = peak * (step + 1) / warmup
    cosine = (
      peak * 0.5 * (1 + np.cos(np.pi * min(step - warmup, total - warmup) / (total - warmup)))
    )
    inverse = peak * np.sqrt(warmup / max(step, warmup))
    for schedule, value in (('constant', peak), ('cosine', cosine), ('inverse_sqrt', inverse)):
      config = Config(learning_rate=peak, schedule=schedule, warmup_steps=warmup, total_steps=total)
      expected = rise if step < warmup else value
      np.testing.assert_allclose(
        optimizers.learning_rate(config)(step), expected, rtol=1e-5, atol=1e-7
      )


def test_adam_first_step_is_the_sign_of_the_gradient():
  params, grads = {'a': jnp.array([1.0, 2.0])}, {'a': jnp.array([0.3, -5.0])}
  new = _step(optimizers.make(Config(learning_rate=0.1)), params, grads)
  np.testing.assert_allclose(new['a'], [0.9, 2.1], rtol=1e-5)


def test_adamw_decays_by_rate_times_weight():
  params, grads = {'a': jnp.array([10.0])}, {'a': jnp.array([0.0])}
  new = _step(
    optimizers.make(Config(name='adamw', learning_rate=0.1, weight_decay=0.2)), params, grads
  )
  np.testing.assert_allclose(new['a'], [10 * (1 - 0.1 * 0.2)], rtol=1e-6)


def test_adafactor_decay_means_what_it_means_for_adamw():
  params, grads = {'a': jnp.array([10.0])}, {'a': jnp.array([0.0])}
  new = _step(
    optimizers.make(Config(name='adafactor', learning_rate=0.1, weight_decay=0.2)), params, grads
  )
  np.testing.assert_allclose(new['a'], [10 * (1 - 0.1 * 0.2)], rtol=1e-6)


def test_groups_have_their_own_rates_and_clips():
  configs = {'a': Config(learning_rate=0.1), 'b': Config(learning_rate=0.01, clip_norm=1e-3)}
  params = {'a': {'w': jnp.ones(2)}, 'b': {'w': jnp.ones(2)}}
  new = _step(optimizers.make(configs), params, jax.tree.map(jnp.ones_like, params))
  np.testing.assert_allclose(new['a']['w'], 0.9, rtol=1e-5)
  # adam does not see the scale that clipping changes
  np.testing.assert_allclose(new['b']['w'], 0.99, rtol=1e-5)
  rates = optimizers.learning_rates(configs, 0)
  assert rates == {'learning_rate/a': 0.1, 'learning_rate/b': 0.01}


@pytest.mark.parametrize('groups, named', [(('a',), 'missing'), (('a', 'b', 'c'), 'unknown')])
def test_mapping_must_name_the_groups(groups, named):
  transformation = optimizers.make({group: Config() for group in groups})
  with pytest.raises(ValueError, match=rf"{named} \['[bc]'\]"):
    transformation.init({'a': jnp.ones(2), 'b': jnp.ones(2)})


def test_accumulated_micro_batches_make_the_step_of_their_mean():
  params = {'a': jnp.array([1.0, -2.0])}
  grads = [{'a': jnp.array([1.0, 4.0])}, {'a': jnp.array([3.0, -2.0])}]
  config = Config(learning_rate=0.1, clip_norm=0.5)
  transformation = optimizers.make(config, accumulate_steps=2)
  opt_state, new = transformation.init(params), params
  for grad in grads:
    updates, opt_state = transformation.update(grad, opt_state, new)
    new = optax.apply_updates(new, updates)
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
  np.testing.assert_allclose(new['a'], _step(optimizers.make(config), params, mean)['a'], rtol=1e-6)


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(name='sgd'), 'sgd'),
    (dict(schedule='linear'), 'linear'),
    (dict(schedule='cosine'), 'total_steps'),
    (dict(weight_decay=0.1), 'adamw'),
    (dict(learning_rate=-1e-3), 'learning_rate=-0.001: must be a finite number of at least 0'),
    (dict(learning_rate=float('nan')), 'learning_rate=nan'),
    (dict(warmup_steps=-1), 'warmup_steps=-1: must be a whole number of at least 0'),
    (dict(b2=1.0), 'b2=1.0: must be at least 0 and below 1'),
    (dict(clip_norm=0.0), 'clip_norm=0.0: must be a finite number above 0, or None'),
  ],
)
def test_bad_settings_are_named(settings, message):
  with pytest.raises(ValueError, match=message):
    Config(**settings)

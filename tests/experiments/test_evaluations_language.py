"""Nats with the own and with another prefix, against losses of batches put together by hand."""

import jax
import numpy as np
import pytest
from flax.linen import meta

from experiments.evaluations import language
from tests import toys


def batches_of(config, seed=0):
  rng = np.random.default_rng(seed)
  made = []
  for _ in range(2):
    batch = {}
    for name, feature in config.make().batch.items():
      batch[name] = rng.integers(0, feature.num_ids, (3, *feature.shape)).astype(np.int32)
    made.append(batch)
  return made


def params_of(config):
  params = meta.unbox(jax.jit(config.make().init)(jax.random.key(0)).params)
  return jax.tree.map(lambda p: 3 * p, params)  # far from uniform, so that the prefix matters


def mean_loss(config, params, batches):
  loss = jax.jit(config.make().loss)
  return np.mean([loss(params, {}, batch, None)[0] for batch in batches])


def with_other_prefix(name, config, batch):
  order = np.array([2, 0, 1])
  if name == 'coarse':
    return batch | {'semantic': batch['semantic'][order]}
  split = config.num_coarse
  codes = batch['codes']
  return {'codes': np.concatenate([codes[order, :, :split], codes[:, :, split:]], axis=2)}


@pytest.mark.parametrize('name', ['coarse', 'fine'])
def test_another_prefix_costs_what_a_batch_with_it_does(name):
  config = toys.CONFIGS[name]
  params, batches = params_of(config), batches_of(config)
  found = language.nats(config, params, batches)
  others = [with_other_prefix(name, config, batch) for batch in batches]
  assert found['nats'] == pytest.approx(mean_loss(config, params, batches), rel=1e-5)
  assert found['other_prefix'] == pytest.approx(mean_loss(config, params, others), rel=1e-5)
  assert abs(found['other_prefix'] - found['nats']) > 1e-3


def test_a_model_without_prefix_has_no_other():
  config = toys.CONFIGS['semantic']
  found = language.nats(config, params_of(config), batches_of(config))
  assert set(found) == {'nats'}

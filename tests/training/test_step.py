"""The train step: accumulation, the average of the parameters, and the guard, against sums done by
hand.
"""

import jax
import numpy as np
import pytest

from audiolm_jax import testing
from audiolm_jax.training import optimizers, sharding
from audiolm_jax.training import step as step_lib
from tests.training import toy

DECAY = 0.15  # between the averages' first decay, 1 / 10, and their second, 2 / 11


@pytest.fixture(scope='module')
def states():
  """[state before step 0, after it, ...] of six micro-batches, two an update; batch 4 is
  poisoned.
  """
  stage = toy.Config().make()
  optimizer = optimizers.OptimizerConfig(learning_rate=0.1)
  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
  init, _, shardings = step_lib.make_init(stage, optimizer, mesh, accumulate_steps=2, keep_ema=True)
  train_step = step_lib.make_train_step(
    stage, optimizer, mesh, shardings, accumulate_steps=2, ema_decay=DECAY
  )
  train_state, batches = init(jax.random.key(0)), toy.Batches(poison=4)
  seen = [(jax.tree.map(np.array, train_state), None)]
  for number in range(6):
    batch, number = next(batches), jax.device_put(np.int32(number))
    with jax.transfer_guard('disallow'):  # nothing goes to or from the device unasked
      train_state, metrics = train_step(train_state, sharding.global_batch(batch, mesh), number)
    seen.append((jax.tree.map(np.array, train_state), jax.device_get(metrics)))
  return seen


def test_parameters_move_at_every_second_step_and_their_average_with_them(states):
  kernels = [state.params['hidden']['kernel'] for state, _ in states]
  averages = [state.ema_params['hidden']['kernel'] for state, _ in states]
  average = kernels[0]
  for index in range(1, 5):
    moved = index % 2 == 0
    assert np.any(kernels[index] != kernels[index - 1]) == moved
    if moved:
      decay = 0.1 if index == 2 else DECAY
      average = decay * average + (1 - decay) * kernels[index]
    np.testing.assert_allclose(averages[index], average, rtol=1e-5, atol=1e-7)
  assert [int(state.state['count']) for state, _ in states[:5]] == [0, 1, 2, 3, 4]


def test_update_norm_is_that_of_the_difference(states):
  (before, _), (after, metrics) = states[3:5]
  difference = jax.tree.map(lambda a, b: np.sum((a - b) ** 2), after.params, before.params)
  np.testing.assert_allclose(
    metrics['update_norm'], np.sqrt(sum(jax.tree.leaves(difference))), rtol=1e-4
  )


def test_non_finite_step_and_all_after_it_change_nothing(states):
  for state, metrics in states[5:]:
    assert not metrics['applied']
    testing.assert_trees_equal(state, states[4][0])
  assert np.isnan(states[5][1]['loss']) and np.isfinite(states[6][1]['loss'])

"""What every stage must pass: give `check_stage` a tiny config and a batch.

    def test_contract(tmp_path):
      contract.check_stage(coarse.Config(num_layers=1, width=16), batch, tmp_path)

The batch holds numpy arrays [batch size, ...] for the names in `stage.batch`; its size is a
multiple of 4, the ways in which the eight fake devices cut it. The single checks can be called on
what `prepare` returns.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from audiolm_jax.stages import base
from audiolm_jax.training import configs, optimizers, saving, sharding
from audiolm_jax.training import step as step_lib

KEY = 7


class Case(NamedTuple):
  config: Any
  stage: base.Stage
  boxed: base.Variables
  variables: base.Variables  # unboxed
  batch: Mapping[str, np.ndarray]
  one_device: Any  # ((loss, aux), gradients), computed once: compiling it takes most of the time


def check_stage(
  config: Any,
  batch: Mapping[str, np.ndarray],
  tmp_path: pathlib.Path,
  *,
  without_gradient: Mapping[str, str] | None = None,
  optimizer: optimizers.Optimizer = optimizers.OptimizerConfig(learning_rate=3e-3),
  num_steps: int = 60,
  factor: float = 0.5,
  loss_name: str = 'loss',
  rtol: float = 1e-5,
) -> None:
  """Runs every check.

  Args:
    config: a tiny one; `config.make()` is the stage.
    batch: one batch that the stage can overfit.
    tmp_path: an empty directory.
    without_gradient: {regular expression of dotted parameter paths: why those may have no
    gradient}.
    optimizer, num_steps, factor: the loss on `batch` must fall to `factor` of its first value
    within `num_steps`.
    loss_name: the metric that must fall, where the total of an adversarial loss says little.
    rtol: between one device and eight.
  """
  case = prepare(config, batch)
  check_gradients(case, without_gradient or {})
  check_evaluation(case)
  check_devices(case, rtol)
  check_overfits_and_restores(case, tmp_path, optimizer, num_steps, factor, loss_name)


def prepare(config: Any, batch: Mapping[str, np.ndarray]) -> Case:
  """Makes the stage and its variables, and checks that the batch is what the stage asks for."""
  stage = config.make()
  assert set(batch) == set(stage.batch), (
    f'batch {sorted(batch)}, stage asks for {sorted(stage.batch)}'
  )
  for name, feature in stage.batch.items():
    got = (batch[name].shape[1:], batch[name].dtype)
    assert got == (tuple(feature.shape), np.dtype(feature.dtype)), (
      f'{name}: {got}, stage asks for {feature}'
    )
  boxed = jax.jit(stage.init)(jax.random.key(0))
  variables = meta.unbox(boxed)
  return Case(config, stage, boxed, variables, batch, _loss_and_grads(stage, variables, batch))


def check_gradients(case: Case, without_gradient: Mapping[str, str]) -> None:
  """The loss and its gradients are finite, and every parameter has a gradient somewhere."""
  (loss, aux), grads = case.one_device
  assert loss.shape == () and np.isfinite(loss), loss
  assert _same_structure(aux.state, case.variables.state), (
    'loss returns a state of another structure'
  )
  assert all(np.ndim(value) == 0 for value in aux.metrics.values()), 'metrics are scalars'
  silent = []
  for path, grad in jax.tree.flatten_with_path(grads)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    assert np.isfinite(grad).all(), f'gradient of {name} is not finite'
    if not np.any(grad) and not any(re.search(pattern, name) for pattern in without_gradient):
      silent.append(name)
  assert not silent, f'no gradient reaches {silent}'


def check_evaluation(case: Case) -> None:
  """Without a key the loss is deterministic and the state stays as it was."""
  evaluate = jax.jit(lambda variables, batch: case.stage.loss(*variables, batch, None))
  first, aux = evaluate(case.variables, case.batch)
  second, _ = evaluate(case.variables, case.batch)
  assert np.isfinite(first) and first == second, (first, second)
  assert_trees_equal(aux.state, case.variables.state)


def check_devices(case: Case, rtol: float = 1e-5) -> None:
  """Eight devices, cut along data, fsdp and tensor, give the loss and the gradients of one (in
  float32).
  """
  (one_loss, _), one_grads = case.one_device
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
  variables = jax.device_put(case.variables, sharding.tree_shardings(case.boxed, mesh))
  with sharding.activations(mesh):
    (loss, _), grads = _loss_and_grads(
      case.stage, variables, sharding.global_batch(case.batch, mesh)
    )
  np.testing.assert_allclose(loss, one_loss, rtol=rtol)
  total = float(np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(one_grads))))
  for (path, one), many in zip(jax.tree.flatten_with_path(one_grads)[0], jax.tree.leaves(grads)):
    # A gradient that is a sum of cancelling terms has the rounding error of the terms: hence the
    # whole's share.
    scale = max(float(np.linalg.norm(one)), 1e-2 * total)
    error = float(np.linalg.norm(np.asarray(many) - np.asarray(one)))
    assert error <= rtol * scale, (
      f'gradient of {jax.tree_util.keystr(path)}: error {error} of {scale}'
    )


def check_overfits_and_restores(
  case: Case,
  tmp_path: pathlib.Path,
  optimizer: optimizers.Optimizer,
  num_steps: int,
  factor: float,
  loss_name: str = 'loss',
) -> None:
  """One batch is overfitted by the real train step, and the train state comes back from disk bit by
  bit.
  """
  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
  _, _, shardings = step_lib.make_init(case.stage, optimizer, mesh)
  train_step = step_lib.make_train_step(case.stage, optimizer, mesh, shardings)
  # The variables of `prepare`, for compiling `init` once more takes seconds; copied, for the step
  # donates them.
  opt_state = jax.jit(optimizers.make(optimizer).init)(case.variables.params)
  train_state = step_lib.TrainState(jnp.zeros((), jnp.int32), *case.variables, opt_state, None)
  train_state = jax.device_put(train_state, shardings, may_alias=False)
  batch = sharding.global_batch(case.batch, mesh)
  losses = []
  for number in range(num_steps):
    train_state, metrics = train_step(train_state, batch, np.int32(number))
    assert metrics['applied'], f'step {number}: {jax.device_get(metrics)}'
    losses.append(float(metrics[loss_name]))
  assert min(losses) <= factor * losses[0], (
    f'{loss_name} fell from {losses[0]} to {min(losses)} only: {losses}'
  )

  checkpointer = saving.Checkpointer(tmp_path / 'contract')
  parts = {name: part for name, part in train_state._asdict().items() if name != 'step'}
  described = configs.describe(case.config)
  checkpointer.save(num_steps, parts, None, {'config': described})
  checkpointer.wait()
  targets = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), parts
  )
  restored = checkpointer.restore(targets, described)
  checkpointer.close()
  assert restored.step == num_steps
  assert_trees_equal(restored.parts, parts)


def assert_trees_equal(got: Any, expected: Any) -> None:
  """Asserts equal structure, dtypes and bits."""
  assert _same_structure(got, expected)
  for (path, one), other in zip(jax.tree.flatten_with_path(got)[0], jax.tree.leaves(expected)):
    one, other = np.asarray(one), np.asarray(other)
    assert one.dtype == other.dtype and one.tobytes() == other.tobytes(), (
      f'{jax.tree_util.keystr(path)} differs'
    )


def _same_structure(one, other) -> bool:
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), tree)
  return jax.tree.structure(one) == jax.tree.structure(other) and shapes(one) == shapes(other)


def _loss_and_grads(stage, variables, batch):
  def function(variables, batch):
    return jax.value_and_grad(stage.loss, has_aux=True)(*variables, batch, jax.random.key(KEY))

  return jax.jit(function)(variables, batch)

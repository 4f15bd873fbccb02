"""Checks that a stage keeps the contract of stages/base.py: one's own, or one of this package.

  jax.config.update('jax_num_cpu_devices', 8)

  def test_contract(tmp_path):
    testing.check_stage(mine.Config(width=16), batch, tmp_path)

The batch holds numpy arrays [batch size, ...] for the names in `stage.batch`; its size is a
multiple of 4, the number of parts that eight devices cut it into. The single checks can be called
on what `prepare` returns. A stage that fails raises AssertionError.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax.errors import UserError
from audiolm_jax.stages import base
from audiolm_jax.training import checkpoints, configs, optimizers, saving, sharding
from audiolm_jax.training import step as step_lib

KEY = 7
OPTIMIZER = optimizers.OptimizerConfig(learning_rate=3e-3)
MESH = sharding.MeshConfig(data=2, fsdp=2, tensor=2)


class Case(NamedTuple):
  """A stage with its initial variables and a batch, as `prepare` makes it."""

  config: Any
  stage: base.Stage
  boxed: base.Variables
  variables: base.Variables  # unboxed
  batch: Mapping[str, np.ndarray]
  one_device: Any  # ((loss, aux), gradients), computed once: compiling it takes most of the time


def check_stage(
  config: Any,
  batch: Mapping[str, np.ndarray],
  tmp_path: str | os.PathLike,
  *,
  without_gradient: Mapping[str, str] | None = None,
  optimizer: optimizers.Optimizer = OPTIMIZER,
  num_steps: int = 60,
  factor: float = 0.5,
  loss_name: str = 'loss',
  rtol: float = 1e-5,
) -> None:
  """Runs all checks of a stage: gradients, evaluation, eight devices, overfitting, checkpoints.

  Args:
    config: a tiny config; `config.make()` is the stage.
    batch: one batch that the stage can overfit.
    tmp_path: an empty directory, for a checkpoint.
    without_gradient: {regular expression of dotted parameter paths: why those may have no
      gradient}.
    optimizer: how to overfit.
    num_steps: number of steps of overfitting.
    factor: the loss on `batch` must fall to this share of its first value.
    loss_name: the metric that must fall, where the total of an adversarial loss says little.
    rtol: relative tolerance between one device and eight.

  Raises:
    AssertionError: for a stage that breaks the contract.
    UserError: where there are fewer than eight devices.
  """
  case = prepare(config, batch)
  check_gradients(case, without_gradient or {})
  check_evaluation(case)
  check_devices(case, rtol)
  check_overfits_and_restores(case, tmp_path, optimizer, num_steps, factor, loss_name)


def prepare(config: Any, batch: Mapping[str, np.ndarray]) -> Case:
  """Makes the stage and its variables, and checks the batch against `stage.batch`.

  Args:
    config: config of the stage.
    batch: one batch by name.

  Returns:
    What the other checks take.
  """
  stage = config.make()
  _require(
    set(batch) == set(stage.batch), f'batch {sorted(batch)}, stage asks for {sorted(stage.batch)}'
  )
  for name, feature in stage.batch.items():
    got = (batch[name].shape[1:], batch[name].dtype)
    wanted = (tuple(feature.shape), np.dtype(feature.dtype))
    _require(got == wanted, f'{name}: {got}, stage asks for {feature}')
  boxed = jax.jit(stage.init)(jax.random.key(0))
  variables = sharding.unbox(boxed)
  return Case(config, stage, boxed, variables, batch, _loss_and_grads(stage, variables, batch))


def check_gradients(case: Case, without_gradient: Mapping[str, str]) -> None:
  """Checks that loss and gradients are finite, and that every parameter has a gradient.

  Args:
    case: from `prepare`.
    without_gradient: reason by dotted path of each parameter that has none.
  """
  (loss, aux), grads = case.one_device
  _require(loss.shape == () and np.isfinite(loss), f'the loss is {loss}, not a finite scalar')
  _require(
    _same_structure(aux.state, case.variables.state), 'loss returns a state of another structure'
  )
  _require(all(np.ndim(value) == 0 for value in aux.metrics.values()), 'metrics are not scalars')
  silent = []
  for path, grad in jax.tree.flatten_with_path(grads)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    _require(np.isfinite(grad).all(), f'gradient of {name} is not finite')
    if not np.any(grad) and not any(re.search(pattern, name) for pattern in without_gradient):
      silent.append(name)
  _require(not silent, f'no gradient reaches {silent}')


def check_evaluation(case: Case) -> None:
  """Checks that without a key the loss is deterministic and the state does not change.

  Args:
    case: from `prepare`.
  """
  evaluate = jax.jit(lambda variables, batch: case.stage.loss(*variables, batch, None))
  first, aux = evaluate(case.variables, case.batch)
  second, _ = evaluate(case.variables, case.batch)
  _require(np.isfinite(first) and first == second, f'losses of one batch: {first}, {second}')
  assert_trees_equal(aux.state, case.variables.state)


def check_devices(case: Case, rtol: float = 1e-5) -> None:
  """Checks that eight devices (data, fsdp, tensor) give loss and gradients of one, in float32.

  Args:
    case: from `prepare`.
    rtol: largest accepted relative difference.

  Raises:
    AssertionError: if they differ.
    UserError: if there are fewer than eight devices.
  """
  if len(jax.devices()) < 8:
    raise UserError(
      f'{len(jax.devices())} devices of 8: for fake ones, begin with '
      "jax.config.update('jax_num_cpu_devices', 8)"
    )
  (one_loss, _), one_grads = case.one_device
  mesh = sharding.make_mesh(MESH, jax.devices()[:8])
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
    _require(
      error <= rtol * scale, f'gradient of {jax.tree_util.keystr(path)}: error {error} of {scale}'
    )


def check_overfits_and_restores(
  case: Case,
  tmp_path: str | os.PathLike,
  optimizer: optimizers.Optimizer,
  num_steps: int,
  factor: float,
  loss_name: str = 'loss',
) -> None:
  """Checks that the train step overfits one batch, and that its state is read back bitwise.

  Both as a run resumes it, and as `checkpoints.load_variables` loads it for inference.

  Args:
    case: from `prepare`.
    tmp_path: empty folder.
    optimizer: optimizer of the steps.
    num_steps: number of steps.
    factor: by which the loss must fall at least.
    loss_name: name of the metric.
  """
  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
  _, _, shardings = step_lib.make_init(case.stage, optimizer, mesh)
  train_step = step_lib.make_train_step(case.stage, optimizer, mesh, shardings)
  # The variables of `prepare`, because compiling `init` again takes seconds; copied, because the
  # step donates them.
  opt_state = jax.jit(optimizers.make(optimizer).init)(case.variables.params)
  train_state = step_lib.TrainState(jnp.zeros((), jnp.int32), *case.variables, opt_state, None)
  train_state = jax.device_put(train_state, shardings, may_alias=False)
  batch = sharding.global_batch(case.batch, mesh)
  losses = []
  for number in range(num_steps):
    train_state, metrics = train_step(train_state, batch, np.int32(number))
    _require(metrics['applied'], f'step {number}: {jax.device_get(metrics)}')
    losses.append(float(metrics[loss_name]))
  _require(
    min(losses) <= factor * losses[0],
    f'{loss_name} fell from {losses[0]} to {min(losses)} only: {losses}',
  )

  directory = pathlib.Path(tmp_path) / 'contract'
  checkpointer = saving.Checkpointer(directory)
  parts = {name: part for name, part in train_state._asdict().items() if name != 'step'}
  described = configs.describe(case.config)
  checkpointer.save(num_steps, parts, None, {'config': described})
  checkpointer.wait()
  targets = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), parts
  )
  restored = checkpointer.restore(targets, described)
  checkpointer.close()
  _require(restored.step == num_steps, f'step {restored.step} is restored, not {num_steps}')
  assert_trees_equal(restored.parts, parts)
  loaded = checkpoints.load_variables(directory, config=case.config)
  assert_trees_equal(loaded.variables, base.Variables(parts['params'], parts['state']))


def assert_trees_equal(got: Any, expected: Any) -> None:
  """Raises AssertionError unless structure, dtypes and bits of two trees of arrays are equal.

  Args:
    got: tree of arrays.
    expected: tree of arrays.
  """
  _require(_same_structure(got, expected), 'the trees have different structures')
  for (path, one), other in zip(jax.tree.flatten_with_path(got)[0], jax.tree.leaves(expected)):
    one, other = np.asarray(one), np.asarray(other)
    _require(
      one.dtype == other.dtype and one.tobytes() == other.tobytes(),
      f'{jax.tree_util.keystr(path)} differs',
    )


def _require(holds: Any, message: str) -> None:
  if not holds:
    raise AssertionError(message)


def _same_structure(one, other) -> bool:
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), tree)
  return jax.tree.structure(one) == jax.tree.structure(other) and shapes(one) == shapes(other)


def _loss_and_grads(stage, variables, batch):
  def function(variables, batch):
    return jax.value_and_grad(stage.loss, has_aux=True)(*variables, batch, jax.random.key(KEY))

  return jax.jit(function)(variables, batch)

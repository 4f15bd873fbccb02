"""Makes the compiled functions of a run: initialization, train step and evaluation step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from audiolm_jax.errors import UserError
from audiolm_jax.stages import base
from audiolm_jax.training import checkpoints, optimizers, sharding


class TrainState(NamedTuple):
  """Holds everything that a train step changes; donated to each step."""

  step: jax.Array  # int32 []: number of micro-batches that were applied
  params: base.Params
  state: base.State
  opt_state: optax.OptState
  ema_params: base.Params | None


class Programs(NamedTuple):
  """Holds the compiled functions of a run, with shapes and shardings of its train state."""

  mesh: Mesh
  shapes: TrainState
  shardings: TrainState
  init: Callable[[base.Key], TrainState]
  train_step: Callable[..., tuple[TrainState, Mapping[str, jax.Array]]]
  eval_step: Callable[[base.Params, base.State, base.Batch], Mapping[str, jax.Array]]


def make_programs(
  stage: base.Stage,
  optimizer: optimizers.Optimizer,
  mesh: Mesh,
  *,
  seed: int,
  accumulate_steps: int,
  ema_decay: float | None,
) -> Programs:
  """Returns the functions of a run; each is compiled at its first call.

  Args:
    stage: model and loss.
    optimizer: see `optimizers.make`.
    mesh: mesh of all arrays.
    seed: seed of the randomness in each step.
    accumulate_steps: micro-batches averaged into one update.
    ema_decay: see `session.TrainConfig`.
  """
  init, shapes, shardings = make_init(
    stage, optimizer, mesh, accumulate_steps=accumulate_steps, keep_ema=ema_decay is not None
  )
  train_step = make_train_step(
    stage,
    optimizer,
    mesh,
    shardings,
    seed=seed,
    accumulate_steps=accumulate_steps,
    ema_decay=ema_decay,
  )
  return Programs(mesh, shapes, shardings, init, train_step, make_eval_step(stage, mesh))


def make_init(
  stage: base.Stage,
  optimizer: optimizers.Optimizer,
  mesh: Mesh,
  *,
  accumulate_steps: int = 1,
  keep_ema: bool = False,
) -> tuple[Callable[[base.Key], TrainState], TrainState, TrainState]:
  """Returns the function key -> TrainState on `mesh`, and its shapes and shardings; all unboxed.

  Args:
    stage: what to train.
    optimizer: config, mapping of groups to configs, or optax transformation.
    mesh: devices.
    accumulate_steps: number of batches per update.
    keep_ema: whether to keep an average of the parameters.
  """
  transformation = optimizers.make(optimizer, accumulate_steps)

  def init(key):
    params, state = stage.init(key)
    ema_params = jax.tree.map(jnp.copy, params) if keep_ema else None
    return TrainState(
      jnp.zeros((), jnp.int32), params, state, transformation.init(params), ema_params
    )

  # Boxed, so that the moments in the optimizer state have logical names as well.
  boxed = jax.eval_shape(init, jax.random.key(0))
  shardings = sharding.tree_shardings(boxed, mesh)
  return (
    jax.jit(lambda key: sharding.unbox(init(key)), out_shardings=shardings),
    sharding.unbox(boxed),
    shardings,
  )


def check_made_by(config: Any, stage: base.Stage, shapes: TrainState) -> None:
  """Checks that checkpoints of `stage`, whose arrays have `shapes`, can be loaded with `config`.

  Args:
    config: config of the stage.
    stage: what `config.make()` should have returned.
    shapes: shapes of its train state.

  Raises:
    UserError: if `config` makes another stage.
  """
  remedy = 'pass the config that made the stage, otherwise its checkpoints could not be loaded'
  if not hasattr(config, 'make'):
    raise UserError(f'config is of type {type(config).__name__}, which has no make(): {remedy}')
  own = config.make()
  if dict(own.batch) != dict(stage.batch):
    raise UserError(
      f'the stage reads {dict(stage.batch)}, that of the config {dict(own.batch)}: {remedy}'
    )
  params, state = jax.eval_shape(own.init, jax.random.key(0))
  wanted = checkpoints.structure({'params': params, 'state': state})
  found = checkpoints.structure({'params': shapes.params, 'state': shapes.state})
  lines = [
    f'{part}.{path}: the stage has {found[part].get(path, "none")}, '
    f'the config makes {wanted[part].get(path, "none")}'
    for part in wanted
    for path in sorted(wanted[part].keys() | found[part].keys())
    if wanted[part].get(path) != found[part].get(path)
  ]
  if lines:
    raise UserError(f'{remedy}:\n  ' + '\n  '.join(lines))


def make_train_step(
  stage: base.Stage,
  optimizer: optimizers.Optimizer,
  mesh: Mesh,
  shardings: TrainState,
  *,
  seed: int = 0,
  accumulate_steps: int = 1,
  ema_decay: float | None = None,
) -> Callable[..., tuple[TrainState, Mapping[str, jax.Array]]]:
  """Returns the jitted train step, which serves all stages, including the codec and its GAN.

  Args:
    stage: model and loss.
    optimizer: see `optimizers.make`.
    mesh: mesh of all arrays.
    shardings: of the train state, from `make_init`.
    seed: seed of the randomness in each step.
    accumulate_steps: micro-batches averaged into one update.
    ema_decay: see `session.TrainConfig`.

  Returns:
    Function (train state, batch, number of the step, rate_scale=1) -> (next train state, metrics),
    which donates the train state. `rate_scale` multiplies all learning rates.

    A step whose loss or gradients are not finite does not change the state. Neither does any later
    step, because its number exceeds `train_state.step`; therefore the host can react late.
    `metrics['applied']` is whether the step changed the state.
  """
  transformation = optimizers.make(optimizer, accumulate_steps)

  def train_step(train_state, batch, number, rate_scale=1.0):
    step, params, state, opt_state, ema_params = train_state
    key = jax.random.fold_in(jax.random.key(seed), step)
    with sharding.activations(mesh):
      (loss, aux), grads = jax.value_and_grad(stage.loss, has_aux=True)(params, state, batch, key)
    norms = optimizers.group_norms(grads)
    finite = jnp.isfinite(jnp.stack([loss.astype(jnp.float32), *norms.values()])).all()
    applied = finite & (step == number)

    updates, opt_state = transformation.update(grads, opt_state, params)
    updates = jax.tree.map(lambda update: (rate_scale * update).astype(update.dtype), updates)
    params = optax.apply_updates(params, updates)
    if ema_params is not None:
      # The average changes only with the parameters, at the last micro-batch of an update. At first
      # it covers about a tenth of the updates done; otherwise the initial parameters would dominate
      # it for some hundred steps (docs/log.md).
      updates_before = step // accumulate_steps
      decay = jnp.minimum(ema_decay, (1 + updates_before) / (10 + updates_before))
      step_size = jnp.where((step + 1) % accumulate_steps == 0, 1 - decay, 0.0)
      ema_params = optax.incremental_update(params, ema_params, step_size)
    advanced = TrainState(step + 1, params, aux.state, opt_state, ema_params)
    advanced = jax.tree.map(lambda new, old: jnp.where(applied, new, old), advanced, train_state)

    rates = optimizers.learning_rates(optimizer, step // accumulate_steps)
    metrics = dict(aux.metrics) | {name: rate_scale * rate for name, rate in rates.items()}
    metrics |= {'loss': loss, 'applied': applied, 'update_norm': optax.tree.norm(updates)}
    metrics |= {f'grad_norm/{group}': norm for group, norm in norms.items()}
    return advanced, metrics

  return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))


def make_eval_step(
  stage: base.Stage, mesh: Mesh
) -> Callable[[base.Params, base.State, base.Batch], Mapping[str, jax.Array]]:
  """Returns the jitted evaluation step: (params, state, batch) -> metrics including 'loss'.

  The loss gets no key, which turns dropout off.

  Args:
    stage: what to evaluate.
    mesh: devices of the batches.
  """

  def eval_step(params, state, batch):
    with sharding.activations(mesh):
      loss, aux = stage.loss(params, state, batch, None)
    return dict(aux.metrics) | {'loss': loss}

  return jax.jit(eval_step, out_shardings=sharding.replicated(mesh))

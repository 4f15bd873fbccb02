"""Trains the stages of tests."""

import functools
from collections.abc import Iterable

import jax
import optax

from audiolm_jax.stages import base


def trained(stage: base.Stage, params: base.Params, batches: Iterable[base.Batch]) -> base.Params:
  """Returns the parameters after one step of Adam on each batch."""
  optimizer = optax.adam(3e-3)
  loss = functools.partial(jax.value_and_grad(stage.loss, has_aux=True), key=jax.random.key(0))

  @jax.jit
  def step(params, opt_state, batch):
    _, gradient = loss(params, {}, batch)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state

  opt_state = optimizer.init(params)
  for batch in batches:
    params, opt_state = step(params, opt_state, batch)
  return params

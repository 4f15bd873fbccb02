"""Next-token rules as pure functions of logits, and the one autoregressive loop. Knows nothing of audio."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Rule(NamedTuple):
  """How to draw a token. A pytree: other values don't recompile, switching top_k or top_p on or off does.

  temperature: divides the logits; 0 is greedy.
  top_k: keep the k most probable; None: all.
  top_p: keep the smallest set of most probable tokens whose probability reaches top_p; None: all.
  Filters apply after the temperature, top_k first.
  """

  temperature: float | Array = 1.0
  top_k: int | Array | None = None
  top_p: float | Array | None = None


def check(rule: Rule) -> None:
  """Raises ValueError for a rule (of Python numbers) that cannot draw."""
  if rule.temperature < 0:
    raise ValueError(f'temperature={rule.temperature} is negative: use 0 for greedy')
  if rule.top_k is not None and rule.top_k < 1:
    raise ValueError(f'top_k={rule.top_k} keeps nothing: use at least 1, or None for all')
  if rule.top_p is not None and not 0 < rule.top_p <= 1:
    raise ValueError(f'top_p={rule.top_p} is not in (0, 1]: use None for all')


def filtered_logits(logits_BV: Float[Array, 'B V'], rule: Rule) -> Float[Array, 'B V']:
  """Returns logits / temperature with -inf where top_k or top_p exclude a token."""
  logits_BV = logits_BV / jnp.maximum(rule.temperature, 1e-6)
  if rule.top_k is None and rule.top_p is None:
    return logits_BV
  # Ranks, not thresholds: ties would let more than k tokens through.
  order_BV = jnp.argsort(-logits_BV, axis=-1)
  rank_BV = jnp.argsort(order_BV, axis=-1)
  if rule.top_k is not None:
    logits_BV = jnp.where(rank_BV < rule.top_k, logits_BV, -jnp.inf)
  if rule.top_p is not None:
    sorted_BV = jnp.take_along_axis(jax.nn.softmax(logits_BV, axis=-1), order_BV, axis=-1)
    before_BV = jnp.take_along_axis(jnp.cumsum(sorted_BV, axis=-1) - sorted_BV, rank_BV, axis=-1)
    logits_BV = jnp.where((before_BV < rule.top_p) | (rank_BV == 0), logits_BV, -jnp.inf)
  return logits_BV


def draw(key: jax.Array, logits_BV: Float[Array, 'B V'], rule: Rule) -> Int[Array, 'B']:
  """Returns one token a row, by the rule."""
  sampled_B = jax.random.categorical(key, filtered_logits(logits_BV, rule), axis=-1)
  return jnp.where(jnp.asarray(rule.temperature) == 0, jnp.argmax(logits_BV, axis=-1), sampled_B).astype(jnp.int32)


def autoregress(
    step: Callable[[Any, Array, Array], tuple[Array, Any]],
    logits_BV: Float[Array, 'B V'],
    carry: Any,
    key: jax.Array,
    rule: Rule,
    num_steps: Int[Array, ''],
    capacity: int,
) -> Int[Array, 'B N']:
  """Draws `num_steps` tokens a row, feeding each back; columns from num_steps to `capacity` = N stay -1.

  step: (carry, token_B, n) -> (logits of the next token, carry), n counting drawn tokens from 0. The logits range
    over what is legal at that step, so nothing illegal can be drawn.
  num_steps is data, so that one compilation serves every length up to `capacity`.
  """

  def body(loop):
    n, logits_BV, carry, drawn_BN = loop
    token_B = draw(jax.random.fold_in(key, n), logits_BV, rule)
    drawn_BN = jax.lax.dynamic_update_slice(drawn_BN, token_B[:, None], (0, n))
    logits_BV, carry = step(carry, token_B, n)
    return n + 1, logits_BV, carry, drawn_BN

  drawn_BN = jnp.full((logits_BV.shape[0], capacity), -1, jnp.int32)
  loop = (jnp.zeros((), jnp.int32), logits_BV, carry, drawn_BN)
  return jax.lax.while_loop(lambda loop: loop[0] < num_steps, body, loop)[3]

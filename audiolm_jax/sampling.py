"""Samples tokens from logits: next-token rules, autoregressive and masked parallel decoding."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from audiolm_jax import checks
from audiolm_jax.errors import UserError

UNKNOWN = -1  # marks a token that is not decoded yet

# A custom rule: function (key, logits_BV, past_BN) -> token_B. past_BN has the earlier tokens of
# each row (of the prompt within the window, then drawn ones), or in masked decoding the tokens of
# the same frame; UNKNOWN marks missing ones. Rules are jitted, and each function compiles once;
# bind arrays by jax.tree_util.Partial.
OwnRule = Callable[[Array, Array, Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rule:
  """Configures how to draw a token.

  A pytree: changing a value does not recompile, switching top_k or top_p on or off does. Filters
  apply after the temperature, top_k first.

  Fields:
    temperature: divides the logits; 0 is greedy.
    top_k: keeps the k most probable tokens; None keeps all.
    top_p: keeps the smallest set of most probable tokens whose probability reaches top_p; None
      keeps all.

  Raises:
    UserError: if a number is out of range.
  """

  # Numbers, arrays [], or objects: JAX fills pytrees with placeholders. `--set` converts to the
  # first type.
  temperature: float | Array | object = 1.0
  top_k: int | Array | object | None = None
  top_p: float | Array | object | None = None

  def __post_init__(self):
    legal = {
      'temperature': checks.NOT_NEGATIVE,
      'top_k': checks.WHOLE,
      'top_p': checks.POSITIVE_SHARE,
    }
    # Only numbers are checked: fields are tracers in jitted code, and placeholders in pytrees.
    given = {
      name: rule
      for name, rule in legal.items()
      if isinstance(getattr(self, name), (int, float, str))
    }
    checks.fields(self, **given)


@dataclasses.dataclass(frozen=True)
class ParallelRule:
  """Configures masked parallel decoding, level by level (SoundStorm, section 3.3).

  Details that SoundStorm leaves open follow MaskGIT.

  Fields:
    rule: rule of the draws in all passes of a level except the last, which is greedy; or an
      `OwnRule`.
    noise: scale of the Gumbel noise added to the log-confidence; falls linearly to 0 at the last
      pass of a level.
    iterations: passes of each level, coarse to fine; the last entry holds for all further levels.
  """

  rule: Rule | OwnRule = Rule(1.0)
  noise: float | Array | object = 4.5  # a number or an array []
  iterations: tuple[int, ...] = (16, 1)

  def __post_init__(self):
    checks.fields(self, iterations=checks.each(checks.WHOLE))
    if isinstance(self.noise, (int, float, str)):  # not a tracer
      checks.fields(self, noise=checks.NOT_NEGATIVE)


def as_pytree(rule: Rule | OwnRule) -> Any:
  """Returns a rule as an argument of compiled functions: a function becomes a `Partial`.

  Args:
    rule: sampling rule.
  """
  is_tree = isinstance(rule, (Rule, jax.tree_util.Partial))
  return rule if is_tree else jax.tree_util.Partial(rule)


def check_parallel(how: ParallelRule, num_levels: int) -> None:
  """Checks that a rule can decode tokens of `num_levels` levels.

  Args:
    how: rule of parallel decoding.
    num_levels: number of levels that it shall decode.

  Raises:
    UserError: if the rule has more entries of iterations than levels.
  """
  if len(how.iterations) > num_levels:
    raise UserError(
      f'iterations={how.iterations}: pass one positive number for each of the {num_levels} levels, '
      'or fewer (the last one holds for the remaining levels)'
    )


def filtered_logits(logits_BV: Float[Array, 'B V'], rule: Rule) -> Float[Array, 'B V']:
  """Returns logits / temperature, with -inf at tokens excluded by top_k or top_p.

  Args:
    logits_BV: unnormalized log-probabilities.
    rule: temperature, top_k and top_p.
  """
  logits_BV = logits_BV / jnp.maximum(rule.temperature, 1e-6)
  if rule.top_k is None and rule.top_p is None:
    return logits_BV
  # Compare ranks instead of thresholds: ties would admit more than k tokens.
  order_BV = jnp.argsort(-logits_BV, axis=-1)
  rank_BV = jnp.argsort(order_BV, axis=-1)
  if rule.top_k is not None:
    logits_BV = jnp.where(rank_BV < rule.top_k, logits_BV, -jnp.inf)
  if rule.top_p is not None:
    sorted_BV = jnp.take_along_axis(jax.nn.softmax(logits_BV, axis=-1), order_BV, axis=-1)
    before_BV = jnp.take_along_axis(jnp.cumsum(sorted_BV, axis=-1) - sorted_BV, rank_BV, axis=-1)
    logits_BV = jnp.where((before_BV < rule.top_p) | (rank_BV == 0), logits_BV, -jnp.inf)
  return logits_BV


def draw(
  key: jax.Array,
  logits_BV: Float[Array, 'B V'],
  rule: Rule | OwnRule,
  past_BN: Int[Array, 'B N'] | None = None,
) -> Int[Array, 'B']:
  """Draws one token per row by the rule.

  Args:
    key: PRNG key.
    logits_BV: unnormalized log-probabilities.
    rule: sampling rule.
    past_BN: earlier tokens, read by an `OwnRule` only; None for none.

  Returns:
    Tokens in [0, V).
  """
  if not isinstance(rule, Rule):
    empty_B0 = jnp.zeros((len(logits_BV), 0), jnp.int32)
    past_BN = empty_B0 if past_BN is None else past_BN
    return jnp.asarray(rule(key, logits_BV, past_BN), jnp.int32)
  sampled_B = jax.random.categorical(key, filtered_logits(logits_BV, rule), axis=-1)
  return jnp.where(
    jnp.asarray(rule.temperature) == 0, jnp.argmax(logits_BV, axis=-1), sampled_B
  ).astype(jnp.int32)


def autoregress(
  turn: Sequence[Callable[[Any, Array, Array], tuple[Array, Any]]],
  logits_BV: Float[Array, 'B V'],
  carry: Any,
  key: jax.Array,
  rule: Rule | OwnRule,
  num_steps: Int[Array, ''],
  capacity: int,
  prompt_BN: Int[Array, 'B P'] | None = None,
) -> Int[Array, 'B N']:
  """Draws `num_steps` tokens per row, feeding each one back.

  Args:
    turn: functions (carry, token_B, n) -> (logits of the next token, carry), where n counts drawn
      tokens from 0, for as many tokens, again and again. The logits cover the legal tokens of that
      step only.
    logits_BV: logits of the first token.
    carry: initial state of `step`.
    key: PRNG key.
    rule: how to draw.
    num_steps: number of tokens, of whole turns; traced, so that one compilation serves all lengths
      up to `capacity`.
    capacity: number of columns N of the result, of whole turns.
    prompt_BN: tokens before the drawn ones, read by an `OwnRule` only; UNKNOWN is padding.

  Returns:
    Drawn tokens; columns from `num_steps` on are -1.
  """

  def body(loop):
    n, logits_BV, carry, drawn_BN = loop
    for step in turn:
      past_BN = drawn_BN if prompt_BN is None else jnp.concatenate([prompt_BN, drawn_BN], axis=1)
      token_B = draw(jax.random.fold_in(key, n), logits_BV, rule, past_BN)
      drawn_BN = jax.lax.dynamic_update_slice(drawn_BN, token_B[:, None], (0, n))
      logits_BV, carry = step(carry, token_B, n)
      n += 1
    return n, logits_BV, carry, drawn_BN

  drawn_BN = jnp.full((logits_BV.shape[0], capacity), -1, jnp.int32)
  loop = (jnp.zeros((), jnp.int32), logits_BV, carry, drawn_BN)
  return jax.lax.while_loop(lambda loop: loop[0] < num_steps, body, loop)[3]


def decode_masked(
  logits: Callable[[Array, Array], Array],
  tokens_BFQ: Int[Array, 'B F Q'],
  valid_BF: Bool[Array, 'B F'],
  key: jax.Array,
  rule: Rule | OwnRule,
  *,
  noise: float | Array,
  iterations: tuple[int, ...],
) -> Int[Array, 'B F Q']:
  """Fills each UNKNOWN token of valid frames, coarse levels before fine ones.

  In each pass, all unknown tokens of the level are drawn, and the least confident ones
  (log-probability plus noise) become unknown again: after a share s of the passes, a share cos(pi /
  2 s) of the row's initial count, rounded down, but at least one and at least one fewer than
  before. All passes of all levels share one compiled body. Source: SoundStorm, section 3.3; MaskGIT
  (arXiv 2202.04200), section 3.2.

  Args:
    logits: function (tokens_BFQ so far, level) -> logits_BFV of that level; called sum(iterations)
      times.
    tokens_BFQ: known tokens, and UNKNOWN (-1).
    valid_BF: False at frames to leave as they are.
    key: PRNG key.
    rule: see `ParallelRule`.
    noise: see `ParallelRule`.
    iterations: see `ParallelRule`.

  Returns:
    The tokens, without UNKNOWN in valid frames.
  """
  levels = tokens_BFQ.shape[-1]
  passes_Q = np.array([*iterations, *[iterations[-1]] * (levels - len(iterations))])
  level_N = np.repeat(np.arange(levels), passes_Q)
  share_N = np.concatenate([np.arange(1, n + 1) / n for n in passes_Q]).astype(np.float32)
  first_BQ = jnp.sum((tokens_BFQ == UNKNOWN) & valid_BF[..., None], axis=1)

  def decode_once(tokens_BFQ, inputs):
    number, level, share = inputs
    draw_key, noise_key = jax.random.split(jax.random.fold_in(key, number))
    unknown_BF = (tokens_BFQ[..., level] == UNKNOWN) & valid_BF
    logits_BFV = logits(tokens_BFQ, level)
    logits_NV = logits_BFV.reshape(-1, logits_BFV.shape[-1])
    drawn_N = draw(draw_key, logits_NV, rule, tokens_BFQ.reshape(-1, levels))
    drawn_BF = drawn_N.reshape(unknown_BF.shape)
    last = share == 1
    drawn_BF = jnp.where(last, jnp.argmax(logits_BFV, axis=-1).astype(jnp.int32), drawn_BF)
    confidence_BF = jnp.take_along_axis(
      jax.nn.log_softmax(logits_BFV), drawn_BF[..., None], axis=-1
    )[..., 0]
    confidence_BF += noise * (1 - share) * jax.random.gumbel(noise_key, unknown_BF.shape)
    rank_BF = jnp.argsort(
      jnp.argsort(jnp.where(unknown_BF, confidence_BF, jnp.inf), axis=1), axis=1
    )
    forgotten_B = jnp.floor(first_BQ[:, level] * jnp.cos(jnp.pi / 2 * share)).astype(jnp.int32)
    forgotten_B = jnp.maximum(jnp.minimum(forgotten_B, unknown_BF.sum(axis=1) - 1), 1)
    kept_BF = unknown_BF & (last | (rank_BF >= forgotten_B[:, None]))
    return tokens_BFQ.at[..., level].set(jnp.where(kept_BF, drawn_BF, tokens_BFQ[..., level])), None

  return jax.lax.scan(decode_once, tokens_BFQ, (np.arange(len(level_N)), level_N, share_N))[0]

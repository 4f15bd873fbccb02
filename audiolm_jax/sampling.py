"""Next-token rules as pure functions of logits, and the two loops: autoregressive, and masked
parallel decoding.

Knows nothing of audio.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from audiolm_jax import checks
from audiolm_jax.errors import UserError

UNKNOWN = -1  # a token that is still to be decoded

# A rule of one's own: (key, logits_BV, past_BN) -> token_B. past_BN holds the tokens of each row
# before this one, UNKNOWN where there is none: those of the prompt in the window, then those drawn;
# in masked decoding, those of the same frame. It is compiled, once for each function; arrays that it
# reads are best bound by jax.tree_util.Partial.
OwnRule = Callable[[Array, Array, Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rule:
  """How to draw a token. A pytree: other values don't recompile, switching top_k or top_p on or off
  does.

  temperature: divides the logits; 0 is greedy.
  top_k: keep the k most probable; None: all.
  top_p: keep the smallest set of most probable tokens whose probability reaches top_p; None: all.
  Filters apply after the temperature, top_k first. Raises ValueError for a number that cannot draw.
  """

  # Numbers or arrays []; JAX makes rules of its own placeholders, too, which no annotation names.
  temperature: Any = 1.0
  top_k: Any = None
  top_p: Any = None

  def __post_init__(self):
    legal = {
      'temperature': checks.NOT_NEGATIVE,
      'top_k': checks.WHOLE,
      'top_p': checks.POSITIVE_SHARE,
    }
    # Within compiled code, and when JAX takes a tree apart, they are no numbers.
    given = {
      name: rule
      for name, rule in legal.items()
      if isinstance(getattr(self, name), (int, float, str))
    }
    checks.fields(self, **given)


@dataclasses.dataclass(frozen=True)
class ParallelRule:
  """How to fill in masked tokens, level by level (SoundStorm, section 3.3; what it leaves open is
  MaskGIT's).

  rule: of the draws, in all passes of a level but its last, which is greedy; or an `OwnRule`.
  noise: how much Gumbel noise is added to the log-confidence; falls linearly to 0 at the last pass
  of a level.
  iterations: passes of each level, coarse to fine; the last entry holds for all further levels.
  """

  rule: Rule | OwnRule = Rule(1.0)
  noise: Any = 4.5  # a number or an array []
  iterations: tuple[int, ...] = (16, 1)

  def __post_init__(self):
    checks.fields(self, iterations=checks.each(checks.WHOLE))
    if isinstance(self.noise, (int, float, str)):  # no array
      checks.fields(self, noise=checks.NOT_NEGATIVE)


def as_pytree(rule: Rule | OwnRule) -> Any:
  """Returns a rule as an argument of compiled functions: a function becomes a `Partial`."""
  is_tree = isinstance(rule, (Rule, jax.tree_util.Partial))
  return rule if is_tree else jax.tree_util.Partial(rule)


def check_parallel(how: ParallelRule, num_levels: int) -> None:
  """Raises ValueError for a rule that cannot decode tokens of `num_levels` levels."""
  if len(how.iterations) > num_levels:
    raise UserError(
      f'iterations={how.iterations}: give one positive number for each of the {num_levels} levels, or for the first '
      'few (the last of them holds for the rest)'
    )


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


def draw(
  key: jax.Array,
  logits_BV: Float[Array, 'B V'],
  rule: Rule | OwnRule,
  past_BN: Int[Array, 'B N'] | None = None,
) -> Int[Array, 'B']:
  """Returns one token a row, by the rule; past_BN: for an `OwnRule`, None: no tokens."""
  if not isinstance(rule, Rule):
    empty_B0 = jnp.zeros((len(logits_BV), 0), jnp.int32)
    past_BN = empty_B0 if past_BN is None else past_BN
    return jnp.asarray(rule(key, logits_BV, past_BN), jnp.int32)
  sampled_B = jax.random.categorical(key, filtered_logits(logits_BV, rule), axis=-1)
  return jnp.where(
    jnp.asarray(rule.temperature) == 0, jnp.argmax(logits_BV, axis=-1), sampled_B
  ).astype(jnp.int32)


def autoregress(
  step: Callable[[Any, Array, Array], tuple[Array, Any]],
  logits_BV: Float[Array, 'B V'],
  carry: Any,
  key: jax.Array,
  rule: Rule | OwnRule,
  num_steps: Int[Array, ''],
  capacity: int,
  prompt_BN: Int[Array, 'B P'] | None = None,
) -> Int[Array, 'B N']:
  """Draws `num_steps` tokens a row, feeding each back; columns from num_steps to `capacity` = N
  stay -1.

  step: (carry, token_B, n) -> (logits of the next token, carry), n counting drawn tokens from 0.
    The logits range over what is legal at that step, so nothing illegal can be drawn.
  prompt_BN: tokens before the drawn ones, which an `OwnRule` sees; UNKNOWN is padding.
  num_steps is data, so that one compilation serves every length up to `capacity`.
  """

  def body(loop):
    n, logits_BV, carry, drawn_BN = loop
    past_BN = drawn_BN if prompt_BN is None else jnp.concatenate([prompt_BN, drawn_BN], axis=1)
    token_B = draw(jax.random.fold_in(key, n), logits_BV, rule, past_BN)
    drawn_BN = jax.lax.dynamic_update_slice(drawn_BN, token_B[:, None], (0, n))
    logits_BV, carry = step(carry, token_B, n)
    return n + 1, logits_BV, carry, drawn_BN

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
  """Fills in every UNKNOWN token at a valid frame, coarse levels before fine ones; the other tokens
  stay as they are.

  logits: (tokens_BFQ as known so far, level) -> logits_BFV of that level's tokens; called
  sum(iterations) times.
  rule, noise, iterations: see `ParallelRule`.

  In each pass all unknown tokens of the level are drawn, and the least confident ones
  (log-probability plus noise) are
  forgotten again: after a share s of the passes, a share cos(pi / 2 s) of those that the row had at
  first, rounded down, but at least one and at least one fewer than before. One body is compiled for
  all passes of all levels.
  Source: SoundStorm, section 3.3; MaskGIT (arXiv 2202.04200), section 3.2.
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

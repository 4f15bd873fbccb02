"""Block attention in plain XLA, for CPUs and GPUs: the scores [L, L] never exist as a whole.

Interface, bias tiles and algorithm are those of `block_attention`: a running softmax over blocks of
keys (FlashAttention, arXiv 2205.14135), causal with a relative bias or bidirectional without one.
One loop visits the pairs of blocks with a bias tile, another one the rest; pairs in the future are
skipped. The backward pass computes the scores again, from the saved logarithm of their sums.
"""

import functools
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from audiolm_jax.nn import block_attention, placement

# On a CPU, the scores of a block stay in the cache of a core. On a GPU, a pair of blocks has to be
# large enough to hide the time of launching its operations (estimated, not measured).
CPU_BLOCKS = (128, 256)
BLOCKS = (512,)
# From here on, causal attention skips blocks: two of 128 on a CPU (a quarter of the scores), two of
# 512 elsewhere. Where they become faster than plain products was not measured.
CPU_MIN_LENGTH = 256
MIN_LENGTH = 1024


def block_size(length: int, max_distance: int) -> int | None:
  """Returns the block size for sequences of `length`; None where plain products are used.

  These are used for short sequences, for biases that two tiles cannot hold (`block_attention`), and
  on TPUs, whose matrix unit would idle in a loop of small products.
  """
  on_cpu = placement.platform() == 'cpu'
  if placement.platform() == 'tpu' or length < (CPU_MIN_LENGTH if on_cpu else MIN_LENGTH):
    return None
  return next(
    (block for block in (CPU_BLOCKS if on_cpu else BLOCKS) if block >= max_distance), None
  )


def attend(
  query_BLHD: Float[Array, 'B L H D'],
  key_BLHD: Float[Array, 'B L H D'],
  value_BLHD: Float[Array, 'B L H D'],
  valid_BL: Bool[Array, 'B L'],
  tiles_HTKQ: Float[Array, 'H 2 K Q'] | None,
  block: int,
) -> Float[Array, 'B L H D']:
  """Returns softmax(q k / sqrt(D) + bias) v over the valid keys.

  Results of queries without a valid key are finite but meaningless.

  Args:
    query_BLHD: queries.
    key_BLHD: keys.
    value_BLHD: values.
    valid_BL: False at keys without weight.
    tiles_HTKQ: bias from `block_attention.bias_tiles`; makes attention causal.
    block: number of queries, and of keys, in a block.
  """
  length, width = query_BLHD.shape[1], query_BLHD.shape[3]

  def cut(x_BL):
    x_BL = block_attention.padded(x_BL, -length % block)
    return x_BL.reshape(x_BL.shape[0], -1, block, *x_BL.shape[2:])

  heads_first = lambda x_BLHD: cut(x_BLHD).transpose(0, 1, 3, 2, 4)
  query, key, value = map(heads_first, (query_BLHD * width**-0.5, key_BLHD, value_BLHD))
  mask_BN11K = jnp.where(cut(valid_BL), 0.0, block_attention.MASKED)[:, :, None, None]
  tiles_THQK = None if tiles_HTKQ is None else tiles_HTKQ.transpose(1, 0, 3, 2)
  mixed_BNHQD = _attention(length, query, key, value, mask_BN11K, tiles_THQK)
  mixed_BLHD = mixed_BNHQD.transpose(0, 1, 3, 2, 4).reshape(
    len(query_BLHD), -1, *key_BLHD.shape[2:]
  )
  return mixed_BLHD[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(length, query, key, value, mask, tiles):
  return _attention_forward(length, query, key, value, mask, tiles)[0]


def _attention_forward(length, query, key, value, mask, tiles):
  def forward(carry, row):
    return carry, _forward(length, *row, tiles)

  _, (mixed, lse) = _over_rows(forward, (), (query, key, value, mask))
  mixed = checkpoint_name(mixed.astype(value.dtype), block_attention.SAVED)
  lse = checkpoint_name(lse, block_attention.SAVED)
  return mixed, (query, key, value, mask, tiles, mixed, lse)


def _attention_backward(length, saved, grad):
  query, key, value, mask, tiles, mixed, lse = saved
  delta = jnp.sum(grad.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1)

  def backward(grad_tiles, row):
    return _backward(length, *row, tiles, grad_tiles)

  grad_tiles = None if tiles is None else jnp.zeros(tiles.shape, jnp.float32)
  arrays = (query, key, value, mask, lse, grad, delta)
  grad_tiles, grads = _over_rows(backward, grad_tiles, arrays)
  cast = lambda one, like: one.astype(like.dtype)
  return *map(cast, grads, (query, key, value)), None, grad_tiles


_attention.defvjp(_attention_forward, _attention_backward)


def _over_rows(function: Callable, carry, arrays):
  """Returns a carry and results of `function(carry, arrays)`, whose blocks are along axis 0.

  A CPU takes one example at a time, so that the scores of a block of all heads stay in its cache;
  other devices take all at once.
  """
  if placement.platform() == 'cpu':
    return jax.lax.scan(function, carry, arrays)
  blocks_first = lambda tree: jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tree)
  carry, results = function(carry, blocks_first(arrays))
  return carry, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), results)


def _over_pairs(function: Callable, carry, num_blocks: int, causal: bool):
  """Returns the carry after `function(carry, (query block, key block), has_tile)` of all pairs."""
  i, j = np.tril_indices(num_blocks) if causal else np.indices((num_blocks,) * 2).reshape(2, -1)
  has_tile = (i - j < 2) & causal
  for near in (True, False):
    pairs = i[has_tile == near], j[has_tile == near]
    if len(pairs[0]):
      body = lambda carry, pair, near=near: (function(carry, pair, near), None)
      carry, _ = jax.lax.scan(body, carry, pairs)
  return carry


def _useful(length: int, query, causal: bool):
  """Returns the scope of products: `costs.flops` counts the share that is work of the model."""
  num_blocks, size = query.shape[0], query.shape[-2]
  pairs = num_blocks * (num_blocks + causal) // (1 + causal)
  share = Fraction(length**2, (1 + causal) * pairs * size**2)
  return jax.named_scope(block_attention.useful_scope(share))


_dot = lambda spec, *args: jnp.einsum(spec, *args, preferred_element_type=jnp.float32)


def _get(x, n):
  return jax.lax.dynamic_index_in_dim(x, n, keepdims=False)


def _put(x, value, n):
  return jax.lax.dynamic_update_index_in_dim(x, value, n, 0)


def _scores(query, key, mask, tiles, i, j, near):
  scores = _dot('...qd,...kd->...qk', _get(query, i), _get(key, j)) + _get(mask, j)
  return scores + _get(tiles, i - j) if near else scores


def _forward(length, query, key, value, mask, tiles):
  """Returns outputs and logsumexp of arrays whose blocks are along axis 0."""

  def body(carry, pair, near):
    tops, totals, sums = carry
    i, j = pair
    with _useful(length, query, tiles is not None):
      scores = _scores(query, key, mask, tiles, i, j, near)
      old = _get(tops, i)
      top = jnp.maximum(old, scores.max(axis=-1))
      weights = jnp.exp(scores - top[..., None])
      mixed = _dot('...qk,...kd->...qd', weights.astype(value.dtype), _get(value, j))
    shrink = jnp.exp(old - top)
    total = shrink * _get(totals, i) + weights.sum(axis=-1)
    mixed += shrink[..., None] * _get(sums, i)
    return _put(tops, top, i), _put(totals, total, i), _put(sums, mixed, i)

  zeros = jnp.zeros(query.shape, jnp.float32)
  start = (zeros[..., 0] + 4 * block_attention.MASKED, zeros[..., 0], zeros)
  tops, totals, sums = _over_pairs(body, start, query.shape[0], tiles is not None)
  return sums / totals[..., None], tops + jnp.log(totals)


def _backward(length, query, key, value, mask, lse, grad, delta, tiles, grad_tiles):
  """Returns gradients of the tiles, added to `grad_tiles`, and of queries, keys and values."""

  def body(carry, pair, near):
    grad_tiles, grad_query, grad_key, grad_value = carry
    i, j = pair
    query_i, key_j, grad_i = _get(query, i), _get(key, j), _get(grad, i)
    with jax.named_scope(block_attention.useful_scope(Fraction(0))):  # computed again
      scores = _scores(query, key, mask, tiles, i, j, near)
    weights = jnp.exp(scores - _get(lse, i)[..., None])
    with _useful(length, query, tiles is not None):
      into_value = _dot('...qk,...qd->...kd', weights.astype(grad.dtype), grad_i)
      into_weights = _dot('...qd,...kd->...qk', grad_i, _get(value, j))
      into_scores = weights * (into_weights - _get(delta, i)[..., None])
      if near:
        summed = into_scores.reshape(-1, *tiles.shape[1:]).sum(axis=0)
        grad_tiles = _put(grad_tiles, _get(grad_tiles, i - j) + summed, i - j)
      into_scores = into_scores.astype(query.dtype)
      into_query = _dot('...qk,...kd->...qd', into_scores, key_j)
      into_key = _dot('...qk,...qd->...kd', into_scores, query_i)
    add = lambda total, one, n: _put(total, _get(total, n) + one, n)
    return (
      grad_tiles,
      add(grad_query, into_query, i),
      add(grad_key, into_key, j),
      add(grad_value, into_value, j),
    )

  zeros = jnp.zeros(query.shape, jnp.float32)
  start = (grad_tiles, zeros, zeros, zeros)
  grad_tiles, *grads = _over_pairs(body, start, query.shape[0], tiles is not None)
  return grad_tiles, grads

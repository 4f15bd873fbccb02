"""Dropout that draws one random byte per activation, where `nn.Dropout` draws four.

On TPUs, drawing random bits would otherwise take a Transformer longer than everything except matrix
products and attention.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from audiolm_jax.errors import UserError
from audiolm_jax.nn import placement


class Dropout(nn.Module):
  """Zeroes activations [..., D] with probability `rate`, and divides the others by 1 - rate.

  The rate is rounded to a multiple of 1/256 (0.1 to 26/256). The key comes from the collection
  'dropout'.

  Raises:
    UserError: if a nonzero rate rounds to 0 or 1.
  """

  rate: float
  deterministic: bool = False

  @nn.compact
  def __call__(self, x_BLD: Float[Array, '*dims D']) -> Float[Array, '*dims D']:
    if self.deterministic or self.rate == 0:
      return x_BLD
    dropped = round(256 * self.rate)
    if not 0 < dropped < 256:
      raise UserError(
        f'dropout of {self.rate}: choose 0, or a rate between 1/512 and 511/512, because rates are '
        'rounded to multiples of 1/256'
      )
    width = x_BLD.shape[-1]
    words = jax.random.bits(
      self.make_rng('dropout'), (*x_BLD.shape[:-1], -(-width // 4)), jnp.uint32
    )
    # Without the barrier, XLA draws the words again for each of their bytes.
    words = jax.lax.optimization_barrier(words)
    # Concatenate the bytes instead of interleaving, so that no TPU lanes move. Each device holds
    # the full width, even if activations are sharded along it, so that no bits are communicated.
    kept_BLD = jnp.concatenate(
      [(words >> shift & 255) >= dropped for shift in (0, 8, 16, 24)], axis=-1
    )
    kept_BLD = placement.by_batch(kept_BLD)[..., :width]
    # Without this one, each product that reads the mask concatenates it, as a sum of padded arrays.
    kept_BLD = jax.lax.optimization_barrier(kept_BLD)
    scale = jnp.asarray(256 / (256 - dropped), x_BLD.dtype)
    return jnp.where(kept_BLD, x_BLD * scale, 0)

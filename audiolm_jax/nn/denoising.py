"""The denoising switch of SoundStream (arXiv 2107.03312, section III-F)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from audiolm_jax import checks
from audiolm_jax.nn.attention import partitioned


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingSwitch:
  """Configures the switch: a `FiLM` layer on the embeddings, whose condition is on or off.

  Fields:
    place: 'encoder': after the encoder, so that codes are those of audio without noise; 'decoder':
      before the decoder, so that codes keep the noise and the decoder removes it.

  Raises:
    UserError: if the place is another.
  """

  place: str = 'decoder'

  def __post_init__(self):
    checks.fields(self, place=checks.one_of('encoder', 'decoder'))

  def init(self, key: jax.Array, z_BFD):
    """Returns parameters, with which the switch changes nothing."""
    return FiLM().init(key, z_BFD, jnp.zeros((1, 2)))['params']

  def apply(self, params, z_BFD, denoise):
    """Returns the embeddings with the switch on or off, for all examples or for each [B]."""
    condition_B2 = jax.nn.one_hot(jnp.broadcast_to(denoise, len(z_BFD)).astype(jnp.int32), 2)
    return FiLM().apply({'params': params}, z_BFD, condition_B2)


class FiLM(nn.Module):
  """Computes (1 + scale) * x_BFD + shift, with scale and shift [B, D] linear in condition_BC.

  The layer is the identity at first. It has no bias, because conditions are one-hot. Source: arXiv
  1709.07871.
  """

  @nn.compact
  def __call__(self, x_BFD, condition_BC):
    kernel_init = partitioned(nn.initializers.zeros, None, None)
    linear = nn.Dense(2 * x_BFD.shape[-1], use_bias=False, kernel_init=kernel_init, name='linear')
    scale_BD, shift_BD = jnp.split(linear(condition_BC), 2, axis=-1)
    return (1 + scale_BD[:, None]) * x_BFD + shift_BD[:, None]

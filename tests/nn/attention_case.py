"""Attention with a relative bias and padding, and the plain products that other kernels must equal."""

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax.nn import attention
from audiolm_jax.nn.transformer import relative_buckets

BATCH, HEADS, WIDTH, NUM_BUCKETS = 2, 2, 8, 16


class Case:
  """Holds inputs of `length` positions.

  Args:
    length: number of positions L.
    padding: positions of padding at the start of the first row; the second row has holes.
    max_distance: distance from which on the bias is constant.
  """

  def __init__(self, length: int, padding: int, max_distance: int):
    keys = jax.random.split(jax.random.key(0), 5)
    *arrays, weight = (jax.random.normal(k, (BATCH, length, HEADS, WIDTH)) for k in keys[:4])
    self.arguments = (*arrays, jax.random.normal(keys[4], (NUM_BUCKETS, HEADS)))
    self._position_L = jnp.arange(length)
    self.valid_BL = jnp.stack([self._position_L >= padding, self._position_L % 7 != 3])
    self.kept_BL11 = self.valid_BL[..., None, None]  # outputs at padding have no meaning
    self._weight = weight * self.kept_BL11
    self.bucket = lambda distance: relative_buckets(distance, NUM_BUCKETS, max_distance)

  def plain(self, query, key, value, table_NH, *, causal: bool):
    mask = self.valid_BL[:, None, None]
    if not causal:
      return attention.attend(query, key, value, mask=mask)
    distance_LN = self._position_L[:, None] - self._position_L
    bias = table_NH[self.bucket(distance_LN)].transpose(2, 0, 1)[None]
    return attention.attend(query, key, value, bias=bias, mask=mask & (distance_LN >= 0))

  def outputs(self, function):
    """Returns the output where there is no padding, and the gradients of all arguments."""

    def total(*arguments):
      output = function(*arguments)
      return jnp.sum(output * self._weight), jnp.where(self.kept_BL11, output, 0)

    grads, output = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True))(*self.arguments)
    return output, grads


def assert_close(got, want, atol: float):
  """Compares outputs, and gradients relative to their largest value."""
  np.testing.assert_allclose(got[0], want[0], atol=1e-5)
  for one, other in zip(got[1], want[1], strict=True):
    np.testing.assert_allclose(one, other, atol=atol * max(1, np.abs(other).max()))

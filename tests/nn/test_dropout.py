"""Dropout against what it promises: shares, scale, independence of neighbours, and keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.nn.dropout import Dropout


def drop(rate, x, seed=0):
  return np.asarray(Dropout(rate).apply({}, x, rngs={'dropout': jax.random.key(seed)}))


@pytest.mark.parametrize('rate, width', [(0.1, 96), (0.5, 7)])
def test_shares_scale_and_independence(rate, width):
  rounded = round(256 * rate) / 256
  out = drop(rate, jnp.ones((200, 50, width)))
  kept = out != 0
  np.testing.assert_allclose(out[kept], 1 / (1 - rounded), rtol=1e-6)
  np.testing.assert_allclose(
    kept.mean((0, 1)), 1 - rounded, atol=5 * np.sqrt(rounded * (1 - rounded) / 10_000)
  )
  # Channels are uncorrelated, those that share a word included.
  correlation = np.corrcoef(kept.reshape(-1, width).T) - np.eye(width)
  assert np.abs(correlation).max() < 6 / np.sqrt(10_000)


def test_keys_and_dtypes():
  x = jnp.ones((4, 32), jnp.bfloat16)
  np.testing.assert_array_equal(drop(0.5, x), drop(0.5, x))
  assert (drop(0.5, x) != drop(0.5, x, seed=1)).any()
  assert Dropout(0.5).apply({}, x, rngs={'dropout': jax.random.key(0)}).dtype == jnp.bfloat16
  np.testing.assert_array_equal(Dropout(0.5, deterministic=True).apply({}, x), x)
  np.testing.assert_array_equal(Dropout(0.0).apply({}, x), x)


def test_a_rate_that_rounds_to_nothing_is_refused():
  with pytest.raises(ValueError, match='dropout of 0.001'):
    drop(0.001, jnp.ones((2, 4)))

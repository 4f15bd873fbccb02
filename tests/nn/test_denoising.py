"""The denoising switch against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.errors import UserError
from audiolm_jax.nn.denoising import DenoisingSwitch, FiLM


def test_film_scales_and_shifts_each_channel_by_its_condition():
  kernel = np.arange(2 * 6, dtype=np.float32).reshape(2, 6)
  x_BFD = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
  got_BFD = FiLM().apply(
    {'params': {'linear': {'kernel': kernel}}}, x_BFD, np.eye(2, dtype=np.float32)
  )
  want_BFD = x_BFD * (1 + kernel[:, None, :3]) + kernel[:, None, 3:]
  np.testing.assert_allclose(got_BFD, want_BFD, rtol=1e-5)


def test_each_example_has_a_switch_that_changes_nothing_at_first():
  switch, z_BFD = DenoisingSwitch(), jnp.arange(12.0).reshape(2, 3, 2)
  params = switch.init(jax.random.key(0), z_BFD)
  np.testing.assert_array_equal(switch.apply(params, z_BFD, True), z_BFD)
  kernel = jnp.zeros((2, 4)).at[1, 2:].set(5.0)  # on: shifts by 5
  params = {'linear': {'kernel': kernel}}
  on_B = jnp.array([False, True])
  np.testing.assert_array_equal(switch.apply(params, z_BFD, on_B), z_BFD + 5 * on_B[:, None, None])
  with pytest.raises(UserError, match="place='middle'"):
    DenoisingSwitch(place='middle')

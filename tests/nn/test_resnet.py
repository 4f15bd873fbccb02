import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.nn.resnet import ResNetConfig


def test_sizes_are_those_of_resnet_50():
  """Of torchvision's model: 25,557,032 parameters and 4.089e9 products at 224 x 224, of which the
  last layer has 1000 (2048 + 1), and the first sees 3 channels instead of 1.
  """
  # An image of 224 x 224: so many bands need a longer window, or some of them have no frequency.
  window = 1024
  config = ResNetConfig(
    num_mels=224, window_length=window, crop_seconds=(window + 223 * 160) / 16_000
  )
  network, wave_BT = config.network(128), jnp.zeros((1, config.crop_length))
  params = jax.eval_shape(network.init, jax.random.key(0), wave_BT)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert count == 25_557_032 - 1000 * 2049 - 2 * 64 * 49 + 128 * 2049
  traced = jax.make_jaxpr(lambda params: network.apply(params, wave_BT).logits_BN)(params)
  convolutions = [
    (equation.outvars[0].aval.size, equation.invars[1].aval.shape)
    for equation in traced.eqns
    if equation.primitive.name == 'conv_general_dilated'
  ]
  assert len(convolutions) == 1 + 3 * 16 + 4
  products = sum(size * math.prod(kernel[:-1]) for size, kernel in convolutions)
  assert products == pytest.approx(4.089e9 - 2.048e6 - 2 * 64 * 49 * 112 * 112, abs=5e5)


def test_examples_are_independent_and_loudness_counts():
  config = ResNetConfig(blocks=(1, 1), width=4, num_mels=16, crop_seconds=0.2)
  network = config.network(3)
  wave_BT = 0.1 * np.random.default_rng(0).normal(size=(2, 3200)).astype(np.float32)
  params = jax.jit(network.init)(jax.random.key(0), wave_BT)
  apply = jax.jit(lambda wave_BT: network.apply(params, wave_BT).logits_BN)
  both_BN = np.asarray(apply(wave_BT))
  np.testing.assert_allclose(apply(wave_BT[::-1])[::-1], both_BN, atol=1e-5)
  assert np.abs(apply(0.1 * wave_BT) - both_BN).max() > 1e-2
  with pytest.raises(ValueError, match='width=5: must be an even whole number'):
    ResNetConfig(width=5)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta
from jax import lax

from audiolm_jax.nn import conv


def _apply(module, x, **changes):
  params = meta.unbox(module.init(jax.random.key(0), x))['params'] | changes
  return module.apply({'params': params}, x), params


@pytest.mark.parametrize('kernel_size, stride, dilation', [(3, 1, 1), (3, 1, 3), (4, 2, 1), (8, 4, 1)])
def test_causal_conv_is_a_sum_over_the_past(kernel_size, stride, dilation):
  x_BND = jax.random.normal(jax.random.key(1), (2, 16, 3))
  got, params = _apply(conv.CausalConv(5, kernel_size, stride=stride, dilation=dilation), x_BND)
  want = np.zeros((2, 16 // stride, 5))
  for n in range(16 // stride):
    newest = (n + 1) * stride - 1
    for tap in range(kernel_size):
      source = newest - (kernel_size - 1 - tap) * dilation
      if source >= 0:
        want[:, n] += np.asarray(x_BND)[:, source] @ np.asarray(params['kernel'])[tap]
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_transposed_conv_equals_overlap_add():
  stride, x_BND = 3, jax.random.normal(jax.random.key(1), (2, 4, 5))
  bias_D = jnp.asarray([1.0, -2.0])
  got, params = _apply(conv.CausalConvTranspose(2, stride), x_BND, bias=bias_D)
  # [tap, D, stride * features]: tap 1 holds the first `stride` samples of the kernel, tap 0 the rest.
  kernel = np.asarray(params['kernel']['kernel']).reshape(2, 5, stride, 2)
  want = np.zeros((2, 5 * stride, 2))
  for n in range(4):
    response = np.einsum('bd,tdso->btso', np.asarray(x_BND)[:, n], kernel[::-1]).reshape(2, 2 * stride, 2)
    want[:, n * stride : (n + 2) * stride] += response
  np.testing.assert_allclose(got, want[:, : 4 * stride] + bias_D, atol=1e-5)


@pytest.mark.parametrize(
    'module, sizes',
    [
        (conv.CausalConv(5, 3, dilation=9), (1, 2, 12, 1, 8)),  # shorter than the past of 18, too
        (conv.CausalConv(5, 7), (1, 1, 22)),
        (conv.CausalConv(5, 8, stride=4), (4, 12, 8)),
        (conv.CausalConv(5, 1), (5, 19)),
        (conv.CausalConvTranspose(5, 3), (1, 1, 20, 2)),
    ],
)
def test_chunks_give_what_the_whole_gives(module, sizes):
  x_BND = jax.random.normal(jax.random.key(1), (2, 24, 3))
  whole_BND, params = _apply(module, x_BND)
  past, parts, start = {}, [], 0
  for size in sizes:
    chunk_BND = x_BND[:, start : start + size]
    part_BND, updated = module.apply({'params': params, conv.PAST: past}, chunk_BND, mutable=[conv.PAST])
    past, start = updated.get(conv.PAST, {}), start + size
    parts.append(part_BND)
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole_BND, atol=1e-5)


@pytest.mark.parametrize('channels, features, length', [(4, 16, 30), (16, 32, 33), (128, 256, 12)])
def test_grouped_conv_equals_that_of_xla(channels, features, length):
  x_BND = jax.random.normal(jax.random.key(1), (2, length, channels))
  bias_D = jnp.arange(features, dtype=jnp.float32)
  got, params = _apply(conv.GroupedConv(features, 41, stride=4), x_BND, bias=bias_D)
  want = lax.conv_general_dilated(
      x_BND, params['kernel'], (4,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'), feature_group_count=channels // 4
  )
  np.testing.assert_allclose(got, want + bias_D, atol=1e-4)

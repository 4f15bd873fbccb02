import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.linen import meta
from jax import lax

from audiolm_jax.nn import conv


def _apply(module, x, **changes):
  params = meta.unbox(jax.jit(module.init)(jax.random.key(0), x))['params'] | changes
  return jax.jit(module.apply)({'params': params}, x), params


@pytest.mark.parametrize(
  'kernel_size, stride, dilation', [(3, 1, 1), (3, 1, 3), (4, 2, 1), (8, 4, 1)]
)
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
  # [tap, D, stride * features]: tap 1 holds the first `stride` samples of the kernel, tap 0 the
  # rest.
  kernel = np.asarray(params['kernel']['kernel']).reshape(2, 5, stride, 2)
  want = np.zeros((2, 5 * stride, 2))
  for n in range(4):
    response = np.einsum('bd,tdso->btso', np.asarray(x_BND)[:, n], kernel[::-1]).reshape(
      2, 2 * stride, 2
    )
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
  apply = jax.jit(functools.partial(module.apply, mutable=[conv.PAST]))
  past, parts, start = {}, [], 0
  for size in sizes:
    chunk_BND = np.asarray(x_BND)[:, start : start + size]
    part_BND, updated = apply({'params': params, conv.PAST: past}, chunk_BND)
    past, start = updated.get(conv.PAST, {}), start + size
    parts.append(part_BND)
  np.testing.assert_allclose(np.concatenate(parts, axis=1), whole_BND, atol=1e-5)


@pytest.mark.parametrize('channels, features, length', [(4, 16, 30), (16, 32, 33), (128, 256, 12)])
def test_grouped_conv_equals_that_of_xla(channels, features, length):
  x_BND = jax.random.normal(jax.random.key(1), (2, length, channels))
  bias_D = jnp.arange(features, dtype=jnp.float32)
  got, params = _apply(conv.GroupedConv(features, 41, stride=4), x_BND, bias=bias_D)
  want = lax.conv_general_dilated(
    x_BND,
    params['kernel'],
    (4,),
    'SAME',
    dimension_numbers=('NWC', 'WIO', 'NWC'),
    feature_group_count=channels // 4,
  )
  np.testing.assert_allclose(got, want + bias_D, atol=1e-4)


CONVOLUTIONS = {  # shape of x, shape of the kernel, strides, padding, dilation
  'dilated': ((2, 20, 3), (3, 3, 5), (1,), ((18, 0),), (9,)),
  'strided': ((2, 24, 3), (8, 3, 5), (4,), ((4, 0),), (1,)),
  'strided, with a rest that nothing reads': ((2, 23, 3), (3, 3, 5), (4,), ((1, 0),), (1,)),
  'both': ((2, 30, 3), (3, 3, 5), (2,), ((3, 2),), (3,)),
  'of images': ((2, 9, 16, 3), (3, 4, 3, 5), (1, 2), ((1, 1), (1, 1)), (1, 1)),
  'of odd images': ((2, 7, 13, 3), (4, 4, 3, 5), (2, 2), ((1, 2), (1, 2)), (1, 1)),
  'without padding': ((2, 7, 8, 3), (1, 8, 3, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
}


@pytest.mark.parametrize(
  'x_shape, kernel_shape, strides, padding, dilation', CONVOLUTIONS.values(), ids=CONVOLUTIONS
)
def test_gradients_of_a_convolution_equal_those_of_jax(
  x_shape, kernel_shape, strides, padding, dilation
):
  x, kernel = (
    jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((x_shape, kernel_shape))
  )
  axes = ('NWC', 'WIO', 'NWC') if x.ndim == 3 else ('NHWC', 'HWIO', 'NHWC')
  whole = lambda x, kernel: lax.conv_general_dilated(
    x, kernel, strides, padding, None, dilation, axes
  )
  ours = lambda x, kernel: conv.convolve(x, kernel, strides, padding, dilation)

  @jax.jit
  def outputs(x, kernel):
    found = []
    for function in (ours, whole):
      out, pull = jax.vjp(function, x, kernel)
      found.append((out, *pull(jax.random.normal(jax.random.key(2), out.shape))))
    return found

  got, want = outputs(x, kernel)
  np.testing.assert_array_equal(got[0], want[0])
  for g, w in zip(got[1:], want[1:], strict=True):
    np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)


def test_all_gradients_are_convolutions_in_the_order_that_cpus_are_fast_at():
  loss = lambda x, kernel: jnp.sum(jnp.sin(conv.convolve(x, kernel, (2,), ((1, 1),), (1,))))
  gradient = jax.make_jaxpr(jax.grad(loss, (0, 1)))(jnp.zeros((2, 8, 3)), jnp.zeros((4, 3, 5)))
  found = [
    e.params['dimension_numbers']
    for e in gradient.jaxpr.eqns
    if e.primitive.name == 'conv_general_dilated'
  ]
  wanted = lax.conv_dimension_numbers((2, 8, 3), (4, 3, 5), ('NWC', 'WIO', 'NWC'))
  assert found == [wanted] * 3


@pytest.mark.parametrize(
  'kernel_shape, strides, padding',
  [((7,), (2,), 'SAME'), ((3, 4), (1, 2), 'SAME'), ((1, 6), None, 'VALID')],
)
def test_conv_equals_that_of_flax(kernel_shape, strides, padding):
  x = jax.random.normal(jax.random.key(1), (2, *(9, 6)[2 - len(kernel_shape) :], 3))
  got, params = _apply(conv.Conv(5, kernel_shape, strides, padding), x, bias=jnp.arange(5.0))
  want = nn.Conv(5, kernel_shape, strides, padding).apply({'params': params}, x)
  np.testing.assert_allclose(got, want, atol=1e-5)

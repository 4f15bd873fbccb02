"""The count against closed forms, brute force, and XLA's own count of a program without loops."""

import jax
import jax.numpy as jnp
import pytest

from audiolm_jax import tokens
from audiolm_jax.costs import flops
from audiolm_jax.nn import language_model, quantizer, transformer
from audiolm_jax.nn.language_model import LanguageModel
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.training import sharding

CONFIG = TransformerConfig(
  num_layers=3, num_heads=2, width=64, mlp_width=128, dropout_rate=0.0, remat=False
)
MODEL = LanguageModel(
  transformer=CONFIG, vocabulary=tokens.Vocabulary(target_levels=2, target_size=32)
)


def shape(*dims, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(dims, dtype)


def test_loops_and_conditionals():
  product = lambda x: x @ x  # 2 * 8^3
  looped = lambda x: jax.lax.scan(lambda x, _: (product(x), None), x, length=5)[0]
  nested = lambda x: jax.lax.fori_loop(0, 3, lambda _, x: jax.jit(looped)(x), x)
  either = lambda x: jax.lax.cond(x[0, 0] > 0, looped, product, x)
  assert [flops.count(f, shape(8, 8)) for f in (product, looped, nested, either)] == [
    1024,
    5120,
    15360,
    5120,
  ]
  with pytest.raises(ValueError, match='while loop'):
    flops.count(lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, product, x), shape(8, 8))


def test_what_fits_codebooks_at_the_first_step_is_not_counted():
  books = jax.eval_shape(lambda: quantizer.init(jax.random.key(0), 2, 8, 4))
  x, key = shape(1, 10, 4), jax.random.key(0)
  assert flops.count(quantizer.fit, books, x, key) > 0
  assert flops.count(quantizer.fitted, books, x, key) == 0


def test_the_largest_array_may_be_in_a_loop():
  outer = lambda x: jax.lax.scan(
    lambda total, row: (total + jnp.outer(row, row).sum(), None), 0.0, x
  )[0]
  largest = flops.largest_array(jax.make_jaxpr(outer)(shape(3, 50)).jaxpr)
  assert (largest.shape, largest.dtype) == ((50, 50), jnp.float32)


def test_language_model_is_the_closed_form():
  """Forward: 2 a weight and token, and 2 L D of attention, causal, a token; backward twice as much.

  The bias is small print.
  """
  batch, frames, length = 2, 24, 48
  params = sharding.unbox(jax.eval_shape(lambda: language_model.init(MODEL, jax.random.key(0))))
  codes, prefix = shape(batch, frames, 2, dtype=jnp.int32), shape(batch, 0, 1, dtype=jnp.int32)
  loss = lambda params, prefix, codes: language_model.loss(MODEL, params, prefix, codes, None)[0]
  layer = 4 * 64**2 + 2 * 64 * 128
  forward = batch * length * (2 * (3 * layer + 64 * 32) + 3 * 2 * length * 64)
  bias = 2 * (2 * length) * CONFIG.num_buckets * CONFIG.num_heads
  assert flops.count(loss, params, prefix, codes) == forward + bias
  assert flops.count(jax.grad(loss), params, prefix, codes) == 3 * forward + 2 * bias


def test_one_layer_is_what_xla_counts():
  block = transformer.Block(CONFIG)
  x, bias, mask = shape(2, 64, 64), shape(1, 2, 64, 64), shape(1, 1, 64, 64, dtype=bool)
  params = sharding.unbox(
    jax.eval_shape(lambda *args: block.init(jax.random.key(0), *args), x, bias, mask)
  )
  function = lambda params, *args: block.apply(params, *args)[0].astype(jnp.float32).sum()
  for f, passes in ((function, 1), (jax.value_and_grad(function), 3)):
    # counts element-wise operations too
    xla = jax.jit(f).lower(params, x, bias, mask).cost_analysis()['flops']
    # the half of the square that is masked
    own = flops.count(f, params, x, bias, mask) + passes * 2 * 2 * 64**3
    assert own < xla < 1.15 * own


@pytest.mark.parametrize(
  'options',
  [
    dict(window_strides=(2,), padding=[(1, 2)]),
    dict(window_strides=(1,), padding=[(3, 0)], rhs_dilation=(2,)),
    dict(window_strides=(1,), padding=[(2, 2)], lhs_dilation=(3,)),
    dict(window_strides=(1,), padding='SAME', feature_group_count=2),
  ],
)
def test_convolutions_are_counted_tap_by_tap(options):
  groups = options.get('feature_group_count', 1)
  x, kernel = jnp.ones((2, 4, 11)), jnp.ones((6, 4 // groups, 3))
  convolve = lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, **options)
  # With ones everywhere each output is the number of products that made it.
  products = float(convolve(x, kernel).sum())
  assert flops.count(convolve, x, kernel) == 2 * products
  for n in (0, 1):  # both backward passes take the products of the forward pass apart
    grad = jax.grad(lambda *args: convolve(*args).sum(), argnums=n)
    assert flops.count(grad, x, kernel) - flops.count(convolve, x, kernel) == 2 * products

"""Block attention in plain XLA against plain products, alone and in the models."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from audiolm_jax import tokens
from audiolm_jax.costs import flops
from audiolm_jax.nn import (
  attention,
  block_attention,
  conformer,
  language_model,
  placement,
  portable_attention,
)
from tests.nn.attention_case import Case, assert_close
from tests.nn.test_transformer import MODEL

BLOCK = 32


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])  # one example at a time, all at once
@pytest.mark.parametrize('causal', [True, False])
def test_outputs_and_gradients_are_those_of_plain_attention(causal, platform, monkeypatch):
  # Five blocks of 32, of which the last is partly padding; a row begins with more than a block of it.
  case = Case(150, padding=50, max_distance=BLOCK)

  def blocks(query, key, value, table_NH):
    tiles = block_attention.bias_tiles(table_NH, case.bucket, BLOCK) if causal else None
    return portable_attention.attend(query, key, value, case.valid_BL, tiles, BLOCK)

  want = case.outputs(functools.partial(case.plain, causal=causal))
  monkeypatch.setattr(placement, 'platform', lambda: platform)
  assert_close(case.outputs(blocks), want, atol=1e-5)


@pytest.fixture
def short_blocks(monkeypatch):
  """Lets sequences of the tests' lengths run in blocks of 16."""
  monkeypatch.setattr(portable_attention, 'CPU_BLOCKS', (16,))
  monkeypatch.setattr(portable_attention, 'CPU_MIN_LENGTH', 40)


@pytest.mark.parametrize('remat', [False, True])
def test_a_language_model_gives_the_same_without_an_array_of_all_scores(
  remat, short_blocks, monkeypatch
):
  """MODEL's bias is constant from 12 tokens on; part of the prefix is padding."""
  rng = np.random.default_rng(0)
  prefix = jnp.asarray(rng.integers(0, 6, (2, 9, 1))).at[0, 4:].set(tokens.PAD)
  codes = jnp.asarray(rng.integers(0, 5, (2, 30, 2)))
  config = dataclasses.replace(MODEL.transformer, remat=remat)
  model, length = dataclasses.replace(MODEL, transformer=config), 9 + 60
  params = meta.unbox(jax.jit(language_model.init, static_argnums=0)(model, jax.random.key(0)))

  def outputs():
    loss = jax.value_and_grad(
      lambda params: language_model.loss(model, params, prefix, codes, None)[0]
    )
    largest = flops.largest_array(jax.make_jaxpr(loss)(params).jaxpr)
    return jax.jit(loss)(params), largest.size, flops.count(loss, params)

  got, largest, work = outputs()
  monkeypatch.setattr(portable_attention, 'CPU_MIN_LENGTH', 1000)
  want, square, plain_work = outputs()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
  scores = 2 * config.num_heads * length**2
  assert largest < scores <= square
  # The bias: a product with each bucket, for each entry of the tiles, or each of 2 L distances.
  bias = lambda entries: 2 * 2 * entries * config.num_buckets * config.num_heads
  recomputed = remat * config.num_layers * 2 * 2 * 2 * length**2 * config.width // 2
  assert work - bias(2 * 16**2) == plain_work - bias(2 * length) - recomputed


def test_a_conformer_gives_the_same(short_blocks, monkeypatch):
  x_BLD = jax.random.normal(jax.random.key(0), (2, 50, 16))
  mask_BL = jnp.arange(50) < jnp.array([[50], [37]])
  block = conformer.ConformerBlock(num_heads=2, mlp_width=16, kernel_size=3)
  params = jax.jit(block.init)(jax.random.key(1), x_BLD, mask_BL)
  outputs = lambda: jax.jit(lambda x: block.apply(params, x, mask_BL)[0])(x_BLD)
  got = outputs()
  monkeypatch.setattr(portable_attention, 'CPU_MIN_LENGTH', 1000)
  kept = np.asarray(mask_BL)
  np.testing.assert_allclose(np.asarray(got)[kept], np.asarray(outputs())[kept], atol=1e-5)


def test_short_sequences_and_long_biases_use_plain_products(monkeypatch):
  size = attention.block_size
  assert size(255, 128) is None and size(256, 128) == 128 and size(256, 129) == 256
  assert size(256, 257) is None
  monkeypatch.setattr(placement, 'platform', lambda: 'gpu')
  assert size(1023, 128) is None and size(1024, 128) == 512
  monkeypatch.setattr(placement, 'platform', lambda: 'tpu')
  # XLA cannot partition kernels over several TPUs without a mesh.
  for devices, block in ((1, 256), (2, None)):
    monkeypatch.setattr(jax, 'device_count', lambda devices=devices: devices)
    assert size(512, 128) == block

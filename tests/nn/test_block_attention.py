"""The TPU kernels, run by Pallas' interpreter, against the plain attention."""

import base64
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.nn import attention, block_attention, placement
from audiolm_jax.nn.transformer import relative_buckets
from audiolm_jax.training import sharding
from tests.nn.attention_case import WIDTH, Case, assert_close


# Three blocks of 256, of which the last is mostly padding; three of 384.
@pytest.mark.parametrize('causal, length', [(True, 562), (False, 562), (True, 1100)])
def test_outputs_and_gradients_are_those_of_plain_attention(causal, length):
  case = Case(length, padding=400, max_distance=100)  # a row begins with more than a block of it
  block = block_attention.block_size(length)

  def blocks(query, key, value, table_NH):
    tiles = block_attention.bias_tiles(table_NH, case.bucket, block) if causal else None
    return block_attention.attend(query, key, value, case.valid_BL, tiles, interpret=True)

  want = case.outputs(functools.partial(case.plain, causal=causal))
  assert_close(case.outputs(blocks), want, atol=2e-5)


def test_the_cores_of_a_chip_share_the_heads():
  """By what the compiler is given for the forward and the backward kernel."""
  x = jnp.zeros((1, 256, 6, WIDTH))
  tiles = jnp.zeros((6, 2, 256, 256))
  valid = jnp.ones((1, 256), bool)
  total = lambda x, tiles: block_attention.attend(x, x, x, valid, tiles).sum()
  exported = jax.export.export(jax.jit(jax.grad(total, argnums=(0, 1))), platforms=['tpu'])
  text = exported(x, tiles).mlir_module()
  modules = [base64.b64decode(body) for body in re.findall(r'body\\22: \\22([\w+/=]+)', text)]
  assert len(modules) == 2
  assert all(b'#tpu.dimension_semantics<parallel>' in module for module in modules)
  assert len(re.findall(r'parallel_heads\\22:\\226\\22', text)) == 2


@pytest.mark.slow
@pytest.mark.parametrize('heads, tensor', [(2, 2), (3, 2)])
def test_eight_devices_give_what_one_does(heads, tensor):
  mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=2, tensor=tensor))
  keys = jax.random.split(jax.random.key(1), 5)
  length = 256
  query, key, value, weight = (jax.random.normal(k, (4, length, heads, WIDTH)) for k in keys[:4])
  table_NH = jax.random.normal(keys[4], (16, heads))
  tiles = block_attention.bias_tiles(
    table_NH,
    lambda distance: relative_buckets(distance, 16, 100),
    block_attention.block_size(length),
  )
  valid_BL = jnp.arange(length) >= jnp.array([0, 3, 100, 1])[:, None]
  weight *= valid_BL[..., None, None]

  def total(query, key, value, tiles):
    bias = attention.Tiles(placement.each_part(tiles))
    return (
      attention.attend_in_blocks(query, key, value, valid_BL, bias, interpret=True) * weight
    ).sum()

  def outputs():
    return jax.jit(lambda *args: jax.value_and_grad(total, argnums=(0, 1, 2, 3))(*args))(
      query, key, value, tiles
    )

  want, want_grads = outputs()
  with sharding.activations(mesh):
    got, got_grads = outputs()
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for one, other in zip(got_grads, want_grads, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()))


def test_blocks_pad_a_sequence_least():
  lengths = {1: 256, 256: 256, 257: 384, 750: 768, 1500: 1536, 1800: 1920, 2250: 2304}
  assert {length: block_attention.padded_length(length) for length in lengths} == lengths
  assert all(block_attention.padded_length(padded) == padded for padded in lengths.values())

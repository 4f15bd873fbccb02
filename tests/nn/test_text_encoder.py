import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.nn import text_encoder, transformer
from audiolm_jax.nn.transformer import TransformerConfig

SIZES = TransformerConfig(
  num_layers=1, num_heads=2, width=16, mlp_width=16, dtype='float32', remat=False
)


def test_paper_size():
  network = text_encoder.TextEncoder(text_encoder.TextEncoderConfig(), 128)
  params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 2048), jnp.int32))
  layers = 12 * (4 * 768**2 + 2 * 768 * 3072 + 2 * 768)  # as BERT-base, without biases
  bytes_to_positions = (256 + 8 * 768) * 768
  rest = 2 * 768 + 32 * 12 + 768 * 128 + 128  # CLS, norm, positions, projection
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == layers + bytes_to_positions + rest


@pytest.mark.parametrize('stride, kernel_size', [(1, 3), (4, 8)])
def test_padding_does_not_count_and_every_byte_does(stride, kernel_size):
  config = text_encoder.TextEncoderConfig(
    num_bytes=16, stride=stride, kernel_size=kernel_size, transformer=SIZES
  )
  network = text_encoder.TextEncoder(config, 3)
  ids_BL = np.full((2, 16), -1, np.int32)
  ids_BL[0, :9] = list(b'soft harp')
  ids_BL[1] = list(b'a fast, loud oud')
  params = jax.jit(network.init)(jax.random.key(0), ids_BL)
  apply = jax.jit(lambda ids_BL: network.apply(params, ids_BL))
  both_BN = np.asarray(apply(ids_BL))
  np.testing.assert_allclose(apply(ids_BL[:1, :9]), both_BN[:1], atol=1e-5)
  for place in range(9):
    other_BL = ids_BL.copy()
    other_BL[0, place] = ord('x')
    other_BN = np.asarray(apply(other_BL))
    assert np.abs(other_BN - both_BN)[0].max() > 1e-4, place
    np.testing.assert_allclose(other_BN[1], both_BN[1], atol=1e-5)
  swapped_BL = ids_BL[:, [1, 0, *range(2, 16)]]
  assert np.abs(apply(swapped_BL) - both_BN).max(axis=1).min() > 1e-4


def test_relative_positions_are_those_of_t5s_encoder():
  """By the published code: half of the buckets, 16, is for keys after the query."""
  sizes = TransformerConfig(num_heads=2, num_buckets=32, max_distance=128)
  table = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)

  def bucket(key_minus_query):
    distance = abs(key_minus_query)
    upper = 16 if key_minus_query > 0 else 0
    if distance < 8:
      return upper + distance
    return upper + min(15, 8 + int(np.log(distance / 8) / np.log(128 / 8) * 8 + 1e-9))

  buckets = [[bucket(key - query) for key in range(150)] for query in range(150)]
  got = transformer.whole_bias(sizes, jnp.asarray(table), 150, causal=False)
  np.testing.assert_allclose(got, table[np.array(buckets)].transpose(2, 0, 1), atol=1e-6)


def test_what_cannot_be_made_is_refused():
  with pytest.raises(ValueError, match='kernel_size=3: must be a whole number of at least 4'):
    text_encoder.TextEncoderConfig(kernel_size=3)
  with pytest.raises(ValueError, match='num_buckets=2: must be at least 4'):
    text_encoder.TextEncoderConfig(transformer=TransformerConfig(num_buckets=2))

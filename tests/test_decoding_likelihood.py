"""Likelihoods of rows of any length under a language model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from audiolm_jax import decoding
from audiolm_jax.nn import language_model
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.stages import semantic

CONFIG = semantic.Config(
  crop_seconds=0.64,
  num_clusters=7,
  deduplicate=False,
  transformer=TransformerConfig(
    num_layers=1,
    num_heads=2,
    width=16,
    mlp_width=16,
    dropout_rate=0.0,
    dtype='float32',
    remat=False,
  ),
)
MODEL = CONFIG.language_model
CROP = CONFIG.num_semantic  # 16


@pytest.fixture(scope='module')
def params():
  params = meta.unbox(jax.jit(lambda key: CONFIG.make().init(key).params)(jax.random.key(0)))
  return jax.tree.map(lambda p: 3 * p, params)


def rows_of(*lengths):
  random = np.random.default_rng(0)
  return [random.integers(0, 7, (length, 1)).astype(np.int32) for length in lengths]


def test_a_model_that_knows_nothing_gives_every_code_the_same_probability(params):
  nothing = jax.tree.map(np.zeros_like, params)
  for found in decoding.log_likelihoods(MODEL, nothing, rows_of(3, 16, 30), crop=CROP):
    np.testing.assert_allclose(found, -np.log(7), rtol=1e-6)


def test_likelihood_is_what_training_minimizes_whatever_is_in_the_batch(params):
  rows, told = rows_of(5, 16, 1, 9), []
  together = decoding.log_likelihoods(
    MODEL, params, rows, crop=CROP, batch_size=3, progress=told.append
  )
  assert sum(told) == len(rows)
  for row, found in zip(rows, together, strict=True):
    nats, _ = language_model.loss(
      MODEL, params, jnp.zeros((1, 0, 1), jnp.int32), jnp.asarray(row)[None], None
    )
    assert -found.mean() == pytest.approx(float(nats), abs=1e-5)
    assert np.ptp(found) > 0.1 or len(row) == 1


def test_probabilities_of_all_sequences_add_up_to_one(params):
  every = [np.array([[a], [b]], np.int32) for a in range(7) for b in range(7)]
  found = decoding.log_likelihoods(MODEL, params, every, crop=CROP)
  assert sum(np.exp(one.sum()) for one in found) == pytest.approx(1, abs=1e-5)


def test_long_rows_are_predicted_from_at_least_half_a_crop_of_their_past(params):
  [row] = rows_of(29)
  [found] = decoding.log_likelihoods(MODEL, params, [row], crop=CROP)
  for first, scored, end in ((0, 0, 16), (8, 16, 24), (13, 24, 29)):
    [alone] = decoding.log_likelihoods(MODEL, params, [row[first:end]], crop=CROP)
    np.testing.assert_allclose(found[scored:end], alone[scored - first :], atol=1e-5)


@pytest.mark.parametrize(
  'row, message',
  [
    (np.array([[0], [7]], np.int32), r'rows\[1\] holds 7, outside of 0 to 6'),
    (np.array([[0], [-1]], np.int32), r'rows\[1\] holds -1'),
    (np.zeros((2, 3), np.int32), r'rows\[1\] has shape \(2, 3\): it must be .* Q = 1'),
    (np.zeros((0, 1), np.int32), r'rows\[1\] has shape \(0, 1\)'),
    (np.zeros((2, 1), np.float32), r'rows\[1\] is of type float32: ids are integers'),
  ],
)
def test_a_row_with_a_code_out_of_range_has_no_likelihood(params, row, message):
  with pytest.raises(ValueError, match=message):
    decoding.log_likelihoods(MODEL, params, [rows_of(3)[0], row], crop=CROP)

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from audiolm_jax import tokens
from audiolm_jax.nn import attention, language_model, placement, transformer
from audiolm_jax.nn.language_model import LanguageModel
from audiolm_jax.nn.transformer import TransformerConfig

TINY = TransformerConfig(
  num_layers=2,
  num_heads=2,
  width=16,
  mlp_width=32,
  num_buckets=8,
  max_distance=12,
  dtype='float32',
  remat=False,
)
MODEL = LanguageModel(
  transformer=TINY,
  vocabulary=tokens.Vocabulary(
    parts=(tokens.Codebook(1, 6, rate=25.0),), target_levels=2, target_size=5
  ),
  time_embedding=True,
)


@pytest.fixture(scope='module')
def params():
  return meta.unbox(jax.jit(language_model.init, static_argnums=0)(MODEL, jax.random.key(0)))


@pytest.fixture(scope='module')
def logits_of():
  return jax.jit(
    lambda params, prefix, codes: language_model.target_logits(MODEL, params, prefix, codes, None)
  )


@pytest.fixture(scope='module')
def example():
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.integers(0, 6, (2, 4, 1))), jnp.asarray(rng.integers(0, 5, (2, 8, 2)))


def t5_bucket(distance, num_buckets, max_distance):
  """T5's definition, one distance at a time and in double precision."""
  exact = num_buckets // 2
  if distance < exact:
    return max(distance, 0)
  growth = math.log(distance / exact) / math.log(max_distance / exact)
  return min(exact + math.floor(growth * (num_buckets - exact) + 1e-9), num_buckets - 1)


def sinusoids_of(times_L, width):
  """Sines and cosines with periods of 0.08 to 40 s, in double precision."""
  angle_LN = times_L[:, None] * 2 * np.pi / np.geomspace(0.08, 40.0, width // 2)
  return np.concatenate([np.sin(angle_LN), np.cos(angle_LN)], axis=-1)


def test_buckets_are_t5s():
  got = transformer.relative_buckets(jnp.arange(-5, 400), 32, 128)
  assert list(np.asarray(got)) == [t5_bucket(d, 32, 128) for d in range(-5, 400)]
  assert t5_bucket(127, 32, 128) == 31 and t5_bucket(16, 32, 128) == 16


def test_the_bias_of_a_step_is_a_row_of_the_tiled_bias():
  table = jax.random.normal(jax.random.key(0), (8, 2))
  whole = transformer.whole_bias(TINY, table, 30)
  bias_HM = transformer.distance_bias(TINY, table, 30)
  valid_BN = jnp.array([[True] * 30, [False] + [True] * 29])
  rows = [transformer.step_bias(bias_HM, jnp.asarray(n), 1, valid_BN)[:, 0] for n in range(30)]
  steps = np.stack(rows, axis=1).reshape(2, 2, 30, 30)  # [row, head, query, key]
  causal = np.tril(np.ones((30, 30), bool))
  np.testing.assert_array_equal(np.asarray(whole)[..., causal], steps[0][..., causal])
  assert (steps[0][..., ~causal] < -1e29).all() and (steps[1, ..., 0] < -1e29).all()
  np.testing.assert_array_equal(steps[1, ..., 1:], steps[0, ..., 1:])


def test_a_later_token_changes_no_earlier_logits(params, logits_of, example):
  prefix, codes = example
  changed = codes.at[:, 4, 1].set((codes[:, 4, 1] + 1) % 5)
  before, after = (
    np.asarray(logits_of(params, prefix, c)).reshape(2, 16, 5) for c in (codes, changed)
  )
  # position 9 is the changed token, predicted, not read
  np.testing.assert_array_equal(before[:, :10], after[:, :10])
  assert (np.abs(before[:, 10:] - after[:, 10:]).max(axis=-1) > 1e-6).all()


def test_codes_that_are_left_out_in_training_say_nothing_and_are_predicted(params, example):
  prefix, codes = example
  other = (codes + 1) % 5
  logits = lambda share, codes, key: language_model.target_logits(
    dataclasses.replace(MODEL, code_dropout=share), params, prefix, codes, key
  )
  key = jax.random.key(0)
  none_left = [np.asarray(logits(1 - 1e-6, c, key)) for c in (codes, other)]
  np.testing.assert_array_equal(*none_left)
  assert none_left[0].shape == (2, 8, 2, 5)
  some_left = [np.asarray(logits(0.5, c, key)) for c in (codes, other)]
  assert np.abs(some_left[0] - some_left[1]).max() > 1e-3
  assert np.abs(some_left[0] - logits(0.5, codes, jax.random.key(1))).max() > 1e-3
  # evaluation leaves out nothing
  np.testing.assert_array_equal(logits(0.5, codes, None), logits(0.0, codes, None))


def test_cached_steps_in_a_padded_batch_equal_the_whole_row_alone(params, logits_of, example):
  prefix, codes = example
  whole = np.asarray(logits_of(params, prefix, codes)).reshape(2, 16, 5)
  # Row 0 has read 2 frames, row 1 has read 5: other columns, same numbers; 6 more tokens each.
  read, first = jnp.array([2, 5]), jnp.array([4, 10])
  padded = jnp.where(jnp.arange(5)[None, :, None] < read[:, None, None], codes[:, :5], tokens.PAD)
  ids, times = tokens.left_pad(*language_model.sequence(MODEL, prefix, padded))
  assert (np.asarray(ids[0, :6]) == tokens.PAD).all()
  unrolled = transformer.decoding_params(TINY, params)
  got, cache = jax.jit(lambda p, i, t: language_model.prefill(MODEL, p, i, t, i.shape[1] + 8))(
    unrolled, ids, times
  )
  step = jax.jit(lambda p, cache, code, n: language_model.step(MODEL, p, cache, code, first, n))
  rows, flat = np.arange(2), codes.reshape(2, 16)
  for n in range(6):
    np.testing.assert_allclose(got, whole[rows, first + n], atol=1e-4)
    got, cache = step(unrolled, cache, flat[rows, first + n], jnp.asarray(n))


def test_steps_of_a_single_row_on_a_tpu_are_those_of_more_rows(
  params, logits_of, example, monkeypatch
):
  """Products of a single row and caches are padded there."""
  prefix, codes = (x[:1] for x in example)
  whole = np.asarray(logits_of(params, prefix, codes)).reshape(1, 16, 5)
  monkeypatch.setattr(placement, 'platform', lambda: 'tpu')
  decoding = transformer.decoding_params(TINY, params)
  ids, times = language_model.sequence(MODEL, prefix, codes[:, :6])
  got, cache = language_model.prefill(MODEL, decoding, ids, times, ids.shape[1] + 3)
  for n in range(4):
    np.testing.assert_allclose(got[0], whole[0, 12 + n], atol=1e-4)
    if n < 3:
      code = codes.reshape(1, 16)[:, 12 + n]
      got, cache = language_model.step(
        MODEL, decoding, cache, code, jnp.array([12]), jnp.asarray(n)
      )
  assert int(cache.index) == ids.shape[1] + 3 and cache.valid_BN.shape == (1, 128)


def test_a_loop_of_steps_updates_the_cache_in_place(params, example):
  """XLA:CPU copies arrays whose axes or rank are not those of the products that read them."""
  ids, times = language_model.sequence(MODEL, *example)

  def decode(params, ids, times):
    decoding = transformer.decoding_params(TINY, params)
    logits, cache = language_model.prefill(MODEL, decoding, ids, times, 37)

    def body(n, carry):
      code, first = jnp.argmax(carry[0], axis=-1), jnp.zeros(2, jnp.int32)
      return language_model.step(MODEL, decoding, carry[1], code, first, n)

    return jax.lax.fori_loop(0, 8, body, (logits, cache))[0]

  text = jax.jit(decode).lower(params, ids, times).compile().as_text()
  loops, _ = text.split('\nENTRY ')
  cache = r'f32\[4,(8,37|37,8)\]'  # of 2 rows x 2 heads
  assert len(re.findall(rf'= {cache}\S* fusion\(', loops)) == 2 * TINY.num_layers
  assert not re.findall(rf'= {cache}\S* (copy|transpose)\(', loops)


@pytest.mark.parametrize('rows', [1, 3, 17])  # 17: a product of matrices
def test_products_of_rows_are_numpys(rows):
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(rows, 1, 2, 4)), rng.normal(size=(2, 4, 3, 5))
  numbers = (((2, 3), (0, 1)), ((), ()))
  got = attention.dot_of_rows(*map(jnp.float32, (x, kernel)), numbers)
  np.testing.assert_allclose(got, np.tensordot(x, kernel, 2), atol=1e-5)


def test_prefix_padding_is_invisible(params, logits_of, example):
  prefix, codes = example
  short = prefix.at[:, 2:].set(tokens.PAD)
  np.testing.assert_allclose(
    logits_of(params, short, codes), logits_of(params, prefix[:, :2], codes), atol=1e-4
  )


def test_remat_and_dropout(params, example):
  prefix, codes = example
  other = dataclasses.replace(MODEL, transformer=dataclasses.replace(TINY, remat=True))
  grad = lambda model, key: jax.grad(
    lambda p: language_model.loss(model, p, prefix, codes, key)[0]
  )(params)
  plain, remat = grad(MODEL, None), grad(other, None)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, remat)
  losses = [
    float(language_model.loss(MODEL, params, prefix, codes, k)[0])
    for k in (None, None, jax.random.key(1))
  ]
  assert losses[0] == losses[1] != losses[2]


def test_loss_is_the_closed_form_on_unpadded_targets(params, logits_of, example):
  prefix, codes = example
  codes = codes.at[1, 6:].set(tokens.PAD)
  logits = np.asarray(logits_of(params, prefix, codes), np.float64)
  nats = (
    np.log(np.exp(logits).sum(-1))
    - np.take_along_axis(logits, np.maximum(codes, 0)[..., None], -1)[..., 0]
  )
  got, metrics = language_model.loss(MODEL, params, prefix, codes, None)
  kept = np.asarray(codes) != tokens.PAD
  np.testing.assert_allclose(got, nats[kept].mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['nats_level_1'], nats[..., 1][kept[..., 1]].mean(), rtol=1e-5)


def test_paper_size_and_bad_sizes():
  model = LanguageModel(
    transformer=TransformerConfig(), vocabulary=tokens.Vocabulary(target_size=1024)
  )
  shapes = meta.unbox(jax.eval_shape(lambda: language_model.init(model, jax.random.key(0))))
  blocks = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes['layers']))
  assert blocks == 12 * (4 * 1024**2 + 2 * 1024 * 4096 + 2 * 1024)
  for bad in (
    dict(width=10, num_heads=4),
    dict(dropout_rate=1.0),
    dict(num_layers=0),
    dict(max_distance=16),
  ):
    with pytest.raises(ValueError):
      TransformerConfig(**bad)

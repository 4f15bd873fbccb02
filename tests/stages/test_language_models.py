"""The three language models share their machinery, so they share this file: contract, learning, bad
configs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen import meta

from audiolm_jax import tokens
from audiolm_jax.metrics import language
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.stages import coarse, fine, semantic

TINY = TransformerConfig(
  num_layers=2, num_heads=2, width=32, mlp_width=64, dropout_rate=0.0, dtype='float32', remat=False
)
CONFIGS = {
  'semantic': semantic.Config(crop_seconds=0.8, num_clusters=8, transformer=TINY),
  'coarse': coarse.Config(
    crop_seconds=0.4, num_clusters=8, codebook_size=8, num_quantizers=2, transformer=TINY
  ),
  'fine': fine.Config(
    crop_seconds=0.2, num_coarse=2, total_quantizers=4, codebook_size=8, transformer=TINY
  ),
}


def fit(config, batches, steps, rate):
  stage, optimizer = config.make(), optax.adam(rate)
  params = meta.unbox(jax.jit(lambda key: stage.init(key).params)(jax.random.key(0)))
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params, opt_state, batch):
    (_, aux), grads = jax.value_and_grad(stage.loss, has_aux=True)(params, {}, batch, None)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, aux.metrics

  for i in range(steps):
    params, opt_state, metrics = step(params, opt_state, batches(i))
  return metrics


@pytest.mark.parametrize('name', CONFIGS)
def test_overfits_one_batch_far_below_the_unigram(name):
  config, rng = CONFIGS[name], np.random.default_rng(0)
  batch = {
    k: rng.integers(0, 8, (4, *f.shape), dtype=np.int32) for k, f in config.make().batch.items()
  }
  metrics = fit(config, lambda i: batch, 80, 1e-2)
  predicted = batch.get(
    'codes', tokens.deduplicate(batch['semantic'])[0][..., None] if name == 'semantic' else None
  )
  predicted = predicted[..., 2:] if name == 'fine' else predicted
  unigram = language.unigram_nats(language.fit(predicted, 8), predicted, smoothing=1e-6)
  assert float(metrics['nats']) < 0.5 * unigram


def test_coarse_with_time_embedding_uses_the_semantic_prefix():
  """Codes are a function of the aligned semantic token: without looking there, ln(8) on every
  second frame.
  """
  config = coarse.Config(
    crop_seconds=0.8,
    num_clusters=8,
    codebook_size=8,
    num_quantizers=1,
    deduplicate=False,
    time_embedding=True,
    transformer=TINY,
  )

  def batches(i):
    semantic_BS = np.random.default_rng(i).integers(0, 8, (16, 20), dtype=np.int32)
    codes_BFQ = (3 * semantic_BS.repeat(2, axis=1)[..., None] + 1) % 8
    return {'semantic': semantic_BS, 'codes': codes_BFQ}

  blind = np.log(8) / 2
  assert float(fit(config, batches, 300, 3e-3)['nats']) < 0.5 * blind


def test_acoustic_only_wants_no_semantic_tokens():
  config = dataclasses.replace(CONFIGS['coarse'], condition_on_semantic=False)
  assert set(config.make().batch) == {'codes'}
  assert config.language_model.vocabulary.num_ids == 1 + 2 * 8


def test_padded_semantic_tokens_and_repeats_change_nothing():
  config = CONFIGS['coarse']
  stage = config.make()
  params = meta.unbox(jax.jit(stage.init)(jax.random.key(0)).params)
  codes = jnp.asarray(np.random.default_rng(0).integers(0, 8, (1, 20, 2)))
  loss = jax.jit(
    lambda semantic: stage.loss(params, {}, {'semantic': semantic, 'codes': codes}, None)[0]
  )
  one = jnp.array([[1, 1, 2, 2, 2, 3, -1, -1, -1, -1]])
  two = jnp.array([[1, 2, 2, 3, 3, 3, 3, 3, 3, 3]])
  np.testing.assert_allclose(loss(one), loss(two), rtol=1e-5)
  assert abs(loss(one) - loss(two.at[0, 0].set(5))) > 1e-6


def test_paper_sequence_lengths():
  assert semantic.Config().make().batch['semantic'].shape == (750,)
  assert coarse.Config().make().batch['codes'].shape == (500, 4)
  assert coarse.Config().make().batch['semantic'].shape == (250,)
  assert fine.Config().make().batch['codes'].shape == (150, 12)


@pytest.mark.parametrize(
  'make',
  [
    lambda: coarse.Config(num_quantizers=13),
    lambda: coarse.Config(semantic_rate=40.0),  # no whole number of codec frames for each
    lambda: coarse.Config(time_embedding=True),
    lambda: coarse.Config(num_quantizers=1, depth=TINY),
    lambda: semantic.Config(time_embedding=True),
    lambda: fine.Config(num_coarse=12),
    lambda: fine.Config(crop_seconds=0.01),
  ],
)
def test_bad_configs(make):
  with pytest.raises(ValueError):
    make()

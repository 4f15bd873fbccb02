import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from audiolm_jax.stages import base, w2v_bert

CONFIG = w2v_bert.Config(
  num_mels=16,
  conv_channels=4,
  num_contrastive_layers=1,
  num_mlm_layers=2,
  width=16,
  num_heads=2,
  mlp_width=32,
  dropout=0.0,
  codebook_size=16,
  code_width=16,
  mask_probability=0.1,
  mask_span=4,
  num_negatives=10,
  feature_layer=1,
  crop_seconds=1.6,
)


@pytest.fixture(scope='module')
def variables():
  return nn.meta.unbox(jax.jit(CONFIG.make().init)(jax.random.key(0)))


@pytest.fixture(scope='module')
def features():
  return jax.jit(lambda variables, wave_BT: w2v_bert.features(CONFIG, variables, wave_BT, 2))


def scales(key, count, num_samples):
  """Notes of 80 ms that climb through 8 pitches again and again, each example from a note of its
  own.
  """
  first_B1 = jax.random.randint(key, (count, 1), 0, 8)
  pitch_BN = 200.0 * 1.4 ** ((first_B1 + np.arange(-(-num_samples // 1280))) % 8)
  phase_BT = jnp.cumsum(jnp.repeat(pitch_BN, 1280, axis=1)[:, :num_samples], axis=1) / 16_000
  return 0.1 * jnp.sin(2 * np.pi * phase_BT)


def test_paper_size():
  config = w2v_bert.Config()
  params = jax.eval_shape(config.make().init, jax.random.key(0)).params
  assert 0.57e9 < sum(x.size for x in jax.tree.leaves(params)) < 0.63e9
  assert config.frame_rate == 25 and config.hop_length == 640


@pytest.mark.parametrize('num_samples', [1, 639, 640, 641, 16_001])
def test_frame_count_is_the_ceiling(num_samples, variables):
  shape = jax.eval_shape(
    lambda wave_BT: w2v_bert.features(CONFIG, variables, wave_BT, 1),
    jax.ShapeDtypeStruct((2, num_samples), 'float32'),
  )
  assert shape.shape == (2, -(-num_samples // 640), 16)


def test_features_know_neither_padding_nor_neighbours(variables, features):
  wave_BT = scales(jax.random.key(1), 2, 8_100)
  alone = features(variables, wave_BT[:1])
  quiet = jnp.pad(wave_BT[:1], ((0, 0), (0, 4_700)))
  loud = scales(jax.random.key(2), 1, 12_800)
  together = features(variables, jnp.concatenate([quiet, loud]))
  assert alone.shape[1] == 13
  np.testing.assert_allclose(together[0, :13], alone[0], atol=1e-4)
  assert np.isfinite(features(variables, jnp.zeros((2, 12_800)))).all()


def test_layers_are_counted_from_one_among_the_mlm_blocks(variables, features):
  wave_BT = scales(jax.random.key(1), 1, 8_100)
  first = jax.jit(w2v_bert.features, static_argnums=0)(CONFIG, variables, wave_BT)
  apply = functools.partial(
    w2v_bert.W2vBert(CONFIG).apply,
    method='features',
    capture_intermediates=True,
    mutable='intermediates',
  )
  _, kept = jax.jit(apply)({'params': variables.params}, wave_BT)
  _, hidden_NBSD = kept['intermediates']['mlm_blocks']['__call__'][0]
  np.testing.assert_allclose(first, hidden_NBSD[0], atol=1e-5)
  np.testing.assert_allclose(features(variables, wave_BT), hidden_NBSD[1], atol=1e-5)
  for layer in (0, 3):
    with pytest.raises(ValueError, match=f'no MLM block {layer}'):
      w2v_bert.features(CONFIG, variables, wave_BT, layer)


def test_masked_share_follows_the_closed_form():
  mask_BS = np.asarray(w2v_bert.span_mask(jax.random.key(0), (4000, 40), 0.065, 10))
  law_S = 1 - (1 - 0.065) ** np.minimum(np.arange(40) + 1, 10)
  assert 0.48 < law_S[-1] < 0.49
  np.testing.assert_allclose(mask_BS.mean(0), law_S, atol=5 * 0.5 / np.sqrt(4000))
  # A span lasts 10 frames: no shorter run, but for one that the end of the crop cuts.
  edges = np.diff(np.pad(mask_BS[:, :-10], ((0, 0), (1, 0))).astype(int), axis=1)
  for row in edges[:200]:
    starts, ends = np.flatnonzero(row == 1), np.flatnonzero(row == -1)
    assert all(end - start >= 10 for start, end in zip(starts, ends))


def test_negatives_are_the_other_masked_frames_of_the_utterance():
  masked_BS = jax.random.bernoulli(jax.random.key(0), 0.3, (6, 20))
  negatives_BSN = np.asarray(w2v_bert.sample_negatives(jax.random.key(1), masked_BS, 400))
  for row, negatives_SN in zip(np.asarray(masked_BS), negatives_BSN):
    for frame in np.flatnonzero(row):
      others = set(np.flatnonzero(row)) - {frame}
      drawn, counts = np.unique(negatives_SN[frame], return_counts=True)
      assert set(drawn) == others
      assert counts.min() > 400 / len(others) / 3  # uniform


@pytest.fixture(scope='module')
def trained(variables):
  """Trains on scales; returns the first and the last step's metrics, and the final state."""
  stage = CONFIG.make()
  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(params, state, opt_state, key):
    batch = {'waveform': scales(key, 8, 25_600)}
    (_, aux), gradient = jax.value_and_grad(stage.loss, has_aux=True)(params, state, batch, key)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), aux.state, opt_state, aux.metrics

  params, state, opt_state = *variables, optimizer.init(variables.params)
  history = []
  for n in range(300):
    params, state, opt_state, metrics = step(params, state, opt_state, jax.random.key(n))
    history.append(metrics)
  return base.Variables(params, state), jax.tree.map(lambda *x: np.stack(x), *history)


def test_learns_scales_without_collapse(trained):
  (_, state), history = trained
  assert state['step'] == 300
  chance = 1 / (CONFIG.num_negatives + 1)
  last = {name: values[-10:].mean() for name, values in history.items()}
  assert last['contrastive_accuracy'] > 2 * chance
  assert last['contrastive'] < 0.85 * np.log(CONFIG.num_negatives + 1)
  assert last['mlm'] < 0.85 * np.log(CONFIG.codebook_size)
  assert last['codebook_perplexity'] > 4
  np.testing.assert_allclose(
    history['loss'], history['contrastive'] + 0.1 * history['diversity'] + history['mlm'], rtol=1e-5
  )


def test_evaluation_knows_neither_chance_nor_step(variables, trained):
  evaluate = jax.jit(lambda params, state, batch: CONFIG.make().loss(params, state, batch, None))
  batch = {'waveform': scales(jax.random.key(1), 2, 25_600)}
  first, aux = evaluate(*variables, batch)
  again, _ = evaluate(variables.params, {'step': jnp.int32(10_000)}, batch)
  assert first == again and aux.state['step'] == 0
  better, _ = evaluate(*trained[0], batch)
  assert better < first

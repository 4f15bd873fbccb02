"""Conditions of the semantic and coarse stages and of SoundStorm: ids, learning, guidance."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen import meta
from safetensors import safe_open

import audiolm_jax
from audiolm_jax import decoding
from audiolm_jax.nn import language_model
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.sampling import Rule, as_pytree
from audiolm_jax.stages import coarse, fine, semantic, soundstorm
from audiolm_jax.stages.base import Condition
from audiolm_jax.tokens import PAD, Spec
from audiolm_jax.training import configs

RELEASE = pathlib.Path(audiolm_jax.__file__).parent / 'releases/speech'

TINY = TransformerConfig(
  num_layers=1, num_heads=2, width=16, mlp_width=32, dropout_rate=0.0, dtype='float32', remat=False
)
K = 8
CONDITION = Condition(levels=2, size=K, windows=3, dropout=0.3)
SEMANTIC = semantic.Config(
  crop_seconds=0.08, num_clusters=K, deduplicate=False, condition=CONDITION, transformer=TINY
)
COARSE = coarse.Config(
  crop_seconds=0.08,
  num_clusters=K,
  codebook_size=K,
  num_quantizers=2,
  deduplicate=False,
  condition=CONDITION,
  transformer=TINY,
)
SOUNDSTORM = soundstorm.Config(
  crop_seconds=0.16,
  num_clusters=K,
  num_quantizers=2,
  codebook_size=K,
  num_layers=1,
  num_heads=2,
  width=16,
  mlp_width=16,
  dtype='float32',
  remat=False,
  condition=CONDITION,
)


def init(config, seed=0):
  return meta.unbox(jax.jit(config.make().init)(jax.random.key(seed))).params


def test_ids_without_a_condition_are_those_of_the_first_release():
  vocabularies = [
    config.language_model.vocabulary
    for config in (semantic.Config(), coarse.Config(), fine.Config())
  ]
  assert [v.offsets for v in vocabularies] == [(), (1,), (1,)]
  assert [v.target_offset for v in vocabularies] == [1, 1 + 1024, 1 + 4 * 1024]
  assert [v.num_ids for v in vocabularies] == [1 + 1024, 1 + 5 * 1024, 1 + 12 * 1024]
  musiclm = coarse.Config(condition=Condition()).language_model.vocabulary
  assert musiclm.offsets == (1, 1 + 12 * 1024)
  assert musiclm.num_ids == 1 + 12 * 1024 + 1024 + 4 * 1024


def test_tables_of_the_packaged_release_have_the_ids_of_its_stages():
  entries = json.loads((RELEASE / 'config.json').read_text())['stages']
  # With a depth model, it has the table of targets.
  outputs = {'semantic': 'params.output', 'coarse': 'params.depth.output'}
  for name, output in outputs.items():
    config = configs.rebuild(configs.upgraded(entries[name]['config']), '0.1.0')
    vocabulary = config.language_model.vocabulary
    with safe_open(RELEASE / name / 'model.safetensors', 'numpy') as file:
      assert file.get_slice('params.embedding').get_shape()[0] == vocabulary.num_ids
      assert file.get_slice(output).get_shape()[0] == vocabulary.num_targets


def test_a_batch_has_the_tokens_of_the_second_in_which_the_crop_starts():
  for config in (SEMANTIC, COARSE, SOUNDSTORM):
    assert 'music_3' in config.make().batch
    assert config.make().batch['music_3'].shape == (1, 2)
    assert config.make().batch['music_3'].rate == 1.0
    plain = dataclasses.replace(config, condition=None)
    assert not any(name.startswith('music') for name in plain.make().batch)


def test_hidden_conditions_are_a_share_of_the_rows_and_only_in_training():
  tokens_B1N = np.ones((4000, 1, 2), np.int32)
  batch = {'music_3': tokens_B1N}
  np.testing.assert_array_equal(CONDITION.read(batch, None), tokens_B1N)
  seen = np.asarray(CONDITION.read(batch, jax.random.key(0)))
  assert (seen[:, 0, 0] == seen[:, 0, 1]).all()
  assert np.mean(seen == PAD) == pytest.approx(0.3, abs=0.03)
  never = dataclasses.replace(CONDITION, dropout=0.0)
  np.testing.assert_array_equal(never.read(batch, jax.random.key(0)), tokens_B1N)


def test_specs_of_conditioned_stages_need_tokens_that_have_a_condition():
  made = Spec(semantic_rate=25.0, num_clusters=K, condition_levels=12, condition_size=K)
  assert SEMANTIC.spec.differences(made) == []
  few = dataclasses.replace(made, condition_levels=1)
  assert SEMANTIC.spec.differences(few) == ['condition_levels=2, the tokens have 1']
  other = dataclasses.replace(made, condition_size=9)
  assert SEMANTIC.spec.differences(other) == ['condition_size=8, the tokens have 9']
  none = Spec(semantic_rate=25.0, num_clusters=K)
  assert 'condition_levels=2, the tokens have no condition' in SEMANTIC.spec.differences(none)
  assert dataclasses.replace(SEMANTIC, condition=None).spec.differences(made) == []


@pytest.fixture(scope='module')
def learned():
  """Returns parameters of a semantic stage that learned that both tokens are the condition's."""
  stage, optimizer = SEMANTIC.make(), optax.adam(1e-2)
  params = init(SEMANTIC)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, i):
    key, data_key = jax.random.split(jax.random.fold_in(jax.random.key(1), i))
    music_B1N = jax.random.randint(data_key, (64, 1, 2), 0, K)
    batch = {'semantic': music_B1N[:, 0], 'music_3': music_B1N}
    grads = jax.grad(lambda params: stage.loss(params, {}, batch, key)[0])(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state

  for i in range(300):
    params, state = step(params, state, i)
  return params


def test_a_target_equal_to_the_condition_is_learned_and_unknown_without_it(learned):
  music_B1N = np.stack(np.meshgrid(range(K), range(K)), axis=-1).reshape(-1, 1, 2)
  batch = {'semantic': music_B1N[:, 0], 'music_3': music_B1N}
  loss = jax.jit(lambda batch: SEMANTIC.make().loss(learned, {}, batch, None)[0])
  assert loss(batch) < 0.1
  hidden = batch | {'music_3': np.full_like(music_B1N, PAD)}
  assert float(loss(hidden)) == pytest.approx(np.log(K), abs=0.15)


def test_sampled_rows_follow_their_own_conditions(learned):
  rows = decoding.extend(
    SEMANTIC.language_model,
    learned,
    jax.random.key(0),
    [np.zeros((0, 1), np.int32)] * 3,
    2,
    crop=2,
    carry=1,
    prefix=lambda b, start, stop: np.zeros((0, 1), np.int32),
    prefix_crop=0,
    rule=Rule(0.0),
    condition=lambda b, frame: np.array([[3, 5], [6, 0], [1, 1]][b]),
  )
  np.testing.assert_array_equal(np.stack(rows)[..., 0], [[3, 5], [6, 0], [1, 1]])


def test_hidden_condition_is_the_model_without_those_ids():
  """The same parameters without the rows of the condition's ids make the unconditional model."""
  params = init(COARSE)
  plain = dataclasses.replace(COARSE, condition=None)
  start, rest = params['embedding'][:1], params['embedding'][1 + 2 * K :]
  plain_params = params | {'embedding': jnp.concatenate([start, rest])}
  rng = np.random.default_rng(0)
  semantic_BP1, codes_BFQ = rng.integers(0, K, (2, 2, 1)), rng.integers(0, K, (2, 4, 2))
  hidden = np.full((2, 1, 2), PAD)
  found = language_model.log_likelihoods(
    COARSE.language_model, params, (hidden, semantic_BP1), codes_BFQ
  )
  expected = language_model.log_likelihoods(
    plain.language_model, plain_params, semantic_BP1, codes_BFQ
  )
  np.testing.assert_allclose(found, expected, atol=1e-5)
  given = language_model.log_likelihoods(
    COARSE.language_model, params, (np.zeros((2, 1, 2), int), semantic_BP1), codes_BFQ
  )
  assert np.abs(given - expected).max() > 0.01


def test_guidance_draws_from_the_extrapolated_logits():
  """Greedy codes are the argmax of u + s (c - u), from the logits of the whole sequence."""
  model, params = COARSE.language_model, jax.tree.map(lambda p: 3 * p, init(COARSE))
  rng = np.random.default_rng(1)
  music, read = rng.integers(0, K, (16, 1, 2)), rng.integers(0, K, (16, 2, 1))
  prompt = rng.integers(0, K, (16, 1, 2))
  free = (np.full_like(music, PAD), read)
  draw = lambda guidance: decoding.sample_targets(
    model,
    params,
    jax.random.key(0),
    (music, read),
    prompt,
    1,
    as_pytree(Rule(0.0)),
    guidance,
    capacity=2,
  )[:, 0]
  # The code after the prompt is level 0 of the next frame.
  whole = np.concatenate([prompt, np.zeros_like(prompt)], axis=1)
  target_logits = jax.jit(language_model.target_logits, static_argnums=0)
  logits = lambda prefix: np.asarray(target_logits(model, params, prefix, whole, None))[:, 1, 0]
  c, u = logits((music, read)), logits(free)
  for scale in (0.0, 1.0, 4.0):
    np.testing.assert_array_equal(draw(scale), np.argmax(u + scale * (c - u), axis=-1))
  np.testing.assert_array_equal(draw(None), np.argmax(c, axis=-1))
  assert (np.argmax(u + 4 * (c - u), axis=-1) != np.argmax(c, axis=-1)).any()


def test_guidance_of_1_draws_the_same_codes_as_no_guidance():
  model, params = COARSE.language_model, init(COARSE)
  rng = np.random.default_rng(1)
  prefix = (rng.integers(0, K, (4, 1, 2)), rng.integers(0, K, (4, 2, 1)))
  prompt = np.full((4, 0, 2), PAD)
  one, none = (
    decoding.sample_targets(
      model, params, jax.random.key(0), prefix, prompt, 8, as_pytree(Rule(1.0)), scale, capacity=8
    )
    for scale in (1.0, None)
  )
  np.testing.assert_array_equal(one, none)


def test_soundstorm_adds_the_vectors_of_the_condition_to_every_frame():
  """The same as semantic vectors that contain them, in a model without a condition."""
  params = init(SOUNDSTORM)
  rng = np.random.default_rng(0)
  semantic_BS, codes_BFQ = rng.integers(0, K, (1, 4)), rng.integers(0, K, (1, 8, 2))
  codes_BFQ[0, 3:] = PAD
  plain = dataclasses.replace(SOUNDSTORM, condition=None)
  table_NKD = params['condition']
  bare = {name: value for name, value in params.items() if name != 'condition'}
  vector_D = table_NKD[0, 5] + table_NKD[1, 2]
  shifted = bare | {'semantic': bare['semantic'] + vector_D}
  logits = jax.jit(soundstorm.logits, static_argnums=0)
  go = lambda config, params, *condition: logits(
    config, params, jnp.asarray(semantic_BS), jnp.asarray(codes_BFQ), jnp.array(1), *condition
  )
  found = go(SOUNDSTORM, params, jnp.array([[5, 2]]))
  np.testing.assert_allclose(found, go(plain, shifted), atol=1e-5)
  for hidden in (jnp.full((1, 2), PAD), None):
    np.testing.assert_allclose(go(SOUNDSTORM, params, hidden), go(plain, bare), atol=1e-5)
  batch = {'semantic': semantic_BS, 'codes': np.maximum(codes_BFQ, 0)}
  batch['music_3'] = np.array([[[5, 2]]])
  _, aux = jax.jit(SOUNDSTORM.make().loss)(params, {}, batch, jax.random.key(0))
  assert np.isfinite(aux.metrics['nats'])


def test_soundstorm_is_guided_by_extrapolation():
  params = jax.tree.map(lambda p: 3 * p, init(SOUNDSTORM))
  rng = np.random.default_rng(2)
  semantic_BS, condition_BN = rng.integers(0, K, (8, 4)), rng.integers(0, K, (8, 2))
  unknown_BFQ = np.full((8, 8, 2), PAD)
  draw = lambda guidance: np.asarray(
    decoding.fill_window(
      SOUNDSTORM,
      params,
      jax.random.key(0),
      semantic_BS,
      unknown_BFQ,
      as_pytree(Rule(0.0)),
      0.0,
      condition_BN,
      guidance,
      iterations=(1,),
    )
  )[..., 0]
  logits = lambda condition: np.asarray(
    jax.jit(soundstorm.logits, static_argnums=0)(
      SOUNDSTORM,
      params,
      jnp.asarray(semantic_BS),
      jnp.asarray(unknown_BFQ),
      jnp.array(0),
      condition,
    )
  )
  c, u = logits(jnp.asarray(condition_BN)), logits(None)
  for scale in (1.0, 3.0):
    np.testing.assert_array_equal(draw(scale), np.argmax(u + scale * (c - u), axis=-1))
  np.testing.assert_array_equal(draw(None), draw(1.0))


@pytest.mark.parametrize(
  'condition, guidance, message',
  [
    (None, 2.0, 'guidance=2.0 needs a condition'),
    (lambda b, frame: np.array([1, K]), 1.0, f'condition holds {K}, outside of 0 to {K - 1}'),
    (lambda b, frame: np.array([1]), 1.0, 'the condition has 1 levels, the model reads 2'),
    (lambda b, frame: np.array([1, 1]), float('nan'), 'guidance=nan'),
  ],
)
def test_wrong_conditions_are_named(condition, guidance, message):
  with pytest.raises(ValueError, match=message):
    decoding.extend(
      SEMANTIC.language_model,
      {},
      jax.random.key(0),
      [np.zeros((0, 1), np.int32)],
      2,
      crop=2,
      carry=1,
      prefix=lambda b, start, stop: np.zeros((0, 1), np.int32),
      prefix_crop=0,
      rule=Rule(0.0),
      condition=condition,
      guidance=guidance,
    )


def test_a_model_without_a_condition_refuses_one():
  plain = dataclasses.replace(SEMANTIC, condition=None)
  with pytest.raises(ValueError, match='the model was trained without'):
    decoding.extend(
      plain.language_model,
      {},
      jax.random.key(0),
      [],
      2,
      crop=2,
      carry=1,
      prefix=lambda b, start, stop: np.zeros((0, 1), np.int32),
      prefix_crop=0,
      rule=Rule(0.0),
      condition=lambda b, frame: np.zeros(2, int),
    )
  with pytest.raises(ValueError, match='the prefix has 1 arrays, the model 2 parts'):
    language_model.log_likelihoods(
      COARSE.language_model, {}, np.zeros((1, 2, 1), int), np.zeros((1, 2, 2), int)
    )


def test_melodies_are_hidden_alone_or_with_all_else():
  condition = Condition(
    levels=3, size=K, windows=3, dropout=0.25, melody_levels=2, melody_dropout=0.5
  )
  batch = {condition.name: np.ones((4000, 1, 3), np.int32)}
  np.testing.assert_array_equal(condition.read(batch, None), batch[condition.name])
  is_hidden_BN = np.asarray(condition.read(batch, jax.random.key(0)))[:, 0] == PAD
  np.testing.assert_array_equal(is_hidden_BN[:, 0], is_hidden_BN[:, 1])
  assert (is_hidden_BN[:, 0] >= is_hidden_BN[:, 2]).all()
  assert is_hidden_BN[:, 2].mean() == pytest.approx(0.25, abs=0.03)
  kept_B = ~is_hidden_BN[:, 2]
  assert is_hidden_BN[kept_B, 0].mean() == pytest.approx(0.5, abs=0.03)
  with pytest.raises(ValueError, match='melody_levels=4'):
    Condition(levels=3, size=K, melody_levels=4)

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen import meta

from audiolm_jax import decoding
from audiolm_jax.sampling import ParallelRule, Rule
from audiolm_jax.stages import soundstorm

TINY = dict(
  num_layers=2,
  num_heads=2,
  width=32,
  mlp_width=64,
  kernel_size=3,
  dropout=0.0,
  dtype='float32',
  remat=False,
)
CONFIG = soundstorm.Config(
  crop_seconds=0.4, num_clusters=8, num_quantizers=3, codebook_size=8, **TINY
)


@pytest.fixture(scope='module')
def params():
  return meta.unbox(jax.jit(lambda key: CONFIG.make().init(key).params)(jax.random.key(0)))


def batch(rows=4, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'semantic': jnp.asarray(rng.integers(0, 8, (rows, 10))),
    'codes': jnp.asarray(rng.integers(0, 8, (rows, 20, 3))),
  }


def test_masks_follow_the_papers_law():
  rows, frames, levels = 30_000, 16, 4
  length_B = np.where(np.arange(rows) % 2, 16, 8)
  valid_BF = np.arange(frames) < length_B[:, None]
  level_B = np.arange(rows) % 3  # the finest one has no finer level, which shows the prompt
  hidden_BFQ, target_BF = map(
    np.asarray,
    soundstorm.draw_masking(jax.random.key(0), jnp.asarray(valid_BF), jnp.asarray(level_B), levels),
  )
  after_BF = np.take_along_axis(hidden_BFQ, level_B[:, None, None] + 1, axis=2)[..., 0]
  prompt_B = after_BF.argmax(axis=1)
  np.testing.assert_array_equal(after_BF, valid_BF & (np.arange(frames) >= prompt_B[:, None]))
  for length in (8, 16):  # uniform from no prompt at all to all but one frame
    share = np.bincount(prompt_B[length_B == length], minlength=frames) / (rows / 2)
    np.testing.assert_allclose(
      share, np.where(np.arange(frames) < length, 1 / length, 0), atol=0.01
    )
  for q in range(levels):
    expected_BF = np.where(
      (level_B < q)[:, None], after_BF, np.where((level_B == q)[:, None], target_BF, False)
    )
    np.testing.assert_array_equal(hidden_BFQ[..., q], expected_BF)
  assert not (target_BF & ~after_BF).any()
  # One ratio a row, p = cos(u): E p = 2 / pi, and two frames of a row are both masked with E p^2 =
  # 1 / 2.
  np.testing.assert_allclose(target_BF[after_BF].mean(), 2 / np.pi, atol=0.01)
  pairs_BF = after_BF[:, :-1] & after_BF[:, 1:]
  np.testing.assert_allclose(
    (target_BF[:, :-1] & target_BF[:, 1:])[pairs_BF].mean(), 0.5, atol=0.01
  )
  # P(p < x) = 1 - 2 / pi arccos(x): of the rows without a prompt, by the share of 16 frames that is
  # masked.
  ratio = target_BF[(prompt_B == 0) & (length_B == 16)].mean(axis=1)
  np.testing.assert_allclose((ratio > 0.5).mean(), 2 / np.pi * np.arccos(0.53), atol=0.05)


def test_levels_are_drawn_by_their_law():
  for skew, expected in ((0.0, [1 / 4] * 4), (1.0, [12 / 25, 6 / 25, 4 / 25, 3 / 25])):
    level_B = np.asarray(soundstorm.draw_levels(jax.random.key(0), 40_000, 4, skew))
    np.testing.assert_allclose(np.bincount(level_B, minlength=4) / 40_000, expected, atol=0.01)


def test_windows_have_any_length_and_all_alike():
  semantic_BS = np.full((20_000, 10), 3, np.int32)
  semantic_BS[::2, 6:] = -1
  short_BS = np.asarray(soundstorm.shorten(jax.random.key(0), jnp.asarray(semantic_BS)))
  length_B = (short_BS >= 0).sum(axis=1)
  np.testing.assert_array_equal(short_BS >= 0, np.arange(10) < length_B[:, None])
  for start, longest in ((0, 6), (1, 10)):
    share = np.bincount(length_B[start::2], minlength=11) / 10_000
    np.testing.assert_allclose(share[1 : longest + 1], 1 / longest, atol=0.02)


def test_the_loss_is_over_the_masked_codes_of_the_level_and_hidden_codes_are_not_seen(
  params, monkeypatch
):
  config = dataclasses.replace(CONFIG, random_length=False)
  data, rng = batch(), np.random.default_rng(3)
  target_BF = rng.random((4, 20)) < 0.4
  after_BF = np.arange(20) >= 5
  target_BF &= after_BF
  levels = []

  def fixed(key, valid_BF, level_B, num_levels):
    levels.append(level_B)
    finer_B1Q = jnp.arange(3) > level_B[:, None, None]
    own_B1Q = jnp.arange(3) == level_B[:, None, None]
    hidden_BFQ = (own_B1Q & target_BF[..., None]) | (finer_B1Q & after_BF[None, :, None])
    return soundstorm.Masking(hidden_BFQ, jnp.asarray(target_BF))

  monkeypatch.setattr(soundstorm, 'draw_masking', fixed)

  @jax.jit
  def loss(codes_BFQ):
    return soundstorm.loss(config, params, {}, data | {'codes': codes_BFQ}, jax.random.key(5))[
      0
    ], levels[-1]

  got, level_B = map(np.asarray, loss(data['codes']))
  logits = jax.jit(
    lambda semantic_BS, seen_BFQ, q: soundstorm.logits(config, params, semantic_BS, seen_BFQ, q)
  )
  assert len(set(level_B)) > 1  # a level for each row
  total, count = 0.0, 0
  for b, q in enumerate(level_B):
    seen_FQ = np.array(data['codes'][b])
    seen_FQ[after_BF, q + 1 :] = -1
    seen_FQ[target_BF[b], q] = -1
    log_FK = jax.nn.log_softmax(
      logits(data['semantic'][b : b + 1], jnp.asarray(seen_FQ[None]), jnp.asarray(q))[0]
    )
    for f in np.flatnonzero(target_BF[b]):
      total, count = total - float(log_FK[f, data['codes'][b, f, q]]), count + 1
  np.testing.assert_allclose(got, total / count, rtol=1e-5)

  def changed(where_BFQ):
    return jnp.where(where_BFQ, (data['codes'] + 1) % 8, data['codes'])

  ahead_B1Q = np.arange(3) - level_B[:, None, None]
  np.testing.assert_allclose(loss(changed((ahead_B1Q > 0) & after_BF[:, None]))[0], got, rtol=1e-6)
  assert abs(loss(changed((ahead_B1Q == 0) & ~target_BF[..., None]))[0] - got) > 1e-4


def test_evaluation_is_one_fixed_number_for_each_level(params):
  data, loss_of = batch(), jax.jit(CONFIG.make().loss)
  loss, aux = loss_of(params, {}, data, None)
  assert set(aux.metrics) == {'nats', 'accuracy'} | {
    f'{n}_level_{q}' for n in ('nats', 'accuracy') for q in range(3)
  }
  by_level = [float(aux.metrics[f'nats_level_{q}']) for q in range(3)]
  assert min(by_level) < float(loss) < max(by_level)
  # untrained, near the uniform distribution
  assert all(abs(nats - np.log(8)) < 1 for nats in by_level)
  assert float(loss_of(params, {}, data, None)[0]) == float(loss)
  first, second = (float(loss_of(params, {}, data, jax.random.key(n))[0]) for n in range(2))
  assert first != second


def test_padding_influences_nothing(params):
  data = batch()
  data['semantic'] = data['semantic'].at[1, 6:].set(-1)
  data['codes'] = data['codes'].at[1, 12:].set(-1).at[:, 4:, 1:].set(-1)
  logits = jax.jit(
    lambda semantic, codes: soundstorm.logits(CONFIG, params, semantic, codes, jnp.array(1))
  )
  whole = logits(data['semantic'], data['codes'])
  alone = logits(data['semantic'][1:2, :6], data['codes'][1:2, :12])
  np.testing.assert_allclose(whole[1, :12], alone[0], atol=1e-5)


def test_paper_size():
  stage = soundstorm.Config().make()
  assert stage.batch['semantic'].shape == (750,) and stage.batch['codes'].shape == (1500, 12)
  params = jax.eval_shape(stage.init, jax.random.key(0)).params
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert abs(count / 1e6 - 316) < 1, count


def structured(rows: int, seed: int, frames: int = 10, size: int = 8):
  """Level 0 is a function of semantic token and voice, level 1 of level 0 at this frame and the one
  before.
  """
  rng = np.random.default_rng(seed)
  semantic_BS = rng.integers(0, size, (rows, frames), dtype=np.int32)
  voice_B1 = rng.integers(0, 4, (rows, 1), dtype=np.int32)
  first_BF = (semantic_BS.repeat(2, axis=1) + 2 * voice_B1) % size
  second_BF = (first_BF + 3 * np.roll(first_BF, 1, axis=1)) % size
  return {
    'semantic': semantic_BS,
    'codes': np.stack([first_BF, second_BF], axis=-1).astype(np.int32),
  }


def test_training_finds_voice_and_structure_and_decoding_uses_them():
  """A predictor that sees one frame alone cannot know the voice, nor the frame before."""
  config = soundstorm.Config(
    crop_seconds=0.4, num_clusters=8, num_quantizers=2, codebook_size=8, **TINY
  )
  stage, optimizer = config.make(), optax.adam(5e-3)
  params = meta.unbox(jax.jit(lambda key: stage.init(key).params)(jax.random.key(0)))

  @jax.jit
  def step(params, opt_state, data, key):
    grads = jax.grad(lambda p: stage.loss(p, {}, data, key)[0])(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state

  opt_state = optimizer.init(params)
  for i in range(400):
    params, opt_state = step(params, opt_state, structured(32, i), jax.random.key(i))

  data = structured(64, 10_000)
  many = structured(2000, 20_000)
  first_BF, second_BF = many['codes'][..., 0], many['codes'][..., 1]
  parity_BF = np.broadcast_to(np.arange(20) % 2, first_BF.shape)
  one_frame = (
    most_frequent(many['semantic'].repeat(2, axis=1), first_BF),
    most_frequent(8 * parity_BF + first_BF, second_BF),
  )
  # voices; every other frame before is new
  np.testing.assert_allclose(one_frame, (1 / 4, (1 + 1 / 8) / 2), atol=0.02)

  metrics = jax.jit(stage.loss)(params, {}, data, None)[1].metrics
  prompt = 8
  rows = decoding.fill(
    config,
    params,
    jax.random.key(0),
    list(data['semantic']),
    [codes_FQ[:prompt] for codes_FQ in data['codes']],
    carry=4,
    how=ParallelRule(Rule(1.0), 1.0, (4, 1)),
  )
  decoded_Q = np.mean(np.stack(rows)[:, prompt:] == data['codes'][:, prompt:], axis=(0, 1))
  for q, baseline in enumerate(one_frame):
    assert float(metrics[f'accuracy_level_{q}']) > baseline + 0.25
    assert decoded_Q[q] > baseline + 0.25


def most_frequent(given_BF, code_BF) -> float:
  """Returns how often the code that is the most frequent for what is given is the right one."""
  counts = np.zeros((given_BF.max() + 1, code_BF.max() + 1), int)
  np.add.at(counts, (given_BF, code_BF), 1)
  return counts.max(axis=1).sum() / counts.sum()


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(semantic_rate=30.0), 'must be a multiple of semantic_rate'),
    (dict(crop_seconds=0.01), 'whole number'),
    (dict(num_quantizers=0), 'num_quantizers=0'),
    (dict(width=48, num_heads=16), 'even whole number'),
    (dict(kernel_size=4), 'odd'),
    (dict(dropout=1.0), 'dropout=1.0: must be at least 0 and below 1'),
    (dict(level_skew=-1.0), 'level_skew=-1.0'),
  ],
)
def test_bad_configs(options, message):
  with pytest.raises(ValueError, match=message):
    soundstorm.Config(**options)

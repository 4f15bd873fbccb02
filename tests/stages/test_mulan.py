import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from audiolm_jax.data import pipeline, texts
from audiolm_jax.nn.log_mel_cnn import LogMelCNNConfig
from audiolm_jax.nn.text_encoder import TextEncoderConfig
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.stages import base, mulan
from audiolm_jax.training import sharding
from tests.test_losses import brute_force_contrastive

NUM_BYTES = 16
CONFIG = mulan.Config(
  audio=LogMelCNNConfig(channels=(8, 8, 16), num_mels=16, crop_seconds=0.25),
  text=TextEncoderConfig(
    num_bytes=NUM_BYTES,
    stride=2,
    kernel_size=4,
    transformer=TransformerConfig(
      num_layers=1, num_heads=2, width=16, mlp_width=16, dtype='float32', remat=False
    ),
  ),
  embedding_dim=8,
  num_texts=2,
  num_masks=1,
  mask_seconds=0.02,
  mask_mels=1,
)
PITCHES = {'tuba': 200, 'cello': 450, 'viola': 1000, 'oboe': 1800, 'flute': 3200, 'bells': 6000}


def pairs(seed):
  """Returns one tone of each pitch in noise, in random order, and two captions that name it."""
  random = np.random.default_rng(seed)
  names = random.permutation(list(PITCHES))
  seconds_T = np.arange(4000) / 16_000
  phases_B1 = random.uniform(0, 2 * np.pi, (len(names), 1))
  pitches_B1 = np.array([[PITCHES[name]] for name in names]) * random.uniform(0.95, 1.05, (6, 1))
  wave_BT = 0.1 * np.sin(2 * np.pi * pitches_B1 * seconds_T + phases_B1)
  captions = [
    [f'{random.choice(["a", "the", "one"])} {name}', f'{name} {random.choice(["solo", "alone"])}']
    for name in names
  ]
  return {
    'waveform': (wave_BT + 0.02 * random.normal(size=wave_BT.shape)).astype(np.float32),
    'texts': np.stack([texts.encode(both, NUM_BYTES) for both in captions]),
  }


@pytest.fixture(scope='module')
def variables():
  return base.Variables(nn.meta.unbox(jax.jit(CONFIG.make().init)(jax.random.key(0)).params), {})


def test_paper_size():
  config = mulan.Config()
  stage = config.make()
  params = jax.eval_shape(stage.init, jax.random.key(0)).params
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  # Their towers have tests of their own: ResNet-50 with 23.5 M, BERT-base's layers with 85 M.
  assert set(params) == {'audio', 'text', 'log_scale'}
  assert 23e6 < count(params['audio']) < 24e6 and 85e6 < count(params['text']) < 91e6
  assert stage.batch['waveform'] == base.Feature((160_000,), np.float32, 16_000)
  assert stage.batch['texts'].shape == (1, 2048)


def test_texts_differ_in_any_byte():
  captions = ['low', 'law', 'low', 'lo', 'wol', '']
  ids_BL = np.concatenate(
    [texts.encode([one], 8) if one else np.full((1, 8), -1) for one in captions]
  )
  wanted_BB = [[one != other for other in captions] for one in captions]
  np.testing.assert_array_equal(mulan.different_texts(jnp.asarray(ids_BL)), wanted_BB)


@pytest.mark.parametrize('form', ['multi_view', 'clip'])
@pytest.mark.parametrize('equal_texts', ['negatives', 'ignored'])
def test_loss_and_metrics_are_their_formulas(variables, form, equal_texts):
  config = mulan.Config(**{**vars(CONFIG), 'form': form, 'equal_texts': equal_texts})
  batch = pairs(0)
  if equal_texts == 'ignored':
    batch['texts'][5] = batch['texts'][0]  # two clips of one text
  batch['texts'][2] = -1  # no text at all
  batch['texts'][3, 0] = -1  # the first one is missing
  params = {**variables.params, 'log_scale': jnp.log(5.0)}
  total, aux = jax.jit(config.make().loss)(params, {}, batch, None)
  first_BL = np.where(np.arange(6)[:, None] == 3, batch['texts'][:, 1], batch['texts'][:, 0])
  audio_BD, text_BD = (
    np.asarray(jax.jit(function, static_argnums=0)(config, variables, x), np.float64)
    for function, x in (
      (mulan.audio_embeddings, batch['waveform']),
      (mulan.text_embeddings, first_BL),
    )
  )
  np.testing.assert_allclose(np.linalg.norm(audio_BD, axis=1), 1, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(text_BD, axis=1), 1, atol=1e-5)
  known = [0, 1, 3, 4, 5]
  s_BN = 5 * audio_BD @ text_BD.T
  text_of = (lambda i: i % 5) if equal_texts == 'ignored' else (lambda i: i)
  expected = brute_force_contrastive(s_BN, known, text_of)[form == 'clip']
  counts = [sum(text_of(i) != text_of(j) for j in known) for i in known]
  chance = np.mean([np.log(2 * n if form == 'multi_view' else n + 1) for n in counts])
  winners = s_BN[np.ix_(known, known)]
  wanted = {
    'loss': expected,
    'above_chance': expected - chance,
    'text_accuracy': np.mean(winners.argmax(axis=1) == np.arange(5)),
    'audio_accuracy': np.mean(winners.argmax(axis=0) == np.arange(5)),
    'scale': 5.0,
    'gap': np.linalg.norm(audio_BD[known].mean(axis=0) - text_BD[known].mean(axis=0)),
  }
  assert aux.metrics.keys() == wanted.keys() and total == aux.metrics['loss']
  if equal_texts == 'ignored':  # a clip is equally similar to equal texts: rounding decides
    wanted.pop('text_accuracy')
  for name, value in wanted.items():
    np.testing.assert_allclose(aux.metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_learns_which_words_belong_to_which_tones(variables):
  stage, optimizer = CONFIG.make(), optax.adam(3e-3)

  @jax.jit
  def step(params, opt_state, batch, key):
    (_, aux), gradient = jax.value_and_grad(stage.loss, has_aux=True)(params, {}, batch, key)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state, aux.metrics

  params, opt_state, history = variables.params, optimizer.init(variables.params), []
  for n in range(120):
    params, opt_state, metrics = step(params, opt_state, pairs(n), jax.random.key(n))
    history.append(jax.device_get(metrics))
  assert abs(history[0]['above_chance']) < 2 and history[-1]['above_chance'] < -2
  recent = [history[-n][name] for n in range(1, 9) for name in ('text_accuracy', 'audio_accuracy')]
  assert np.mean(recent) > 0.8, recent  # chance: 1/6
  evaluate = jax.jit(lambda batch: stage.loss(params, {}, batch, None)[1].metrics)
  fresh = [evaluate(pairs(seed)) for seed in range(1000, 1004)]
  assert np.mean([one['text_accuracy'] for one in fresh]) > 0.8, fresh


def test_a_step_reads_one_of_the_texts_and_evaluation_the_first():
  texts_BCL = np.full((2000, 3, 2), -1, np.int32)
  texts_BCL[:1000, :, 0] = [5, 6, 7]
  texts_BCL[1000:1500, 1:, 0] = [6, 7]
  texts_BCL = jnp.asarray(texts_BCL)
  ids_BL, known_B = mulan.choose_text(texts_BCL, jax.random.key(0))
  np.testing.assert_array_equal(known_B, np.arange(2000) < 1500)
  counts = np.bincount(ids_BL[:1000, 0], minlength=8)
  assert np.abs(counts[5:] - 1000 / 3).max() < 60  # four standard deviations
  counts = np.bincount(ids_BL[1000:1500, 0], minlength=8)
  assert counts[5] == 0 and abs(counts[6] - 250) < 45
  again_BL, _ = mulan.choose_text(texts_BCL, jax.random.key(0))
  np.testing.assert_array_equal(again_BL, ids_BL)
  ids_BL, _ = mulan.choose_text(texts_BCL, None)
  np.testing.assert_array_equal(ids_BL[:, 0], [5] * 1000 + [6] * 500 + [-1] * 500)


def test_examples_of_a_source_become_batches():
  """Of clips of any length, and captions of which some may be missing."""
  features, whole = CONFIG.make().batch, pairs(0)
  source = [
    {'waveform': np.tile(wave_T, 1 + n)[: 3000 + 4000 * n], 'texts': texts_CL}
    for n, (wave_T, texts_CL) in enumerate(zip(whole['waveform'], whole['texts']))
  ]
  source[1]['texts'] = texts.encode(['only one'], NUM_BYTES, num_texts=2)
  batch = next(pipeline.batches(source, features, batch_size=6, seed=0))
  base.check_batch(features, batch, 6)
  with pytest.raises(ValueError, match=r"'texts' has shape \(1, 16\) .* needs \(2, 16\)"):
    pipeline.crop(source[0] | {'texts': texts.encode(['one'], NUM_BYTES)}, features)


def test_the_scale_has_a_limit_that_it_can_leave(variables):
  def scale(log_scale):
    return mulan._scale(CONFIG, {'log_scale': log_scale})

  value, slope = jax.value_and_grad(scale)(jnp.log(500.0))
  np.testing.assert_allclose([value, slope], [100, 100], rtol=1e-5)
  np.testing.assert_allclose(jax.value_and_grad(scale)(jnp.log(20.0)), [20, 20], rtol=1e-5)
  np.testing.assert_allclose(np.exp(-variables.params['log_scale']), 0.07, rtol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_devices_gather_vectors_and_keep_their_rows_of_similarities(dtype):
  """Read in the program for eight devices; that loss and gradients are those of one device is part
  of the contract (test_contract.py).
  """
  sizes = TransformerConfig(num_layers=1, num_heads=2, width=16, mlp_width=16, dtype=dtype)
  config = mulan.Config(
    audio=LogMelCNNConfig(dtype=dtype), text=TextEncoderConfig(transformer=sizes)
  )
  mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2), jax.devices()[:8])
  random = np.random.default_rng(0)
  x_BD, y_BD = random.normal(size=(2, 32, 8)).astype(np.float32)
  rows = sharding.batch_sharding(mesh)
  with sharding.activations(mesh):
    function = jax.jit(lambda x, y: mulan.similarities(config, x, y))
    lowered = function.lower(jax.device_put(x_BD, rows), jax.device_put(y_BD, rows))
  text, compiled = lowered.as_text(), lowered.compile()
  short = {'float32': 'f32', 'bfloat16': 'bf16'}[dtype]
  # What is constrained to be on all devices has the type of the towers.
  assert len(re.findall(rf'\[\{{\}}, \{{\}}\].*tensor<32x8x{short}>', text)) == 2, text
  gathers = re.findall(r'= (\w+\[[\d,]*\]).* all-gather\(', compiled.as_text())
  assert gathers and all('32,32' not in gather for gather in gathers), gathers
  for got_BN, left, right in zip(compiled(x_BD, y_BD), (x_BD, y_BD), (y_BD, x_BD)):
    assert got_BN.sharding.is_equivalent_to(rows, 2) and got_BN.dtype == jnp.float32
    np.testing.assert_allclose(got_BN, left @ right.T, atol=0.1 if short == 'bf16' else 1e-5)


def test_what_cannot_be_trained_is_refused(variables):
  one = {name: array[:1] for name, array in pairs(0).items()}
  with pytest.raises(ValueError, match='batch_size=1: a contrastive loss compares'):
    CONFIG.make().loss(variables.params, {}, one, None)
  with pytest.raises(ValueError, match='temperature=0.005 is a scale of 200, above max_scale=100'):
    mulan.Config(temperature=0.005)
  with pytest.raises(ValueError, match="form='triplet': must be one of 'multi_view', 'clip'"):
    mulan.Config(form='triplet')

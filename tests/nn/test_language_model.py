"""Likelihoods, hidden states and attention weights, by the same model written in numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen import meta

from audiolm_jax import tokens
from audiolm_jax.errors import UserError
from audiolm_jax.nn import language_model, transformer
from tests.nn.test_transformer import MODEL, TINY, sinusoids_of, t5_bucket

PREFIX = np.array([[[3], [0], [5]], [[1], [4], [tokens.PAD]]], np.int32)
CODES = np.random.default_rng(0).integers(0, 5, (2, 3, 2)).astype(np.int32)
CODES[1, 2] = tokens.PAD
LENGTH = 3 + 1 + 6
DEPTH = dataclasses.replace(TINY, width=8, num_layers=1)
DEEP = dataclasses.replace(MODEL, depth=DEPTH)
ALIGNED = dataclasses.replace(MODEL, aligned=True)
DEEP_ALIGNED = dataclasses.replace(DEEP, aligned=True)


def far_from_uniform(model):
  """Returns parameters of probabilities far from uniform."""
  init = jax.jit(functools.partial(language_model.init, model))
  return jax.tree.map(lambda p: p * 2, meta.unbox(init(jax.random.key(0))))


@pytest.fixture(scope='module')
def params():
  return far_from_uniform(MODEL)


@pytest.fixture(scope='module')
def deep_params():
  return far_from_uniform(DEEP)


def rows_by_hand(prefix_PN, codes_FQ):
  """Returns ids and times of one row without PAD: prefix of 6 ids, START, two levels of 5 ids."""
  prefix, codes = prefix_PN[prefix_PN >= 0], codes_FQ[codes_FQ >= 0]
  vocabulary = MODEL.vocabulary
  of_prefix = [vocabulary.offsets[0] + code for code in prefix]
  of_codes = [vocabulary.target_offset + 5 * (n % 2) + code for n, code in enumerate(codes)]
  times = [n / 25 for n in range(len(prefix))] + [(n // 2) / 50 for n in range(len(codes) + 1)]
  return np.array([*of_prefix, tokens.START, *of_codes]), np.array(times)


def softmax(x):
  return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def norm(x, layer):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer['scale']


def by_hand(params, ids_L, times_L):
  """Returns hidden states, attention weights and log-probabilities of every next code."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  x_LD = params['embedding'][ids_L]
  x_LD = x_LD + sinusoids_of(times_L, x_LD.shape[1]) @ params['time']['kernel']
  states, weights = layers_by_hand(params, x_LD)
  logits_LQK = (norm(states[-1], params['final_norm']) @ params['output'].T).reshape(-1, 2, 5)
  return states, weights, np.log(softmax(logits_LQK))


def layers_by_hand(params, x_LD):
  length = len(x_LD)
  distance = np.arange(length)[:, None] - np.arange(length)
  bucket = np.vectorize(lambda d: t5_bucket(d, TINY.num_buckets, TINY.max_distance))(distance)
  bias_HLL = params['relative_bias'][bucket].transpose(2, 0, 1)
  gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  states, weights = [x_LD], []
  for n in range(len(params['layers']['mlp_norm']['scale'])):
    layer = jax.tree.map(lambda p, n=n: p[n], params['layers'])
    of = layer['attention']
    into = norm(x_LD, layer['attention_norm'])
    query, key, value = (
      np.einsum('ld,dhk->hlk', into, of[name]['kernel']) for name in ('query', 'key', 'value')
    )
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1]) + bias_HLL
    weights.append(softmax(np.where(distance >= 0, scores, -np.inf)))
    x_LD = x_LD + np.einsum('hlk,hkd->ld', weights[-1] @ value, of['output']['kernel'])
    into = norm(x_LD, layer['mlp_norm'])
    x_LD = x_LD + gelu(into @ layer['mlp_in']['kernel']) @ layer['mlp_out']['kernel']
    states.append(x_LD)
  return np.stack(states), np.stack(weights)


def deep_log_probs_by_hand(params, prefix_PN, codes_FQ):
  """Returns the log-probabilities [F, Q, K] of the codes of a row without PAD, by a depth model."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  vocabulary, depth = MODEL.vocabulary, params['depth']
  prefix = prefix_PN[prefix_PN >= 0]
  columns = [[vocabulary.offsets[0] + code] for code in prefix] + [[tokens.START]]
  columns += [[vocabulary.target_offset + a, vocabulary.target_offset + 5 + b] for a, b in codes_FQ]
  times = [n / 25 for n in range(len(prefix))] + [n / 50 for n in range(len(codes_FQ) + 1)]
  x_LD = np.stack([params['embedding'][ids].sum(axis=0) for ids in columns])
  x_LD = x_LD + sinusoids_of(np.array(times), x_LD.shape[1]) @ params['time']['kernel']
  hidden_LD = norm(layers_by_hand(params, x_LD)[0][-1], params['final_norm'])
  found = []
  for hidden_D, (first, _) in zip(hidden_LD[len(prefix) :], codes_FQ):
    x_QD = depth['embedding'][[0, 1 + first]] + hidden_D @ depth['given']['kernel']
    x_QD = norm(layers_by_hand(depth, x_QD)[0][-1], depth['final_norm'])
    logits_QK = np.stack([x_QD[q] @ depth['output'][5 * q : 5 * q + 5].T for q in range(2)])
    found.append(np.log(softmax(logits_QK)))
  return np.stack(found)


@pytest.mark.parametrize('row', [0, 1])
def test_likelihoods_of_a_depth_model_are_those_of_numpy(deep_params, row):
  codes_FQ = CODES[row][CODES[row, :, 0] >= 0]
  expected_FQK = deep_log_probs_by_hand(deep_params, PREFIX[row], codes_FQ)
  expected = np.take_along_axis(expected_FQK, codes_FQ[..., None], axis=-1)[..., 0]
  found = np.asarray(language_model.log_likelihoods(DEEP, deep_params, PREFIX, CODES))
  np.testing.assert_allclose(found[row, : len(codes_FQ)], expected, atol=1e-4)
  assert not np.any(found[CODES < 0])


@pytest.mark.parametrize(
  'model', [DEEP, ALIGNED, DEEP_ALIGNED], ids=['deep', 'aligned', 'deep_aligned']
)
def test_cached_steps_equal_whole_rows(model):
  """Rows have read 1 and 2 frames: other columns, same numbers; two more frames each."""
  all_params, parts = far_from_uniform(model), model.codes_per_column
  rng = np.random.default_rng(1)
  codes, read = rng.integers(0, 5, (2, 4, 2)), np.array([1, 2])
  prefix = jnp.asarray(PREFIX)
  target_logits = jax.jit(functools.partial(language_model.target_logits, model, key=None))
  whole = target_logits(all_params, prefix, jnp.asarray(codes))
  whole, flat = (np.reshape(x, (2, 8, *x.shape[3:])) for x in (whole, codes))
  context = np.where(np.arange(2)[:, None] < read[:, None, None], codes[:, :2], tokens.PAD)

  @jax.jit
  def start(params, context):
    ids, times = tokens.left_pad(*language_model.sequence(model, prefix, context))
    params = language_model.decoding_params(model, params)
    columns = ids.shape[1] + 4 // parts
    return ids, params, language_model.prefill(model, params, ids, times, columns)

  ids, params, (got, cache) = start(all_params, jnp.asarray(context))
  assert ids.shape[1] == 4 + 4 // parts and np.all(ids[0, 0] == tokens.PAD)
  rows, first = np.arange(2), 2 * read
  steps = [jax.jit(step) for step in language_model.turn(model, prefix)]
  for n in range(4):
    np.testing.assert_allclose(got, np.asarray(whole)[rows, first + n], atol=1e-4)
    code_B, first_B = jnp.asarray(flat[rows, first + n]), jnp.asarray(first)
    got, cache = steps[n % parts](params, cache, code_B, first_B, jnp.asarray(n))
  columns = cache if model.depth is None else cache.columns
  assert int(columns.index) == columns.valid_BN.shape[1]


def test_a_column_has_the_token_of_the_time_it_predicts():
  """A token lasts two frames; a column predicts the frame after its own."""
  ids, _ = language_model.sequence(DEEP_ALIGNED, jnp.asarray(PREFIX), jnp.asarray(CODES))
  offset = MODEL.vocabulary.offsets[0]
  np.testing.assert_array_equal(ids[0, 3:, 2], np.array([3, 3, 0, 0]) + offset)
  expected = [1 + offset, 1 + offset, 4 + offset, tokens.PAD]  # the last frame does not exist
  np.testing.assert_array_equal(ids[1, 3:, 2], expected)
  assert np.all(np.asarray(ids)[:, :3, 1:] == tokens.PAD)
  plain, _ = language_model.sequence(DEEP, jnp.asarray(PREFIX), jnp.asarray(CODES))
  np.testing.assert_array_equal(ids[..., :2], plain)
  flat, _ = language_model.sequence(ALIGNED, jnp.asarray(PREFIX), jnp.asarray(CODES))
  np.testing.assert_array_equal(flat[0, 3:, 1], np.array([3, 3, 3, 3, 0, 0, 0]) + offset)


def test_codes_that_repeat_the_token_of_their_time_are_learned_at_once():
  rng = np.random.default_rng(0)
  prefix = rng.integers(0, 5, (256, 12, 1))
  codes = np.repeat(prefix, 2, axis=1).repeat(2, axis=2)
  last = {}
  for model in (DEEP, DEEP_ALIGNED):
    optimizer = optax.adam(1e-2)
    params = meta.unbox(language_model.init(model, jax.random.key(0)))

    @jax.jit
    def step(params, state, prefix, codes, model=model, optimizer=optimizer):
      loss = lambda params: language_model.loss(model, params, prefix, codes, None)[0]
      nats, gradient = jax.value_and_grad(loss)(params)
      updates, state = optimizer.update(gradient, state)
      return optax.apply_updates(params, updates), state, nats

    state = optimizer.init(params)
    for n in range(60):
      rows = np.arange(16 * n, 16 * n + 16) % 256
      params, state, nats = step(params, state, prefix[rows], codes[rows])
    last[model.aligned] = float(nats)
  assert last[True] < 0.1 < 0.3 < last[False]


def test_alignment_needs_a_part_with_a_rate():
  with pytest.raises(UserError, match='aligned=True needs a prefix'):
    dataclasses.replace(ALIGNED, vocabulary=dataclasses.replace(MODEL.vocabulary, parts=()))


def test_a_depth_model_leaves_out_codes_in_training_and_drops_out(deep_params):
  target_logits = jax.jit(language_model.target_logits, static_argnums=0)

  def logits(codes, **changed):
    model = dataclasses.replace(DEEP, **changed)
    prefix, codes = jnp.asarray(PREFIX), jnp.asarray(codes)
    return np.asarray(target_logits(model, deep_params, prefix, codes, jax.random.key(0)))

  other = (CODES + 1) % 5
  np.testing.assert_array_equal(*(logits(c, code_dropout=1 - 1e-6) for c in (CODES, other)))
  quiet = dataclasses.replace(DEPTH, dropout_rate=0.0)
  assert np.abs(logits(CODES) - logits(CODES, depth=quiet)).max() > 1e-3


@pytest.mark.parametrize('row', [0, 1])
def test_all_agree_with_a_transformer_of_numpy(params, row):
  """Row 1 has PAD in its prefix and its codes: in the batch it is shifted to the right."""
  ids_L, times_L = rows_by_hand(PREFIX[row], CODES[row])
  states, weights, log_probs_LQK = by_hand(params, ids_L, times_L)
  first = np.sum(PREFIX[row] < 0)  # column of the row's first token
  there = slice(first, first + len(ids_L))
  found = language_model.hidden_states(MODEL, params, PREFIX, CODES)
  assert found.shape == (3, 2, LENGTH, 16)
  np.testing.assert_allclose(found[:, row, there], states, atol=1e-4)
  found = language_model.attention_weights(MODEL, params, PREFIX, CODES)
  assert found.shape == (2, 2, 2, LENGTH, LENGTH)
  np.testing.assert_allclose(found[:, row, :, there, there], weights, atol=1e-5)
  assert not np.any(found[:, row, :, there, :first])
  codes = CODES[row][CODES[row] >= 0]
  start = len(ids_L) - len(codes) - 1
  expected = [log_probs_LQK[start + n, n % 2, code] for n, code in enumerate(codes)]
  found = language_model.log_likelihoods(MODEL, params, PREFIX, CODES)
  assert found.shape == CODES.shape
  np.testing.assert_allclose(found[row].reshape(-1)[: len(codes)], expected, atol=1e-4)
  assert not np.any(np.asarray(found)[CODES < 0])


def test_stacked_and_separate_layers_give_the_same(params):
  separate = transformer.unstack(TINY, params)
  for function in (language_model.log_likelihoods, language_model.hidden_states):
    one, other = (function(MODEL, p, PREFIX, CODES) for p in (params, separate))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_layers_are_chosen_in_the_order_asked_for(params):
  every = language_model.hidden_states(MODEL, params, PREFIX, CODES)
  some = language_model.hidden_states(MODEL, params, PREFIX, CODES, layers=[2, 0])
  np.testing.assert_allclose(some, every[jnp.array([2, 0])], atol=1e-6)


def test_the_scan_stacks_what_its_layers_sow(params):
  ids_BL, times_BL = language_model.sequence(MODEL, jnp.asarray(PREFIX), jnp.asarray(CODES))
  apply = jax.jit(lambda p: MODEL.module().apply(p, ids_BL, times_BL, mutable='intermediates'))
  _, seen = apply({'params': params})
  stacked = seen['intermediates']['layers']['hidden'][0]
  expected = language_model.hidden_states(MODEL, params, PREFIX, CODES, layers=(1, 2))
  np.testing.assert_allclose(stacked, expected, atol=1e-5)


def test_no_prefix_is_a_prefix_of_no_frames(params):
  empty = np.zeros((2, 0, 1), np.int32)
  one, other = (language_model.log_likelihoods(MODEL, params, p, CODES) for p in (None, empty))
  np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(codes_BFQ=CODES[..., :1]), r'codes_BFQ has shape .*: the model has 2 levels there'),
    (dict(codes_BFQ=CODES + 5), r'codes_BFQ holds 9, outside of 0 to 4'),
    (dict(prefix=np.zeros((2, 3, 2), np.int32)), r'prefix_BPN has shape .* 1 levels there'),
    (dict(layers=(3,)), r'layers=\(3,\): give one or more of 0 to 2'),
    (dict(layers=()), r'layers=\(\): give one or more of 0 to 2'),
  ],
)
def test_wrong_arguments_are_named(params, arguments, message):
  right = dict(prefix=PREFIX, codes_BFQ=CODES)
  with pytest.raises(ValueError, match=message):
    language_model.hidden_states(MODEL, params, **(right | arguments))

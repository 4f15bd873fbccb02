"""Likelihoods, hidden states and attention weights, by the same model written in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from audiolm_jax import tokens
from audiolm_jax.nn import language_model, transformer
from tests.nn.test_transformer import MODEL, TINY, sinusoids_of, t5_bucket

PREFIX = np.array([[[3], [0], [5]], [[1], [4], [tokens.PAD]]], np.int32)
CODES = np.random.default_rng(0).integers(0, 5, (2, 3, 2)).astype(np.int32)
CODES[1, 2] = tokens.PAD
LENGTH = 3 + 1 + 6


@pytest.fixture(scope='module')
def params():
  made = meta.unbox(language_model.init(MODEL, jax.random.key(0)))
  return jax.tree.map(lambda p: p * 2, made)  # probabilities far from uniform


def rows_by_hand(prefix_PN, codes_FQ):
  """Returns ids and times of one row without PAD: prefix of 6 ids, START, two levels of 5 ids."""
  prefix, codes = prefix_PN[prefix_PN >= 0], codes_FQ[codes_FQ >= 0]
  vocabulary = MODEL.vocabulary
  of_prefix = [vocabulary.offsets[0] + code for code in prefix]
  of_codes = [vocabulary.target_offset + 5 * (n % 2) + code for n, code in enumerate(codes)]
  times = [n / 25 for n in range(len(prefix))] + [(n // 2) / 50 for n in range(len(codes) + 1)]
  return np.array([*of_prefix, tokens.START, *of_codes]), np.array(times)


def by_hand(params, ids_L, times_L):
  """Returns hidden states, attention weights and log-probabilities of every next code."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  length = len(ids_L)
  distance = np.arange(length)[:, None] - np.arange(length)
  bucket = np.vectorize(lambda d: t5_bucket(d, TINY.num_buckets, TINY.max_distance))(distance)
  bias_HLL = params['relative_bias'][bucket].transpose(2, 0, 1)
  softmax = lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
  norm = lambda x, layer: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer['scale']
  gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  x_LD = params['embedding'][ids_L]
  x_LD = x_LD + sinusoids_of(times_L, x_LD.shape[1]) @ params['time']['kernel']
  states, weights = [x_LD], []
  for n in range(TINY.num_layers):
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
  logits_LQK = (norm(x_LD, params['final_norm']) @ params['output'].T).reshape(length, 2, 5)
  return np.stack(states), np.stack(weights), np.log(softmax(logits_LQK))


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

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import sampling
from audiolm_jax.sampling import Rule


def brute_force(logits, temperature, top_k, top_p):
  probability = np.exp(logits / temperature - np.max(logits / temperature))
  probability /= probability.sum()
  order = np.argsort(-probability)
  keep = order if top_k is None else order[:top_k]
  if top_p is not None:
    kept, total, mass = [], 0.0, probability[keep].sum()
    for token in keep:
      kept.append(token)
      total += probability[token] / mass
      if total >= top_p:
        break
    keep = kept
  return set(int(token) for token in keep)


@pytest.mark.parametrize('top_k, top_p', [(3, None), (None, 0.7), (4, 0.6), (1, 0.1), (None, None)])
def test_filters_keep_what_brute_force_keeps(top_k, top_p):
  logits = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32) * 2
  got = np.asarray(sampling.filtered_logits(jnp.asarray(logits), Rule(0.8, top_k, top_p)))
  for row, kept in zip(logits, got, strict=True):
    assert set(np.flatnonzero(np.isfinite(kept))) == brute_force(row, 0.8, top_k, top_p)


def test_frequencies_are_the_softmax_and_zero_is_greedy():
  logits = jnp.array([0.0, 1.0, 2.0, -1.0])
  many = jnp.tile(logits, (20_000, 1))
  draw = jax.jit(sampling.draw)
  frequency = np.bincount(draw(jax.random.key(0), many, Rule(0.7)), minlength=4) / 20_000
  np.testing.assert_allclose(frequency, jax.nn.softmax(logits / 0.7), atol=0.015)
  assert (np.asarray(draw(jax.random.key(0), many, Rule(0.0))) == 2).all()
  assert draw._cache_size() == 1  # other values, same compilation


def test_ties_do_not_widen_top_k():
  got = sampling.filtered_logits(jnp.zeros((1, 5)), Rule(1.0, 2))
  assert int(jnp.isfinite(got).sum()) == 2


def test_the_loop_feeds_tokens_back_and_stops():
  step = lambda carry, token_B, n: (jax.nn.one_hot((token_B + carry) % 7, 7), carry)
  run = jax.jit(
      lambda n: sampling.autoregress(step, jax.nn.one_hot(jnp.array([1, 2]), 7), 2, jax.random.key(0), Rule(0.0), n, 6)
  )
  np.testing.assert_array_equal(run(4), [[1, 3, 5, 0, -1, -1], [2, 4, 6, 1, -1, -1]])
  np.testing.assert_array_equal(run(0), np.full((2, 6), -1))
  assert run._cache_size() == 1


@pytest.mark.parametrize('rule', [Rule(-1.0), Rule(1.0, 0), Rule(1.0, None, 0.0)])
def test_bad_rules(rule):
  with pytest.raises(ValueError):
    sampling.check(rule)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

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
    lambda n: sampling.autoregress(
      (step,), jax.nn.one_hot(jnp.array([1, 2]), 7), 2, jax.random.key(0), Rule(0.0), n, 6
    )
  )
  np.testing.assert_array_equal(run(4), [[1, 3, 5, 0, -1, -1], [2, 4, 6, 1, -1, -1]])
  np.testing.assert_array_equal(run(0), np.full((2, 6), -1))
  assert run._cache_size() == 1


@pytest.mark.parametrize(
  'arguments, message',
  [
    ((-1.0,), 'temperature=-1.0: must be'),
    ((float('nan'),), 'temperature=nan'),
    ((float('inf'),), 'temperature=inf'),
    ((1.0, 0), 'top_k=0: must be a whole number of at least 1'),
    ((1.0, True), 'top_k=True'),
    ((1.0, None, 0.0), 'top_p=0.0: must be above 0, and at most 1'),
  ],
)
def test_rules_refuse_what_cannot_draw_when_they_are_made(arguments, message):
  with pytest.raises(ValueError, match=message):
    Rule(*arguments)


def maskgit(logits, tokens_FQ, iterations):
  """MaskGIT level by level without noise, one row, most probable tokens: a plain loop."""
  tokens_FQ, passes = tokens_FQ.copy(), 0
  for level, count in enumerate(iterations):
    first = int((tokens_FQ[:, level] < 0).sum())
    for i in range(1, count + 1):
      log_FV = np.log(
        np.exp(logits(tokens_FQ, level)) / np.exp(logits(tokens_FQ, level)).sum(-1, keepdims=True)
      )
      unknown = np.flatnonzero(tokens_FQ[:, level] < 0)
      hidden = (
        max(1, min(len(unknown) - 1, int(first * np.cos(np.pi / 2 * i / count))))
        if i < count
        else 0
      )
      by_confidence = sorted(unknown, key=lambda f: log_FV[f].max())
      for f in by_confidence[hidden:]:
        tokens_FQ[f, level] = log_FV[f].argmax()
      passes += 1
  return tokens_FQ, passes


def context_logits(V, Q, F):
  """Logits of a frame that depend on every token known so far, one level after another."""
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(Q, F, V, Q, F)).astype(np.float32)

  def logits(tokens_FQ, level):
    return (weights[level] * (tokens_FQ.T + 2.0)).sum((-2, -1)) / V

  return logits, weights


def test_parallel_decoding_is_maskgit_level_by_level():
  V, Q, F, iterations = 5, 3, 11, (4, 1, 3)
  logits, weights = context_logits(V, Q, F)
  start_BFQ = np.full((2, F, Q), -1, np.int32)
  start_BFQ[1, :4] = np.random.default_rng(1).integers(0, V, (4, Q))  # a prompt
  start_BFQ[1, 6, 1] = 2  # and one token of a single level
  calls = []

  def batched(tokens_BFQ, level):
    jax.debug.callback(lambda level: calls.append(int(level)), level, ordered=True)
    known_BQF = jnp.swapaxes(tokens_BFQ, 1, 2) + 2.0
    return jnp.einsum('fvqg,bqg->bfv', jnp.asarray(weights)[level], known_BQF) / V

  got = jax.jit(
    lambda start: sampling.decode_masked(
      batched,
      start,
      jnp.ones((2, F), bool),
      jax.random.key(0),
      Rule(0.0),
      noise=0.0,
      iterations=iterations,
    )
  )(start_BFQ)
  jax.effects_barrier()
  for row_FQ, start_FQ in zip(np.asarray(got), start_BFQ, strict=True):
    expected_FQ, passes = maskgit(logits, start_FQ, iterations)
    np.testing.assert_array_equal(row_FQ, expected_FQ)
    np.testing.assert_array_equal(row_FQ[start_FQ >= 0], start_FQ[start_FQ >= 0])
  assert passes == len(calls) and calls == [0] * 4 + [1] + [2] * 3


def test_the_papers_schedule_takes_27_passes_and_an_oracle_is_decoded_exactly():
  """The oracle knows a level's tokens only where all coarser ones are right: any other order goes
  wrong.
  """
  B, F, Q, V = 2, 40, 12, 6
  answer_BFQ = np.random.default_rng(0).integers(0, V, (B, F, Q), dtype=np.int32)
  calls = []

  def oracle(tokens_BFQ, level):
    jax.debug.callback(calls.append, level, ordered=True)
    right_BF = jnp.all(
      (tokens_BFQ == answer_BFQ) | (jnp.arange(Q) >= level), axis=(1, 2), keepdims=True
    )[..., 0]
    token_BF = jnp.where(
      right_BF, jnp.asarray(answer_BFQ)[..., level], (jnp.asarray(answer_BFQ)[..., level] + 1) % V
    )
    return 50 * jax.nn.one_hot(token_BF, V)

  how = sampling.ParallelRule()
  got = sampling.decode_masked(
    oracle,
    jnp.full((B, F, Q), -1, jnp.int32),
    jnp.ones((B, F), bool),
    jax.random.key(0),
    how.rule,
    noise=how.noise,
    iterations=how.iterations,
  )
  jax.effects_barrier()
  np.testing.assert_array_equal(got, answer_BFQ)
  assert len(calls) == 27


@pytest.mark.parametrize('noise', [0.0, 4.5])
def test_each_pass_keeps_its_share_and_never_touches_what_is_known(noise):
  """What is known before each pass is what the schedule says, for every row by its own number of
  unknown tokens.
  """
  F, V, count = 50, 7, 8
  start_BF1 = np.full((4, F, 1), -1, np.int32)
  start_BF1[1, :30] = 3
  start_BF1[2, :48] = 4
  valid_BF = np.ones((4, F), bool)
  valid_BF[3, 20:] = False
  seen = []

  def logits(tokens_BFQ, level):
    jax.debug.callback(
      lambda tokens_BFQ: seen.append(np.array(tokens_BFQ[..., 0])), tokens_BFQ, ordered=True
    )
    return jax.random.normal(jax.random.key(3), (4, F, V))

  got = sampling.decode_masked(
    logits,
    jnp.asarray(start_BF1),
    jnp.asarray(valid_BF),
    jax.random.key(0),
    Rule(1.0),
    noise=noise,
    iterations=(count,),
  )
  jax.effects_barrier()
  assert len(seen) == count
  seen.append(np.asarray(got)[..., 0])
  for i, (before_BF, after_BF) in enumerate(zip(seen, seen[1:], strict=False), start=1):
    np.testing.assert_array_equal(after_BF[before_BF >= 0], before_BF[before_BF >= 0])
    for b, first in enumerate((50, 20, 2, 20)):
      unknown = int(((before_BF[b] < 0) & valid_BF[b]).sum())
      hidden = (
        max(1, min(unknown - 1, int(first * np.cos(np.pi / 2 * i / count)))) if i < count else 0
      )
      assert ((after_BF[b] < 0) & valid_BF[b]).sum() == hidden, (i, b)
  assert (seen[-1][3, 20:] == -1).all() and (seen[-1][valid_BF] >= 0).all()


def test_noise_falls_with_the_share_of_the_passes_and_the_last_has_none():
  """Which codes a pass keeps is a race: Gumbel noise of scale n keeps a frame of probability p
  before others at the rate p ** (1 / n). Of many frames, a share 1 - exp(-rate t) of each kind is
  kept at the time t at which as many are kept as the schedule says.
  """
  F, noise, seen = 20_000, 1.5, []
  probability_F = np.where(np.arange(F) % 2, 0.9, 0.6)

  def logits(tokens_BFQ, level):
    jax.debug.callback(lambda x: seen.append(np.array(x[0, :, 0])), tokens_BFQ, ordered=True)
    return jnp.log(jnp.asarray(np.stack([probability_F, 1 - probability_F], -1), jnp.float32))[None]

  unknown, valid = jnp.full((1, F, 1), -1, jnp.int32), jnp.ones((1, F), bool)
  got = sampling.decode_masked(
    logits, unknown, valid, jax.random.key(0), Rule(0.0), noise=noise, iterations=(3,)
  )
  jax.effects_barrier()
  hidden_by_kind = np.ones(2)
  for number, before_F in enumerate(seen[1:], start=1):
    rate_K = np.array([0.6, 0.9]) ** (1 / (noise * (1 - number / 3)))
    left = lambda t: (hidden_by_kind * np.exp(-rate_K * t)).mean() - np.cos(np.pi / 6 * number)
    hidden_by_kind = hidden_by_kind * np.exp(-rate_K * optimize.brentq(left, 0, 50))
    found = [(before_F[kind::2] < 0).mean() for kind in (0, 1)]
    np.testing.assert_allclose(found, hidden_by_kind, atol=0.01)
  assert len(seen) == 3 and abs(np.subtract(*hidden_by_kind)) > 0.05
  np.testing.assert_array_equal(np.asarray(got)[0, :, 0], 0)


def test_the_last_pass_is_greedy_and_noise_changes_which_tokens_are_kept():
  logits = lambda tokens_BFQ, level: jnp.broadcast_to(jnp.array([0.0, 0.3, 0.1]), (1, 2000, 3))
  decode = lambda rule, noise, iterations: np.asarray(
    sampling.decode_masked(
      logits,
      jnp.full((1, 2000, 1), -1, jnp.int32),
      jnp.ones((1, 2000), bool),
      jax.random.key(1),
      rule,
      noise=noise,
      iterations=iterations,
    )
  )[0, :, 0]
  assert (decode(Rule(1.0), 4.5, (1,)) == 1).all()
  frequency = lambda tokens_F: np.bincount(tokens_F, minlength=3) / len(tokens_F)
  # Two passes: 1 - cos(pi / 4) of the tokens come from the first. Without noise they are the most
  # probable drawn (token 1 was drawn often enough); with much noise they follow the softmax.
  early = 1 - np.floor(2000 * np.cos(np.pi / 4)) / 2000
  noisy = frequency(decode(Rule(1.0), 1e6, (2,)))
  expected = (
    early * np.asarray(jax.nn.softmax(jnp.array([0.0, 0.3, 0.1]))) + (1 - early) * np.eye(3)[1]
  )
  np.testing.assert_allclose(noisy, expected, atol=0.03)
  assert (decode(Rule(1.0), 0.0, (2,)) == 1).all()


@pytest.mark.parametrize(
  'how, message',
  [
    (lambda: sampling.ParallelRule(iterations=()), 'iterations'),
    (lambda: sampling.ParallelRule(iterations=(16, 0)), 'iterations'),
    (lambda: sampling.ParallelRule(iterations=(1, 1, 1, 1)), 'each of the 3 levels'),
    (lambda: sampling.ParallelRule(noise=-1.0), 'noise'),
    (lambda: sampling.ParallelRule(rule=Rule(-1.0)), 'temperature'),
  ],
)
def test_bad_parallel_rules(how, message):
  with pytest.raises(ValueError, match=message):
    sampling.check_parallel(how(), 3)

import numpy as np

from audiolm_jax.metrics import conditional


def test_nats_reach_the_conditional_entropy_and_accuracy_the_mode():
  rng = np.random.default_rng(0)
  law_GV = rng.dirichlet(np.ones(5), size=3)
  given_N = rng.integers(0, 3, 200_000)
  code_N = (rng.random(len(given_N))[:, None] > np.cumsum(law_GV, axis=1)[given_N]).sum(axis=1)
  fitted_GV = conditional.probabilities(conditional.fit(given_N[::2], code_N[::2], 3, 5))
  np.testing.assert_allclose(fitted_GV, law_GV, atol=0.01)
  nats, accuracy = conditional.scores(fitted_GV, given_N[1::2], code_N[1::2])
  np.testing.assert_allclose(nats, -(law_GV * np.log(law_GV)).sum(axis=1).mean(), atol=0.01)
  np.testing.assert_allclose(accuracy, law_GV.max(axis=1).mean(), atol=0.01)


def test_what_was_never_seen_has_the_unigram():
  counts_GV = conditional.fit(np.array([0, 0, 0]), np.array([1, 1, 0]), 2, 3)
  np.testing.assert_array_equal(counts_GV, [[1, 2, 0], [0, 0, 0]])
  unigram_V = np.array([2, 3, 1]) / 6
  probability_GV = conditional.probabilities(counts_GV, concentration=2.0)
  np.testing.assert_allclose(probability_GV, [(counts_GV[0] + 2 * unigram_V) / 5, unigram_V])

import numpy as np

from audiolm_jax.metrics import language


def test_unigram_is_the_entropy_on_its_own_data():
  codes = np.array([[[0, 1], [0, 2], [1, 1], [0, 1]]])
  counts = language.fit(codes, 3)
  entropy = lambda p: -sum(x * np.log(x) for x in p)
  expected = (entropy([0.75, 0.25]) + entropy([0.75, 0.25])) / 2
  np.testing.assert_allclose(language.unigram_nats(counts, codes, smoothing=1e-9), expected, rtol=1e-5)


def test_bigram_equals_counting_by_hand_and_skips_pad():
  codes = np.array([[[0], [1], [0], [1], [-1]]])
  counts = language.fit(codes, 2)
  # START->0: 1 of 1, 0->1: 2 of 2, 1->0: 1 of 1; unigram (2+1)/(4+2) = 1/2 for both.
  expected = -np.mean(np.log([(1 + 0.5) / 2, (2 + 0.5) / 3, (1 + 0.5) / 2, (2 + 0.5) / 3]))
  np.testing.assert_allclose(language.bigram_nats(counts, codes, concentration=1.0), expected, rtol=1e-5)

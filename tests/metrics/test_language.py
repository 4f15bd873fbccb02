import numpy as np
import pytest

from audiolm_jax.metrics import language


def test_unigram_is_the_entropy_on_its_own_data():
  codes = np.array([[[0, 1], [0, 2], [1, 1], [0, 1]]])
  counts = language.fit(codes, 3)
  entropy = lambda p: -sum(x * np.log(x) for x in p)
  expected = (entropy([0.75, 0.25]) + entropy([0.75, 0.25])) / 2
  np.testing.assert_allclose(
    language.unigram_nats(counts, codes, smoothing=1e-9), expected, rtol=1e-5
  )


def test_bigram_equals_counting_by_hand_and_skips_pad():
  codes = np.array([[[0], [1], [0], [1], [-1]]])
  counts = language.fit(codes, 2)
  # START->0: 1 of 1, 0->1: 2 of 2, 1->0: 1 of 1; unigram (2+1)/(4+2) = 1/2 for both.
  expected = -np.mean(np.log([(1 + 0.5) / 2, (2 + 0.5) / 3, (1 + 0.5) / 2, (2 + 0.5) / 3]))
  np.testing.assert_allclose(
    language.bigram_nats(counts, codes, concentration=1.0), expected, rtol=1e-5
  )


def test_the_code_after_a_missing_one_has_no_past():
  counts = language.fit(np.array([[[0], [-1], [1], [0]]]), 2)
  start = 2
  expected_UV = np.zeros((3, 2))
  expected_UV[start, 0] = expected_UV[start, 1] = expected_UV[1, 0] = 1
  np.testing.assert_array_equal(counts.bigram_QUV[0], expected_UV)


def test_bigram_gives_each_code_the_probability_that_the_mean_is_made_of():
  random = np.random.default_rng(0)
  codes = random.integers(0, 5, (3, 6, 2))
  codes[1, 4:] = -1
  counts = language.fit(random.integers(0, 5, (4, 6, 2)), 5)
  log_probs = language.bigram_log_probabilities(counts, codes)
  assert -log_probs.sum() / (codes >= 0).sum() == pytest.approx(language.bigram_nats(counts, codes))
  # All continuations of one past: probabilities that add up to one.
  past = np.tile(np.array([[[2, 3], [0, 0]]]), (5, 1, 1))
  past[:, 1, 0] = np.arange(5)
  assert np.exp(language.bigram_log_probabilities(counts, past)[:, 1, 0]).sum() == pytest.approx(1)


def recordings(*rows):
  return [language.Recording(pair, voice, correct, kind) for pair, voice, correct, kind in rows]


def test_preference_is_the_mean_over_voices_then_over_pairs():
  rows = recordings(
    ('1', 'A', True, '>100'),
    ('1', 'A', False, ''),
    ('1', 'B', True, '>100'),
    ('1', 'B', False, ''),
    ('2', 'A', False, ''),
    ('2', 'A', True, 'oov'),
  )
  result = language.preference(rows, [-1.0, -2.0, -5.0, -5.0, -1.0, -3.0])
  assert result.by_kind == {'>100': 0.75, 'oov': 0.0}
  assert result.accuracy == 0.375 and result.pairs == 2  # not 0.5, the mean over recordings


def test_preference_says_what_is_missing():
  rows = recordings(('1', 'A', True, ''), ('1', 'A', False, ''))
  with pytest.raises(ValueError, match='pair 1, voice A has no wrong recording'):
    language.preference(rows[:1], [0.0])
  with pytest.raises(ValueError, match='twice'):
    language.preference(rows + rows[:1], [0.0, 1.0, 2.0])
  with pytest.raises(ValueError, match='nan'):
    language.preference(rows, [0.0, float('nan')])
  with pytest.raises(ValueError, match='2 recordings and 1 scores'):
    language.preference(rows, [0.0])

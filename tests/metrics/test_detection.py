"""Against scikit-learn, brute force and closed forms."""

import itertools

import numpy as np
import pytest
from scipy.special import expit, ndtr
from sklearn import metrics as oracle
from sklearn.linear_model import LogisticRegression

from audiolm_jax.metrics import detection


def scores(seed, count=200, decimals=1):
  """Two classes that overlap, with ties."""
  random = np.random.default_rng(seed)
  label_N = random.integers(0, 2, count)
  return np.round(random.normal(size=count) + label_N, decimals), label_N


@pytest.mark.parametrize('seed', range(3))
def test_roc_area_and_accuracy_are_those_of_scikit_learn(seed):
  score_N, label_N = scores(seed)
  curve = detection.roc(score_N, label_N)
  for got, expected in zip(
    curve, oracle.roc_curve(label_N, score_N, drop_intermediate=False), strict=True
  ):
    np.testing.assert_allclose(got, expected)
  assert detection.area_under_curve(score_N, label_N) == pytest.approx(
    oracle.roc_auc_score(label_N, score_N)
  )
  assert detection.accuracy(score_N, label_N, 0.5) == pytest.approx(
    oracle.accuracy_score(label_N, score_N > 0.5)
  )


def test_area_is_the_share_of_pairs_in_order():
  score_N, label_N = scores(7, count=40)
  pairs = list(itertools.product(score_N[label_N == 1], score_N[label_N == 0]))
  expected = np.mean([1.0 if one > other else 0.5 if one == other else 0.0 for one, other in pairs])
  assert detection.area_under_curve(score_N, label_N) == pytest.approx(expected)


def test_equal_error_rate_of_two_gaussians():
  random, count = np.random.default_rng(0), 200_000
  score_N = np.concatenate([random.normal(size=count), 2 + random.normal(size=count)])
  label_N = np.repeat([0, 1], count)
  assert detection.equal_error_rate(score_N, label_N) == pytest.approx(ndtr(-1.0), abs=2e-3)


@pytest.mark.parametrize(
  'score, label, expected',
  [
    ([1, 2, 3, 4], [0, 0, 1, 1], 0.0),
    ([1, 2, 3, 4], [1, 1, 0, 0], 1.0),
    ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),
    ([1, 2, 3, 4], [0, 1, 0, 1], 0.5),
    ([1, 2, 3, 4, 5, 6], [0, 0, 1, 0, 1, 1], 1 / 3),
    # two thirds of the way between the third and the fourth point, (0, 1/2) and (1/2, 3/4)
    ([9, 8, 7, 7, 7, 1, 2, 3], [1, 1, 1, 0, 0, 1, 0, 0], 1 / 3),
  ],
)
def test_equal_error_rate_by_hand(score, label, expected):
  assert detection.equal_error_rate(np.array(score, float), np.array(label)) == pytest.approx(
    expected
  )


def test_calibration_undoes_a_known_distortion():
  random = np.random.default_rng(1)
  true_N = random.normal(scale=2, size=40_000)
  label_N = (random.random(40_000) < expit(true_N)).astype(int)
  found = detection.fit_calibration((true_N - 1.5) * 4, label_N)
  np.testing.assert_allclose([found.scale, found.offset], [0.25, 1.5], rtol=0.05)
  probability_N = detection.probability(found, (true_N - 1.5) * 4)
  assert detection.calibration_error(probability_N, label_N) < 0.01
  assert detection.calibration_error(expit((true_N - 1.5) * 4), label_N) > 0.1


def test_calibration_is_logistic_regression_where_classes_overlap():
  score_N, label_N = scores(3, count=5000, decimals=6)
  regression = LogisticRegression(C=np.inf, tol=1e-10).fit(score_N[:, None], label_N)
  found = detection.fit_calibration(score_N, label_N)
  expected = [regression.coef_[0, 0], regression.intercept_[0]]
  # Platt's targets differ a little
  np.testing.assert_allclose([found.scale, found.offset], expected, rtol=5e-3)


def test_calibration_stays_finite_where_classes_do_not_overlap():
  found = detection.fit_calibration(np.array([-3.0, -2, 2, 3]), np.array([0, 0, 1, 1]))
  probability_N = detection.probability(found, np.array([-2.5, 2.5, 1e6, -1e6]))
  # no more than four clips can tell
  np.testing.assert_allclose(probability_N[:2], [1 / 4, 3 / 4], atol=0.05)
  assert found.scale > 0 and np.isfinite(probability_N).all()


def test_calibration_error_by_hand():
  probability_N, label_N = np.array([0.05, 0.05, 0.92, 0.98]), np.array([0, 1, 1, 1])
  assert detection.calibration_error(probability_N, label_N) == pytest.approx((0.9 + 0.1) / 4)


def test_bins_of_the_calibration_error_have_equal_width_and_hold_their_lower_edge():
  probability_N = np.array([0.49, 0.5, 0.55, 0.85, 0.95, 1.0])
  label_N = np.array([1, 0, 1, 1, 1, 0])
  # 0.5 and 0.55 share a bin, so do 0.95 and 1: 1 is no bin of its own.
  gaps = [0.51, 0.5 - 0.45, 0.15, -0.05 + 1]
  assert detection.calibration_error(probability_N, label_N) == pytest.approx(sum(gaps) / 6)
  # of two bins, 0.49 is alone in the first
  whole = 0.5 - 0.45 - 0.15 - 0.05 + 1
  found = detection.calibration_error(probability_N, label_N, num_bins=2)
  assert found == pytest.approx((0.51 + whole) / 6)


def test_interval_covers_as_often_as_it_says():
  random = np.random.default_rng(2)
  intervals = [
    detection.proportion_interval(int(n), 72) for n in random.binomial(72, 0.5, size=400)
  ]
  assert np.mean([low <= 0.5 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(
  'score, label, message',
  [
    ([], [], '0 scores'),
    ([1.0], [0, 1], '1 scores and 2 labels'),
    ([1.0, 2.0], [0, 2], r'not \[2\]'),
    ([1.0, np.nan], [0, 1], '1 of 2 scores are not finite'),
    ([1.0, 2.0], [1, 1], 'all 2 clips have the label 1'),
  ],
)
def test_what_cannot_be_measured_is_said(score, label, message):
  with pytest.raises(ValueError, match=message):
    detection.roc(np.array(score, float), np.array(label, int))

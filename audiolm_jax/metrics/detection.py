"""Measures how well scores separate two classes, and how well they are calibrated.

A higher score means more like label 1 ("generated"). Scores are log odds where they are converted
to probabilities.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from audiolm_jax.errors import UserError


class Roc(NamedTuple):
  """Holds the rates at each distinct threshold, from (0, 0) to (1, 1).

  At (0, 0) no clip is called generated, at (1, 1) every clip is.
  """

  false_positive_N: np.ndarray
  true_positive_N: np.ndarray
  threshold_N: np.ndarray  # scores of at least this are called generated


class Calibration(NamedTuple):
  """Holds Platt scaling: p(generated) = sigmoid(scale * log odds + offset) (Platt, 1999)."""

  scale: float
  offset: float


class Interval(NamedTuple):
  low: float
  high: float


def accuracy(
  score_N: Float[np.ndarray, '_'], label_N: Int[np.ndarray, '_'], threshold: float = 0.0
) -> float:
  """Returns the share of clips on the right side of the threshold, in [0, 1].

  Clips with a score above `threshold` are called generated.

  Args:
    score_N: score of each clip; higher is more likely generated.
    label_N: 0 for originals, 1 for generated clips.
    threshold: least score of clips called generated, exclusive.

  Raises:
    UserError: if scores are missing or not finite, or labels are other numbers.
  """
  score_N, label_N = _checked(score_N, label_N)
  return float(np.mean((score_N > threshold) == (label_N == 1)))


def roc(score_N: Float[np.ndarray, '_'], label_N: Int[np.ndarray, '_']) -> Roc:
  """Returns the receiver operating characteristic; equal scores share a threshold.

  Args:
    score_N: score of each clip; higher is more likely generated.
    label_N: 0 for originals, 1 for generated clips.

  Raises:
    UserError: as `accuracy`; if one of the classes is missing.
  """
  score_N, label_N = _checked(score_N, label_N, both=True)
  order = np.argsort(-score_N, kind='stable')
  score_N, label_N = score_N[order], label_N[order]
  # The last index of each run of equal scores.
  last_N = np.append(np.flatnonzero(np.diff(score_N)), len(score_N) - 1)
  true_N, all_N = np.cumsum(label_N)[last_N], last_N + 1
  false_N = all_N - true_N
  return Roc(
    np.append(0.0, false_N / false_N[-1]),
    np.append(0.0, true_N / true_N[-1]),
    np.append(np.inf, score_N[last_N]),
  )


def area_under_curve(score_N: Float[np.ndarray, '_'], label_N: Int[np.ndarray, '_']) -> float:
  """Returns the area under the ROC, in [0, 1].

  It equals the probability that a generated clip scores above an original one; ties count half.

  Args:
    score_N: score of each clip; higher is more likely generated.
    label_N: 0 for originals, 1 for generated clips.

  Raises:
    UserError: as `roc`.
  """
  curve = roc(score_N, label_N)
  return float(np.trapezoid(curve.true_positive_N, curve.false_positive_N))


def equal_error_rate(score_N: Float[np.ndarray, '_'], label_N: Int[np.ndarray, '_']) -> float:
  """Returns the rate, in [0, 1], at which false positives and misses are equally frequent.

  The ROC is interpolated linearly between thresholds.

  Args:
    score_N: score of each clip; higher is more likely generated.
    label_N: 0 for originals, 1 for generated clips.

  Raises:
    UserError: as `roc`.
  """
  curve = roc(score_N, label_N)
  gap_N = curve.false_positive_N - (1 - curve.true_positive_N)  # rises from -1 to 1
  after = int(np.argmax(gap_N >= 0))
  share = -gap_N[after - 1] / (gap_N[after] - gap_N[after - 1])
  before = curve.false_positive_N[after - 1]
  return float(before + share * (curve.false_positive_N[after] - before))


def fit_calibration(
  log_odds_N: Float[np.ndarray, '_'], label_N: Int[np.ndarray, '_']
) -> Calibration:
  """Fits scale and offset by maximum likelihood to clips that the detector was not trained on.

  The targets are 1 / (n + 2) and (n + 1) / (n + 2) for n clips of the class, as in Platt (1999),
  instead of 0 and 1: separable classes would otherwise have no finite scale.

  Args:
    log_odds_N: log odds of each clip, in nats.
    label_N: 0 for originals, 1 for generated clips.

  Returns:
    Scale and offset.

  Raises:
    UserError: as `roc`.
  """
  from scipy.optimize import minimize  # slow to import

  log_odds_N, label_N = _checked(log_odds_N, label_N, both=True)
  counts = np.bincount(label_N, minlength=2)
  target_N = np.where(label_N == 1, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))
  unit = max(float(np.std(log_odds_N)), 1e-12)  # gives both unknowns the same scale
  score_N = log_odds_N / unit

  def nats(unknown):
    z_N = unknown[0] * score_N + unknown[1]
    slope_N = 1 / (1 + np.exp(-np.clip(z_N, -500, 500))) - target_N
    return np.sum(np.logaddexp(0, z_N) - target_N * z_N), np.array(
      [np.sum(slope_N * score_N), np.sum(slope_N)]
    )

  found = minimize(
    nats, np.array([1.0, 0.0]), jac=True, method='BFGS', options={'gtol': 1e-8 * len(score_N)}
  )
  return Calibration(float(found.x[0] / unit), float(found.x[1]))


def probability(
  calibration: Calibration, log_odds_N: Float[np.ndarray, '*dims']
) -> Float[np.ndarray, '*dims']:
  """Returns p(generated), assuming that original and generated clips are equally frequent.

  Args:
    calibration: from `fit_calibration`.
    log_odds_N: log odds of clips, in nats.
  """
  from scipy.special import expit  # no overflow

  return expit(calibration.scale * np.asarray(log_odds_N, np.float64) + calibration.offset)


def calibration_error(
  probability_N: Float[np.ndarray, '_'], label_N: Int[np.ndarray, '_'], num_bins: int = 10
) -> float:
  """Returns the expected calibration error (ECE), in [0, 1], over bins of equal width.

  Args:
    probability_N: p(generated) of each clip.
    label_N: 0 for originals, 1 for generated clips.
    num_bins: number of bins.

  Raises:
    UserError: as `accuracy`.
  """
  probability_N, label_N = _checked(probability_N, label_N)
  bin_N = np.minimum((probability_N * num_bins).astype(int), num_bins - 1)
  gaps = np.bincount(bin_N, weights=probability_N - label_N, minlength=num_bins)
  return float(np.abs(gaps).sum() / len(label_N))


def proportion_interval(successes: int, total: int, confidence: float = 0.95) -> Interval:
  """Returns Wilson's confidence interval of a share found in `total` independent trials.

  Args:
    successes: number of successes.
    total: number of trials.
    confidence: probability that the interval contains the true share.
  """
  from scipy.stats import binomtest  # slow to import

  found = binomtest(successes, total).proportion_ci(confidence, method='wilson')
  return Interval(float(found.low), float(found.high))


def _checked(score_N, label_N, both: bool = False):
  score_N, label_N = np.asarray(score_N, np.float64), np.asarray(label_N)
  if score_N.shape != label_N.shape or not len(score_N):
    raise UserError(
      f'{len(score_N)} scores and {len(label_N)} labels: give one label for each of at least one '
      'score'
    )
  if not np.isin(label_N, (0, 1)).all():
    raise UserError(
      f'labels are 0 (original) and 1 (generated), not {sorted(set(label_N.tolist()) - {0, 1})}'
    )
  if not np.isfinite(score_N).all():
    raise UserError(f'{np.sum(~np.isfinite(score_N))} of {len(score_N)} scores are not finite')
  if both and len(set(label_N.tolist())) < 2:
    raise UserError(f'all {len(label_N)} clips have the label {label_N[0]}: both are needed')
  return score_N, label_N

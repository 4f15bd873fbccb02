"""Computes the counting baseline of masked prediction: p(code | one other token)."""

import numpy as np
from jaxtyping import Float, Int


def fit(
  given_N: Int[np.ndarray, 'N'], code_N: Int[np.ndarray, 'N'], num_given: int, codebook_size: int
) -> Float[np.ndarray, 'G V']:
  """Counts how often each code (column) occurs with each given token (row)."""
  counts_GV = np.zeros((num_given, codebook_size))
  np.add.at(counts_GV, (given_N, code_N), 1)
  return counts_GV


def probabilities(
  counts_GV: Float[np.ndarray, 'G V'], concentration: float = 10.0, smoothing: float = 1.0
) -> Float[np.ndarray, 'G V']:
  """Returns p(code | given) of the counts, backed off to the unigram (Dirichlet prior).

    p(v | g) = (count(g, v) + concentration * unigram(v)) / (count(g) + concentration)

  The unigram has add-`smoothing` counts, as in `metrics.language`.
  """
  unigram_V = counts_GV.sum(axis=0) + smoothing
  unigram_V /= unigram_V.sum()
  return (counts_GV + concentration * unigram_V) / (
    counts_GV.sum(axis=1, keepdims=True) + concentration
  )


def scores(
  probability_GV: Float[np.ndarray, 'G V'],
  given_N: Int[np.ndarray, 'N'],
  code_N: Int[np.ndarray, 'N'],
) -> tuple[float, float]:
  """Returns nats per code, and the accuracy in [0, 1] of guessing the most probable code."""
  hit_N = probability_GV.argmax(axis=1)[given_N] == code_N
  return float(-np.log(probability_GV[given_N, code_N]).mean()), float(hit_N.mean())

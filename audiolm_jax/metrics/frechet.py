"""Computes the Frechet audio distance of two sets of embeddings, modelled as Gaussians.

  `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`

Source: Kilgour et al., 2019 (arXiv 1812.08466); for Gaussians, Dowson and Landau, 1982.

A covariance is stored as a factor R with S = R^T R, with at most as many rows as embeddings: tr (S1
S2)^(1/2) is then the sum of the singular values of R1 R2^T. This needs no square root of a matrix,
so rank-deficient covariances (few embeddings of many dimensions) are exact. Float64, because the
terms nearly cancel.

Finite samples overestimate the distance, more so with fewer clips: compare sets of equal size.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from audiolm_jax.errors import UserError


class Gaussian(NamedTuple):
  mean_D: np.ndarray
  factor_RD: np.ndarray  # covariance = factor^T factor
  count: int  # number of embeddings


def fit(embedding_ND: Float[np.ndarray, 'N D']) -> Gaussian:
  """Returns mean and unbiased covariance of the embeddings.

  Args:
    embedding_ND: embedding of each clip.

  Raises:
    UserError: for fewer than two embeddings, or values that are not finite.
  """
  count = len(embedding_ND)
  if count < 2:
    raise UserError(f'{count} embeddings: a covariance needs at least 2')
  embedding_ND = np.asarray(embedding_ND, np.float64)
  if not np.isfinite(embedding_ND).all():
    raise UserError(
      f'{np.sum(~np.isfinite(embedding_ND).all(axis=1))} of {count} embeddings are not finite'
    )
  mean_D = embedding_ND.mean(axis=0)
  return Gaussian(
    mean_D, np.linalg.qr((embedding_ND - mean_D) / np.sqrt(count - 1), mode='r'), count
  )


def distance(one: Gaussian, other: Gaussian) -> float:
  """Returns the squared Frechet distance, at least 0.

  Args:
    one: from `fit`.
    other: from `fit`, of embeddings by the same model.

  Raises:
    UserError: if the embeddings have different widths.
  """
  if one.mean_D.shape != other.mean_D.shape:
    raise UserError(
      f'embeddings of {len(one.mean_D)} and {len(other.mean_D)} dimensions: use one model for both'
    )
  traces = np.sum(np.square(one.factor_RD)) + np.sum(np.square(other.factor_RD))
  shared = np.linalg.svd(one.factor_RD @ other.factor_RD.T, compute_uv=False).sum()
  return float(max(0.0, np.sum(np.square(one.mean_D - other.mean_D)) + traces - 2 * shared))

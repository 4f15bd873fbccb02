"""Closed forms of Gaussians, and scipy's square root of a matrix."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from audiolm_jax.metrics import frechet


def gaussian(mean_D, covariance_DD):
  return frechet.Gaussian(
    np.asarray(mean_D, float), np.linalg.cholesky(np.asarray(covariance_DD, float)).T, 0
  )


def test_diagonal_gaussians():
  one, other = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 0.25])
  got = frechet.distance(gaussian([0, 0, 1], np.diag(one)), gaussian([2, 0, 1], np.diag(other)))
  assert got == pytest.approx(4 + np.sum((np.sqrt(one) - np.sqrt(other)) ** 2), rel=1e-12)


def test_any_gaussians_by_the_root_of_the_product():
  random = np.random.default_rng(0)
  covariances = [matrix @ matrix.T for matrix in random.normal(size=(2, 6, 6))]
  means = random.normal(size=(2, 6))
  root = np.trace(sqrtm(covariances[0] @ covariances[1])).real
  expected = (
    np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1]) - 2 * root
  )
  got = frechet.distance(*(gaussian(*pair) for pair in zip(means, covariances)))
  assert got == pytest.approx(expected, rel=1e-9)


def test_fit_is_mean_and_covariance_whatever_the_rank():
  random = np.random.default_rng(1)
  for count, width in ((50, 4), (4, 30), (2, 3)):
    embedding_ND = random.normal(size=(count, width))
    found = frechet.fit(embedding_ND)
    np.testing.assert_allclose(found.mean_D, embedding_ND.mean(axis=0))
    np.testing.assert_allclose(
      found.factor_RD.T @ found.factor_RD, np.cov(embedding_ND.T), atol=1e-12
    )
    assert len(found.factor_RD) == min(count, width)


@pytest.mark.parametrize('count', [500, 20, 2])
def test_shifts_and_scales_of_one_set_have_closed_forms_whatever_the_rank(count):
  """20 and 2 embeddings of 64 dimensions: the covariances are singular."""
  embedding_ND = np.random.default_rng(2).normal(size=(count, 64)) * 10.0 ** np.linspace(-3, 3, 64)
  base = frechet.fit(embedding_ND)
  size = np.trace(np.cov(embedding_ND.T))
  assert frechet.distance(base, base) <= 1e-12 * size
  assert frechet.distance(base, frechet.fit(embedding_ND + 2)) == pytest.approx(4 * 64, rel=1e-6)
  centred = embedding_ND - embedding_ND.mean(axis=0)
  assert frechet.distance(frechet.fit(centred), frechet.fit(3 * centred)) == pytest.approx(
    4 * size, rel=1e-9
  )


def test_more_noise_is_further_away():
  random = np.random.default_rng(3)
  clean_ND = random.normal(size=(300, 8))
  distances = [
    frechet.distance(frechet.fit(clean_ND), frechet.fit(random.normal(size=(300, 8)) * (1 + noise)))
    for noise in (0.0, 0.5, 1.0, 2.0)
  ]
  assert distances == sorted(distances) and distances[-1] > 10 * distances[0]


def test_what_cannot_be_measured_is_said():
  with pytest.raises(ValueError, match='1 embeddings'):
    frechet.fit(np.zeros((1, 3)))
  with pytest.raises(ValueError, match='1 of 2 embeddings are not finite'):
    frechet.fit(np.array([[0.0, 1.0], [np.inf, 0.0]]))
  with pytest.raises(ValueError, match='2 and 3 dimensions'):
    frechet.distance(frechet.fit(np.eye(2)), frechet.fit(np.eye(3)))

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import arrays_file, kmeans
from audiolm_jax.metrics import tokens


def test_assign_is_the_nearest_centroid():
  rng = np.random.default_rng(0)
  quantizer = kmeans.SemanticQuantizer(
    *(
      jnp.asarray(x, jnp.float32)
      for x in (rng.normal(size=5), rng.uniform(1, 3, 5), rng.normal(size=(7, 5)))
    )
  )
  features_BSD = rng.normal(size=(2, 11, 5)).astype(np.float32) * 3
  got = kmeans.assign(quantizer, jnp.asarray(features_BSD))
  normalized = (features_BSD - np.asarray(quantizer.mean_D)) / np.asarray(quantizer.scale_D)
  distances = np.linalg.norm(normalized[:, :, None] - np.asarray(quantizer.centroids_KD), axis=-1)
  np.testing.assert_array_equal(got, distances.argmin(-1))
  assert got.dtype == jnp.int32


def test_fit_finds_planted_clusters_whatever_the_scale_of_a_dimension():
  rng = np.random.default_rng(1)
  truth_N = rng.integers(0, 4, 2000)
  centres = np.array([[0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 0, 10]])
  scales = np.array([1e-3, 1.0, 1e3])  # without normalization the last would decide alone
  features_ND = (centres[truth_N] + rng.normal(size=(2000, 3))) * scales + scales * 7
  # one is constant
  features_ND = np.concatenate([features_ND, np.full((2000, 1), 3.0)], axis=1).astype(np.float32)
  quantizer = kmeans.fit(features_ND, num_clusters=4, seed=0)
  got_N = np.asarray(kmeans.assign(quantizer, jnp.asarray(features_ND[None]))[0])
  assert tokens.normalized_mutual_information(got_N, truth_N) > 0.99
  np.testing.assert_allclose(quantizer.mean_D, features_ND.mean(0), rtol=1e-3)
  np.testing.assert_allclose(quantizer.scale_D[:3], features_ND[:, :3].std(0), rtol=1e-3)
  assert quantizer.scale_D[3] == 1


def test_every_frame_counts_in_blocks_of_any_size_from_the_first_on(monkeypatch):
  """Half of the frames are 8, among them the first, half 0, by hand: mean 4, deviation 4."""
  features_ND = np.array([[8, 1], [0, 1], [0, 1], [8, 1], [0, 1], [8, 1]], np.float32)
  for block in (1, 4, 6):
    monkeypatch.setattr(kmeans, '_BLOCK', block)
    quantizer = kmeans.fit(features_ND, num_clusters=2, seed=0)
    np.testing.assert_array_equal(quantizer.mean_D, [4, 1])
    np.testing.assert_array_equal(quantizer.scale_D, [4, 1])
    np.testing.assert_allclose(
      np.sort(quantizer.centroids_KD, axis=0), [[-1, 0], [1, 0]], atol=1e-6
    )
  as_many_as_clusters = kmeans.fit(features_ND[:2], num_clusters=2, seed=0)
  np.testing.assert_array_equal(as_many_as_clusters.mean_D, [4, 1])


def test_clusters_of_a_file_that_names_no_frames_to_average_are_of_single_frames(tmp_path):
  quantizer = kmeans.SemanticQuantizer(jnp.zeros(3), jnp.ones(3), jnp.zeros((2, 3)))
  metadata = {'layer': '5', 'w2v_bert': 'abc'}
  for more, frames in (({}, 1), ({'frames_per_token': '3'}, 3)):
    arrays_file.save(tmp_path / f'{frames}', quantizer._asdict(), metadata | more)
    found = kmeans.load(tmp_path / f'{frames}')
    assert (found.layer, found.frames_per_token, found.model) == (5, frames, 'abc')
  for wrong in ({'layer': 'five'}, {'frames_per_token': '1.5'}):
    arrays_file.save(tmp_path / 'wrong', quantizer._asdict(), metadata | wrong)
    with pytest.raises(ValueError, match='wrong is damaged .*delete it and fit the clusters again'):
      kmeans.load(tmp_path / 'wrong')


def test_a_fit_holds_one_copy_of_the_sample():
  features_ND = np.random.default_rng(2).normal(size=(200_000, 32)).astype(np.float32)
  kmeans.fit(features_ND[:100], num_clusters=2, seed=0)  # imports
  tracemalloc.start()
  kmeans.fit(features_ND, num_clusters=2, seed=0)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert features_ND.nbytes < peak < 1.5 * features_ND.nbytes


def test_impossible_fits_are_refused():
  features_ND = np.zeros((3, 2), np.float32)
  with pytest.raises(ValueError, match='3 frames cannot make 4 clusters'):
    kmeans.fit(features_ND, num_clusters=4, seed=0)
  features_ND[1, 1] = np.nan
  with pytest.raises(ValueError, match='1 of 3 frames'):
    kmeans.fit(features_ND, num_clusters=2, seed=0)


def test_assign_refuses_features_of_another_width():
  quantizer = kmeans.SemanticQuantizer(jnp.zeros(3), jnp.ones(3), jnp.zeros((2, 3)))
  with pytest.raises(ValueError, match='width 4'):
    kmeans.assign(quantizer, jnp.zeros((1, 2, 4)))

"""Tokens of embeddings: every level chooses the code nearest to what is left, and leaves less."""

import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import embedding_tokens
from audiolm_jax.nn import quantizer


def unit_vectors(count, dim=16, seed=0):
  """Directions around 12 centres, as embeddings of clips of 12 kinds are."""
  random = np.random.default_rng(seed)
  centres = np.random.default_rng(9).normal(size=(12, dim))
  vectors = centres[random.integers(0, 12, count)] + 0.4 * random.normal(size=(count, dim))
  return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_every_level_is_the_nearest_to_what_is_left():
  vectors_QKD = np.random.default_rng(1).normal(size=(5, 7, 16)).astype(np.float32)
  embeddings_BD = unit_vectors(20)
  got = embedding_tokens.assign(jnp.asarray(vectors_QKD), jnp.asarray(embeddings_BD))
  assert got.shape == (20, 5) and got.dtype == jnp.int32
  for embedding_D, tokens_Q in zip(embeddings_BD, np.asarray(got)):
    left_D = embedding_D.astype(np.float64)
    for vectors_KD, token in zip(vectors_QKD, tokens_Q):
      distances_K = [np.sum((left_D - vector_D) ** 2) for vector_D in vectors_KD]
      assert token == np.argmin(distances_K)
      left_D = left_D - vectors_KD[token]


def test_what_was_not_seen_in_fitting_is_told_better_by_every_level():
  vectors_QKD = embedding_tokens.fit(unit_vectors(600), num_quantizers=4, codebook_size=16, seed=3)
  held_out_BD = unit_vectors(200, seed=1)
  tokens_BQ = embedding_tokens.assign(vectors_QKD, jnp.asarray(held_out_BD))
  errors = [np.mean(np.sum(held_out_BD**2, axis=1))]
  for levels in range(1, 5):
    decoded_BD = quantizer.decode(vectors_QKD, tokens_BQ[:, None, :levels])[:, 0]
    errors.append(np.mean(np.sum((held_out_BD - np.asarray(decoded_BD)) ** 2, axis=1)))
  # A level that learned nothing, or what another has learned, leaves the error as it is.
  assert all(after < 0.93 * before for before, after in zip(errors, errors[1:])), errors
  assert errors[1] < 0.6 * errors[0]  # there are 12 kinds, and 16 codes
  for level in range(4):
    assert len(np.unique(tokens_BQ[:, level])) > 8


def test_a_fit_is_the_means_of_those_that_choose_a_code_and_repeats():
  """Two far groups and two codes: the first level is their means whatever the seed, the second what
  is left of it.
  """
  embeddings_ND = np.array([[0, 1.0], [0, 1.2], [5, 0], [5, 0.4]], np.float32)
  vectors_QKD = np.asarray(
    embedding_tokens.fit(embeddings_ND, num_quantizers=2, codebook_size=2, seed=0)
  )
  first_KD = vectors_QKD[0][np.argsort(vectors_QKD[0][:, 0])]
  np.testing.assert_allclose(first_KD, [[0, 1.1], [5, 0.2]], atol=1e-6)
  tokens_NQ = np.asarray(
    embedding_tokens.assign(jnp.asarray(vectors_QKD), jnp.asarray(embeddings_ND))
  )
  left_ND = embeddings_ND - vectors_QKD[0][tokens_NQ[:, 0]]
  for code in range(2):
    np.testing.assert_allclose(
      vectors_QKD[1][code], left_ND[tokens_NQ[:, 1] == code].mean(axis=0), atol=1e-6
    )
  again = embedding_tokens.fit(embeddings_ND, num_quantizers=2, codebook_size=2, seed=0)
  np.testing.assert_array_equal(again, vectors_QKD)


def test_what_cannot_be_fitted_or_assigned_is_refused():
  embeddings_ND = unit_vectors(20)
  with pytest.raises(ValueError, match='20 embeddings are too few for 21 codes: pass more'):
    embedding_tokens.fit(embeddings_ND, codebook_size=21)
  with pytest.raises(ValueError, match='num_quantizers=0: must be a whole number of at least 1'):
    embedding_tokens.fit(embeddings_ND, num_quantizers=0, codebook_size=4)
  embeddings_ND[3, 2] = np.nan
  with pytest.raises(ValueError, match='1 of 20 embeddings contain NaN'):
    embedding_tokens.fit(embeddings_ND, codebook_size=4)
  with pytest.raises(ValueError, match='width 16, but code vectors 8'):
    embedding_tokens.assign(jnp.zeros((2, 3, 8)), jnp.zeros((1, 16)))


def test_code_vectors_of_embeddings_come_back_for_their_model_alone(tmp_path):
  path = tmp_path / 'text_tokens' / 'quantizer.safetensors'
  with pytest.raises(ValueError, match='does not exist.*embedding_tokens.fit'):
    embedding_tokens.load(path, 'abc')
  vectors_QKD = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
  embedding_tokens.save(path, jnp.asarray(vectors_QKD), 'abc')
  np.testing.assert_array_equal(embedding_tokens.load(path, 'abc'), vectors_QKD)
  with pytest.raises(ValueError, match='embeddings of the model abc, not of xyz: fit it again'):
    embedding_tokens.load(path, 'xyz')
  content = path.read_bytes()
  for damaged in (
    content[:-5],
    content[:-1] + bytes([content[-1] ^ 1]),
    content.replace(b'"abc"', b'"xyz"'),
  ):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match='is damaged .*fit the quantizer again'):
      embedding_tokens.load(path, 'xyz')

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


def test_levels_are_the_first_ones():
  vectors_QKD = np.random.default_rng(1).normal(size=(5, 7, 16)).astype(np.float32)
  embeddings_BD = jnp.asarray(unit_vectors(20))
  all_BQ = embedding_tokens.assign(jnp.asarray(vectors_QKD), embeddings_BD)
  for levels in (1, 3, 5):
    got_BQ = embedding_tokens.assign(jnp.asarray(vectors_QKD), embeddings_BD, levels)
    np.testing.assert_array_equal(got_BQ, all_BQ[:, :levels])
  for levels in (0, 6):
    with pytest.raises(ValueError, match=f'levels={levels}: must be a whole number from 1 to 5'):
      embedding_tokens.assign(jnp.asarray(vectors_QKD), embeddings_BD, levels)


def test_a_map_finds_the_rotation_and_offset_between_the_spaces():
  audio_ND = unit_vectors(60).astype(np.float64)
  rotation_DD, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(16, 16)))
  text_ND = 0.5 * audio_ND @ rotation_DD + 0.3
  map_ED = embedding_tokens.fit_map(text_ND.astype(np.float32), audio_ND.astype(np.float32))
  # audio = (text - 0.3) rotation^T / 0.5
  np.testing.assert_allclose(map_ED[:-1], 2 * rotation_DD.T, atol=1e-4)
  np.testing.assert_allclose(map_ED[-1], -0.6 * rotation_DD.T.sum(axis=0), atol=1e-4)
  got_ND = embedding_tokens.apply_map(map_ED, jnp.asarray(text_ND, jnp.float32))
  np.testing.assert_allclose(got_ND, audio_ND, atol=1e-5)


def test_a_map_is_the_least_squares_solution_of_unit_length():
  """No gradient of the squared error is left, in float64."""
  random = np.random.default_rng(0)
  text_ND, audio_ND = random.normal(size=(2, 50, 4)).astype(np.float32)
  map_ED = np.asarray(embedding_tokens.fit_map(text_ND, audio_ND), np.float64)
  affine_NE = np.concatenate([text_ND, np.ones((50, 1))], axis=1)
  error_ND = affine_NE @ map_ED - audio_ND
  assert np.abs(affine_NE.T @ error_ND).max() < 1e-4 < np.abs(error_ND).max()
  mapped_ND = np.asarray(embedding_tokens.apply_map(jnp.asarray(map_ED, jnp.float32), text_ND))
  np.testing.assert_allclose(np.linalg.norm(mapped_ND, axis=1), 1, atol=1e-6)


def test_texts_are_quantized_through_the_map():
  audio_BD = unit_vectors(300)
  text_BD = np.roll(audio_BD, 1, axis=1)
  vectors_QKD = embedding_tokens.fit(audio_BD, num_quantizers=3, codebook_size=12)
  audio_BQ = embedding_tokens.assign(vectors_QKD, jnp.asarray(audio_BD))
  agree = lambda fitted: np.mean(
    np.asarray(embedding_tokens.text_tokens(fitted, jnp.asarray(text_BD), 2)) == audio_BQ[:, :2]
  )
  mapped = embedding_tokens.Quantizer(vectors_QKD, embedding_tokens.fit_map(text_BD, audio_BD))
  assert agree(mapped) == 1 and agree(embedding_tokens.Quantizer(vectors_QKD)) < 0.3


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
  for few in (9, 15):
    vectors_ND = unit_vectors(few, dim=15)
    with pytest.raises(
      ValueError, match=f'{few} pairs are too few for a map of width 15: .* least 16'
    ):
      embedding_tokens.fit_map(vectors_ND, vectors_ND)
  vectors_ND = unit_vectors(16, dim=15)
  assert embedding_tokens.fit_map(vectors_ND, vectors_ND).shape == (16, 15)
  with pytest.raises(ValueError, match='1 of 20 embeddings contain NaN'):
    embedding_tokens.fit_map(unit_vectors(20), embeddings_ND)
  with pytest.raises(ValueError, match='width 8, the map 16: fit it to embeddings'):
    embedding_tokens.apply_map(jnp.zeros((17, 16)), jnp.zeros((1, 8)))


def test_code_vectors_of_embeddings_come_back_for_their_model_alone(tmp_path):
  path = tmp_path / 'text_tokens' / 'quantizer.safetensors'
  with pytest.raises(ValueError, match='does not exist.*embedding_tokens.fit'):
    embedding_tokens.load(path, 'abc')
  vectors_QKD, map_ED = (
    jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    for shape in ((2, 4, 3), (4, 3))
  )
  for fitted in (
    embedding_tokens.Quantizer(vectors_QKD, map_ED),
    embedding_tokens.Quantizer(vectors_QKD),
  ):
    assert not path.is_file() or embedding_tokens.load_words(path) == {'harp', 'é'}
    embedding_tokens.save(path, fitted, 'abc', {'é', 'harp'} if fitted.map_ED is not None else ())
    loaded = embedding_tokens.load(path, 'abc')
    np.testing.assert_array_equal(loaded.vectors_QKD, vectors_QKD)
    assert (loaded.map_ED is None) == (fitted.map_ED is None)
    if fitted.map_ED is not None:
      np.testing.assert_array_equal(loaded.map_ED, map_ED)
  assert embedding_tokens.load_words(path) == frozenset()
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

"""Tables that start from code vectors keep which codes are alike, and nothing else changes."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.linen import meta

from audiolm_jax.errors import UserError
from audiolm_jax.nn import code_tables
from audiolm_jax.stages import coarse, fine
from tests import toys

LEVELS, SIZE, DEPTH = 3, 12, 8
VECTORS = np.random.default_rng(0).normal(size=(LEVELS, SIZE, DEPTH)).astype(np.float32)
VECTORS[:, 1] = VECTORS[:, 0] + 0.01  # codes 0 and 1 sound alike
WIDE = dataclasses.replace(toys.CONFIGS['coarse'].transformer, width=256)
CODES = dict(codebook_size=SIZE)
COARSE = coarse.Config(
  num_clusters=5, num_quantizers=2, total_quantizers=LEVELS, transformer=WIDE, **CODES
)
FINE = fine.Config(num_coarse=1, total_quantizers=LEVELS, transformer=WIDE, **CODES)
DEEP = dataclasses.replace(COARSE, depth=WIDE)
SOUNDSTORM = dataclasses.replace(
  toys.CONFIGS['soundstorm'], num_clusters=5, num_quantizers=LEVELS, width=256, **CODES
)


def params_of(config, vectors=None):
  return meta.unbox(jax.jit(config.make(vectors).init)(jax.random.key(0)).params)


def likeness(rows):
  """Returns the cosines of all pairs of rows, without their mean."""
  rows = rows - rows.mean(axis=0)
  rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
  return (rows @ rows.T)[np.triu_indices(len(rows), 1)]


def correlation(table_KD, level):
  return np.corrcoef(likeness(np.asarray(table_KD)), likeness(VECTORS[level]))[0, 1]


def test_projections_have_unit_variance_and_keep_distances():
  shifted_QKD = 5 + 3 * VECTORS
  table_QKW = np.asarray(code_tables.projected(jax.random.key(0), shifted_QKD, 4096))
  np.testing.assert_allclose(table_QKW.mean(axis=1), 0, atol=1e-5)
  np.testing.assert_allclose(table_QKW.var(axis=(1, 2)), 1, rtol=0.05)
  distances = lambda x_KD: np.linalg.norm(x_KD[:, None] - x_KD[None], axis=-1)
  for q in range(LEVELS):
    scale = np.sqrt(4096 / DEPTH) / VECTORS[q].std()
    np.testing.assert_allclose(
      distances(table_QKW[q]), distances(VECTORS[q]) * scale, rtol=0.15, atol=0.5
    )
  assert abs(np.corrcoef(table_QKW[0].ravel(), table_QKW[1].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize(
  'config, tables',
  [
    (COARSE, lambda p: [*zip(p['embedding'][6:].reshape(2, SIZE, -1), (0, 1), strict=True)]),
    (COARSE, lambda p: [*zip(p['output'].reshape(2, SIZE, -1), (0, 1), strict=True)]),
    (DEEP, lambda p: [*zip(p['embedding'][6:].reshape(2, SIZE, -1), (0, 1), strict=True)]),
    (DEEP, lambda p: [*zip(p['depth']['embedding'][1:].reshape(2, SIZE, -1), (0, 1), strict=True)]),
    (DEEP, lambda p: [*zip(p['depth']['output'].reshape(2, SIZE, -1), (0, 1), strict=True)]),
    (FINE, lambda p: [*zip(p['embedding'][1:].reshape(3, SIZE, -1), (0, 1, 2), strict=True)]),
    (FINE, lambda p: [*zip(p['output'].reshape(2, SIZE, -1), (1, 2), strict=True)]),
    (SOUNDSTORM, lambda p: [*zip(p['codes'], (0, 1, 2), strict=True)]),
    (SOUNDSTORM, lambda p: [*zip(p['heads'].swapaxes(1, 2), (0, 1, 2), strict=True)]),
  ],
  ids=['coarse', 'coarse-out', 'deep', 'depth', 'depth-out', 'fine', 'fine-out', 'storm', 'heads'],
)
def test_codes_that_are_alike_have_tables_that_are_alike(config, tables):
  started, random = params_of(config, VECTORS), params_of(config)
  for (table_KD, level), (random_KD, _) in zip(tables(started), tables(random), strict=True):
    assert correlation(table_KD, level) > 0.9
    assert abs(correlation(random_KD, level)) < 0.6
    ratio = float(np.std(table_KD) / np.std(random_KD))
    assert 0.85 < ratio < 1.15


@pytest.mark.parametrize('config', [DEEP, SOUNDSTORM], ids=['coarse', 'soundstorm'])
def test_the_rest_of_a_model_starts_as_without(config):
  started, random = params_of(config, VECTORS), params_of(config)
  of_codes = {'codes', 'heads', 'embedding', 'output', 'depth'}
  assert jax.tree.map(np.shape, started) == jax.tree.map(np.shape, random)
  for name in set(started) - of_codes:
    jax.tree.map(np.testing.assert_array_equal, started[name], random[name])
  if 'embedding' in started:  # START and the semantic tokens
    np.testing.assert_array_equal(started['embedding'][:6], random['embedding'][:6])


@pytest.mark.parametrize('config', [COARSE, FINE, SOUNDSTORM], ids=['coarse', 'fine', 'soundstorm'])
@pytest.mark.parametrize('vectors', [VECTORS[:1], VECTORS[:, :5]], ids=['levels', 'codes'])
def test_vectors_of_another_codec_are_refused(config, vectors):
  with pytest.raises(UserError, match='code_vectors has shape'):
    config.make(vectors).init(jax.random.key(0))

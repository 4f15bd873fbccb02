"""Clusters and the models they belong to, and what of a workdir is loaded; the pipeline is tested with
a fake codec in test_generation.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import chain, kmeans, tokenizer, tokens
from audiolm_jax.codec import Codec
from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import hubert
from audiolm_jax.stages import soundstream
from audiolm_jax.stages.base import Model, Variables
from audiolm_jax.tokenizer import SemanticEncoder, SemanticTokenizer, Tokenizer
from audiolm_jax.training import checkpoints
from tests import toys

FEATURES = hubert.Config(conv_channels=(4,), conv_kernels=(4,), conv_strides=(2,))


def save_clusters(workdir, model='abc'):
  random = np.random.default_rng(0)
  arrays = (random.normal(size=shape).astype(np.float32) for shape in ((8,), (8,), (16, 8)))
  quantizer = kmeans.SemanticQuantizer(*(jnp.asarray(array) for array in arrays))
  path = tokenizer.clusters_path(workdir)
  kmeans.save(path, quantizer, layer=7, frames_per_token=2, model=model)
  return quantizer


def test_clusters_and_models_come_back_from_a_bucket(bucket):
  quantizer = save_clusters(bucket)
  found = kmeans.load(tokenizer.clusters_path(bucket))
  for one, other in zip(found.quantizer, quantizer, strict=True):
    np.testing.assert_array_equal(one, other)
  with pytest.raises(UserError, match='kmeans.safetensors does not exist: fit them'):
    kmeans.load(tokenizer.clusters_path(bucket / 'other'), 'fit them')
  path = tokenizer.clusters_path(bucket)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match=f'{path} is damaged .*delete it and fit them'):
    kmeans.load(path, 'fit them')
  with pytest.raises(UserError, match=f'{bucket}/w2v_bert does not exist: train or import'):
    tokenizer.load_semantic_encoder(bucket, 7)
  with pytest.raises(UserError, match=f'{bucket} has no stage semantic: train it first'):
    chain.load_models(bucket)


def test_clusters_come_back(tmp_path):
  quantizer = save_clusters(str(tmp_path))
  found = kmeans.load(str(tokenizer.clusters_path(tmp_path)))
  for one, other in zip(found.quantizer, quantizer, strict=True):
    np.testing.assert_array_equal(one, other)
  assert (found.layer, found.frames_per_token, found.model) == (7, 2, 'abc')
  with pytest.raises(UserError, match='none does not exist: fit the clusters again'):
    kmeans.load(tmp_path / 'none')


def test_clusters_of_another_encoder_are_refused(tmp_path, monkeypatch):
  variables = Variables({'weight': np.zeros(1)}, {})
  monkeypatch.setattr(checkpoints, 'load_variables', lambda folder: Model(FEATURES, variables))
  (tmp_path / 'w2v_bert').mkdir()
  encoder = SemanticEncoder(config=FEATURES, variables=variables, layer=7, frames_per_token=2)
  quantizer = save_clusters(tmp_path, encoder.fingerprint)
  found = tokenizer.load_semantic_tokenizer(str(tmp_path))
  assert found.encoder.config == FEATURES and found.encoder.variables is variables
  assert (found.encoder.layer, found.encoder.frames_per_token, found.num_clusters) == (7, 2, 16)
  assert found.frame_rate == FEATURES.frame_rate / 2
  assert found.hop_length == 2 * FEATURES.hop_length
  stored = kmeans.load(tokenizer.clusters_path(tmp_path))
  assert (
    found.fingerprint == stored.fingerprint == SemanticTokenizer(encoder, quantizer).fingerprint
  )
  variables.params['weight'][:] = 1
  with pytest.raises(
    UserError, match='features of another w2v_bert: move .* away, fit the clusters'
  ):
    tokenizer.load_semantic_tokenizer(tmp_path)


def test_models_hold_the_acoustic_stages_that_are_there(tmp_path, monkeypatch):
  """What is loaded is faked, except for the fingerprints."""
  empty = Variables({}, {})
  encoder = SemanticEncoder(config=FEATURES, variables=empty, layer=7)
  bound = Tokenizer(
    Codec(soundstream.Config(), Variables({'generator': np.zeros(1)}, {})),
    SemanticTokenizer(encoder, save_clusters(tmp_path)),
  )
  others = {}

  def load_variables(folder):
    return Model(toys.CONFIGS[folder.name], None, {'fingerprints': bound.fingerprints | others})

  monkeypatch.setattr(checkpoints, 'load_variables', load_variables)
  monkeypatch.setattr(chain, 'load_tokenizer', lambda workdir, remedy: bound)
  for missing, name in (('semantic', 'semantic'), ('coarse', 'soundstorm')):
    with pytest.raises(UserError, match=f'has no stage {missing}: train it first'):
      chain.load_models(str(tmp_path))
    (tmp_path / name).mkdir()
  models = chain.load_models(str(tmp_path))
  assert (models.coarse, models.fine) == (None, None)
  assert models.soundstorm.config == toys.CONFIGS['soundstorm']
  assert models.tokenizer is bound
  # The semantic stage reads no codes, so that another codec does not matter to it.
  for part, stage in (('soundstream', 'soundstorm'), ('semantic_tokens', 'semantic')):
    others[part] = 'another'
    with pytest.raises(UserError, match=f'stage {stage} was trained on tokens of {part} another'):
      chain.load_models(tmp_path)
    others.clear()
  for name in ('coarse', 'fine'):
    (tmp_path / name).mkdir()
  models = chain.load_models(tmp_path)
  acoustic = models.coarse, models.fine, models.soundstorm
  names = 'coarse', 'fine', 'soundstorm'
  assert [stage.config for stage in acoustic] == [toys.CONFIGS[name] for name in names]
  monkeypatch.setattr(chain, 'load_tokenizer', None)  # not called for one that is loaded already
  assert chain.load_models(tmp_path, tokenizer=bound).tokenizer is bound


def test_a_model_reads_tokens_of_its_rates_and_sizes_and_of_its_levels_or_more():
  made = tokens.Spec(
    semantic_rate=25.0, num_clusters=8, frame_rate=50.0, num_quantizers=4, codebook_size=16
  )
  assert made.differences(made) == [] and made.frames_per_semantic == 2
  assert tokens.Spec(num_quantizers=3, frame_rate=50.0).differences(made) == []
  wanted = tokens.Spec(num_quantizers=5, semantic_rate=12.5, codebook_size=16)
  assert wanted.differences(made) == [
    'semantic_rate=12.5, the tokens have 25.0',
    'num_quantizers=5, the tokens have 4',
  ]
  # manifests of before hold other entries, and may lack some
  assert tokens.Spec.of({'fingerprints': {}, 'frame_rate': 50.0}) == tokens.Spec(frame_rate=50.0)
  assert wanted.differences(tokens.Spec.of({})) == []

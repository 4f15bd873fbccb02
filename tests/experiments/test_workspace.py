"""What the programs read back from a workdir, and what they refuse."""

import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import kmeans
from audiolm_jax.pretrained import hubert
from audiolm_jax.stages.base import Variables
from experiments import recipe as recipe_lib
from experiments import workspace

ENCODER = kmeans.SemanticEncoder(config=None, layer=7, frames_per_token=2)


def save_clusters(workdir, w2v_bert='abc'):
  random = np.random.default_rng(0)
  arrays = (random.normal(size=shape).astype(np.float32) for shape in ((8,), (8,), (16, 8)))
  quantizer = kmeans.SemanticQuantizer(*(jnp.asarray(array) for array in arrays))
  workspace.save_semantic_quantizer(workspace.semantic_quantizer_path(workdir), quantizer, ENCODER, w2v_bert)
  return quantizer


def test_what_is_missing_names_the_command(tmp_path):
  with pytest.raises(ValueError, match=r'run `python -m experiments.train --stage=coarse --workdir='):
    workspace.load_stage(tmp_path, 'coarse')
  for load in (workspace.load_semantic_quantizer, lambda workdir: workspace.token_source(workdir, 'train')):
    with pytest.raises(ValueError, match=r'run `python -m experiments.encode --workdir='):
      load(tmp_path)


def test_clusters_come_back(tmp_path):
  quantizer = save_clusters(tmp_path)
  got, metadata = workspace.load_semantic_quantizer(tmp_path)
  for one, other in zip(got, quantizer, strict=True):
    np.testing.assert_array_equal(one, other)
  assert [metadata[name] for name in ('layer', 'frames_per_token', 'w2v_bert')] == ['7', '2', 'abc']
  assert [path.name for path in workspace.semantic_quantizer_path(tmp_path).parent.iterdir()] == ['kmeans.safetensors']


def test_models_hold_the_acoustic_stages_that_are_there(tmp_path, monkeypatch):
  """What is loaded is faked, except for the fingerprints."""
  codec = Variables({'generator': np.zeros(1)}, {'codebooks': np.zeros(1)})
  made_by = {'soundstream': workspace.codec_fingerprint(codec), 'semantic_tokens': 'digest'}
  others = {}

  def load_stage(workdir, name):
    if name not in ('soundstream', 'semantic') and not (workdir / name).is_dir():
      raise ValueError(f'{name} is not there')
    return name, codec, {'fingerprints': made_by | others.get(name, {})}

  tokenizer = ('encoder', codec, None, {'digest': 'digest'})
  monkeypatch.setattr(workspace, 'load_stage', load_stage)
  monkeypatch.setattr(workspace, 'load_semantic_tokenizer', lambda workdir: tokenizer)
  with pytest.raises(ValueError, match='coarse is not there'):
    workspace.load_models(tmp_path)
  (tmp_path / 'soundstorm').mkdir()
  models = workspace.load_models(tmp_path)
  assert (models.coarse, models.fine, models.soundstorm) == (None, None, ('soundstorm', codec))
  assert models.w2v_bert == ('encoder', codec)
  others['soundstorm'] = {'soundstream': 'another'}
  with pytest.raises(ValueError, match='stage soundstorm was trained on tokens of soundstream another'):
    workspace.load_models(tmp_path)
  others.clear()
  for name in ('coarse', 'fine'):
    (tmp_path / name).mkdir()
  models = workspace.load_models(tmp_path)
  assert [stage[0] for stage in (models.coarse, models.fine, models.soundstorm)] == ['coarse', 'fine', 'soundstorm']


def test_clusters_of_another_encoder_are_refused(tmp_path, monkeypatch):
  config = hubert.Config(conv_channels=(4,), conv_kernels=(4,), conv_strides=(2,))
  variables = Variables({'weight': np.zeros(1)}, {})
  monkeypatch.setattr(workspace, 'load_stage', lambda workdir, name: (config, variables, {}))
  save_clusters(tmp_path, workspace.fingerprint(variables.params))
  encoder, found, quantizer, metadata = workspace.load_semantic_tokenizer(tmp_path)
  assert encoder == kmeans.SemanticEncoder(config=config, layer=7, frames_per_token=2) and found is variables
  assert encoder.frame_rate == config.frame_rate / 2 and encoder.hop_length == 2 * config.hop_length
  variables.params['weight'][:] = 1
  with pytest.raises(ValueError, match='fitted on another w2v_bert: move .* away'):
    workspace.load_semantic_tokenizer(tmp_path)


def test_imports_that_are_missing_name_their_commands(tmp_path):
  recipe = recipe_lib.load('librispeech_pretrained')
  (tmp_path / 'soundstream').mkdir()
  with pytest.raises(ValueError, match=f'run\n  python -m experiments.pretrained import .*hubert.* --workdir={tmp_path}$'):
    workspace.require_imports(recipe, tmp_path)
  (tmp_path / 'w2v_bert').mkdir()
  workspace.require_imports(recipe, tmp_path)


def test_a_flipped_byte_is_refused(tmp_path):
  save_clusters(tmp_path)
  path = workspace.semantic_quantizer_path(tmp_path)
  content = bytearray(path.read_bytes())
  content[-9] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match='is damaged .*run experiments.encode again'):
    workspace.load_semantic_quantizer(tmp_path)


def test_fingerprints_see_values_names_and_types():
  trees = [{'a': np.zeros(2)}, {'a': np.ones(2)}, {'b': np.zeros(2)}, {'a': np.zeros(2, np.float32)}]
  prints = [workspace.fingerprint(tree) for tree in trees]
  assert len(set(prints)) == 4 and prints[0] == workspace.fingerprint({'a': np.zeros(2)})


def test_stacked_pads_with_zeros_at_the_end():
  wave_BT, num_samples_B = workspace.stacked([np.ones(2, np.float32), np.full(3, 2, np.float32)])
  np.testing.assert_array_equal(wave_BT, [[1, 1, 0], [2, 2, 2]])
  np.testing.assert_array_equal(num_samples_B, [2, 3])
  assert (wave_BT.dtype, num_samples_B.dtype) == (np.float32, np.int32)

"""What the programs read back from a workdir, and what they refuse."""

import os
import pathlib
import re
import subprocess
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import files, kmeans
from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import hubert
from audiolm_jax.stages.base import Variables
from experiments import evaluations, workspace
from experiments import recipe as recipe_lib

ROOT = pathlib.Path(__file__).parents[2]
ENCODER = kmeans.SemanticEncoder(config=None, layer=7, frames_per_token=2)


def save_clusters(workdir, w2v_bert='abc'):
  random = np.random.default_rng(0)
  arrays = (random.normal(size=shape).astype(np.float32) for shape in ((8,), (8,), (16, 8)))
  quantizer = kmeans.SemanticQuantizer(*(jnp.asarray(array) for array in arrays))
  workspace.save_semantic_quantizer(
    workspace.semantic_quantizer_path(workdir), quantizer, ENCODER, w2v_bert
  )
  return quantizer


def test_what_is_missing_names_the_command(tmp_path):
  with pytest.raises(
    ValueError, match=r'run `python -m experiments.train --stage=coarse --workdir='
  ):
    workspace.load_stage(tmp_path, 'coarse')
  for load in (
    workspace.load_semantic_quantizer,
    lambda workdir: workspace.token_source(workdir, 'train'),
  ):
    with pytest.raises(ValueError, match=r'run `python -m experiments.encode --workdir='):
      load(tmp_path)


def test_clusters_come_back(tmp_path):
  quantizer = save_clusters(tmp_path)
  got, metadata = workspace.load_semantic_quantizer(tmp_path)
  for one, other in zip(got, quantizer, strict=True):
    np.testing.assert_array_equal(one, other)
  assert [metadata[name] for name in ('layer', 'frames_per_token', 'w2v_bert')] == ['7', '2', 'abc']
  assert [path.name for path in workspace.semantic_quantizer_path(tmp_path).parent.iterdir()] == [
    'kmeans.safetensors'
  ]


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
  with pytest.raises(
    ValueError, match='stage soundstorm was trained on tokens of soundstream another'
  ):
    workspace.load_models(tmp_path)
  others.clear()
  for name in ('coarse', 'fine'):
    (tmp_path / name).mkdir()
  models = workspace.load_models(tmp_path)
  assert [stage[0] for stage in (models.coarse, models.fine, models.soundstorm)] == [
    'coarse',
    'fine',
    'soundstorm',
  ]


def test_clusters_of_another_encoder_are_refused(tmp_path, monkeypatch):
  config = hubert.Config(conv_channels=(4,), conv_kernels=(4,), conv_strides=(2,))
  variables = Variables({'weight': np.zeros(1)}, {})
  monkeypatch.setattr(workspace, 'load_stage', lambda workdir, name: (config, variables, {}))
  save_clusters(tmp_path, workspace.fingerprint(variables.params))
  encoder, found, quantizer, metadata = workspace.load_semantic_tokenizer(tmp_path)
  assert (
    encoder == kmeans.SemanticEncoder(config=config, layer=7, frames_per_token=2)
    and found is variables
  )
  assert encoder.frame_rate == config.frame_rate / 2 and encoder.hop_length == 2 * config.hop_length
  variables.params['weight'][:] = 1
  with pytest.raises(ValueError, match='fitted on another w2v_bert: move .* away'):
    workspace.load_semantic_tokenizer(tmp_path)


def test_imports_that_are_missing_name_their_commands(tmp_path):
  recipe = recipe_lib.load('librispeech_pretrained')
  (tmp_path / 'soundstream').mkdir()
  with pytest.raises(
    ValueError,
    match=f'run\n  python -m experiments.pretrained import .*hubert.* --workdir={tmp_path}$',
  ):
    workspace.require_imports(recipe, tmp_path)
  (tmp_path / 'w2v_bert').mkdir()
  workspace.require_imports(recipe, tmp_path)


def test_a_flipped_byte_is_refused(tmp_path):
  save_clusters(tmp_path)
  path = workspace.semantic_quantizer_path(tmp_path)
  content = bytearray(path.read_bytes())
  content[-9] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match='is damaged .*run .*experiments.encode.* again'):
    workspace.load_semantic_quantizer(tmp_path)


def test_code_vectors_of_embeddings_come_back_for_their_model_alone(tmp_path):
  path = tmp_path / 'text_tokens' / 'quantizer.safetensors'
  with pytest.raises(ValueError, match='does not exist.*embedding_tokens.fit'):
    workspace.load_embedding_quantizer(path, 'abc')
  vectors_QKD = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
  workspace.save_embedding_quantizer(path, jnp.asarray(vectors_QKD), 'abc')
  np.testing.assert_array_equal(workspace.load_embedding_quantizer(path, 'abc'), vectors_QKD)
  with pytest.raises(ValueError, match='embeddings of the model abc, not of xyz: fit it again'):
    workspace.load_embedding_quantizer(path, 'xyz')
  content = path.read_bytes()
  for damaged in (
    content[:-5],
    content[:-1] + bytes([content[-1] ^ 1]),
    content.replace(b'"abc"', b'"xyz"'),
  ):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match='is damaged .*fit the quantizer again'):
      workspace.load_embedding_quantizer(path, 'xyz')


def test_fingerprints_see_values_names_and_types():
  trees = [
    {'a': np.zeros(2)},
    {'a': np.ones(2)},
    {'b': np.zeros(2)},
    {'a': np.zeros(2, np.float32)},
  ]
  prints = [workspace.fingerprint(tree) for tree in trees]
  assert len(set(prints)) == 4 and prints[0] == workspace.fingerprint({'a': np.zeros(2)})


def test_stacked_pads_with_zeros_at_the_end():
  wave_BT, num_samples_B = workspace.stacked([np.ones(2, np.float32), np.full(3, 2, np.float32)])
  np.testing.assert_array_equal(wave_BT, [[1, 1, 0], [2, 2, 2]])
  np.testing.assert_array_equal(num_samples_B, [2, 3])
  assert (wave_BT.dtype, num_samples_B.dtype) == (np.float32, np.int32)


def test_waiting_for_others_ends(tmp_path):
  files = [tmp_path / 'a', tmp_path / 'b']
  missing = lambda: [str(file) for file in files if not file.exists()]
  for delay, file in enumerate(files, 1):
    threading.Timer(0.3 * delay, file.touch).start()
  workspace.wait_for('files', missing, patience_seconds=5.0)  # of each, not of both
  files.append(tmp_path / 'c')
  with pytest.raises(
    ValueError, match=r'process 0 of 1 has waited 0.3 s for files: .*/c \(1 in all\)'
  ):
    workspace.wait_for('files', missing, patience_seconds=0.3)


def test_the_address_of_a_pod_is_checked(monkeypatch):
  monkeypatch.setenv('AUDIOLM_DISTRIBUTED', '0')
  workspace.join_pod()  # alone
  monkeypatch.setenv('AUDIOLM_DISTRIBUTED', 'here,2')
  with pytest.raises(
    ValueError, match='AUDIOLM_DISTRIBUTED=here,2: set it to 1, or to ADDRESS:PORT,COUNT,INDEX'
  ):
    workspace.join_pod()


def test_what_was_compiled_is_found_again(tmp_path):
  """In processes of their own: the first fills the cache that is cold, the second takes from it."""
  program = (
    'import sys, jax, jax.monitoring; from experiments import workspace; seen = []\n'
    'jax.monitoring.register_event_listener(lambda name, **more: seen.append(name))\n'
    'workspace.keep_compiled(sys.argv[1]); jax.jit(lambda x: x * 3 + 1)(2.0)\n'
    'print(*(sum(name.endswith(kind) for name in seen) for kind in ("/cache_hits", "/cache_misses")))'
  )
  environment = os.environ | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  counts = []
  for _ in range(2):
    command = [sys.executable, '-c', program, str(tmp_path / 'cache')]
    done = subprocess.run(
      command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True
    )
    counts.append([int(number) for number in done.stdout.split()])
  (cold_hits, cold_misses), (warm_hits, warm_misses) = counts
  assert cold_hits == 0 and cold_misses > 0 and warm_hits == cold_misses and warm_misses == 0


@pytest.mark.parametrize('mode', [0o777, 0o1777, 0o775, 0o757])
def test_a_compilation_cache_that_others_can_write_is_refused(tmp_path, mode):
  cache = tmp_path / 'a cache'
  cache.mkdir()
  cache.chmod(mode)
  with pytest.raises(
    ValueError, match="others can write to the compilation cache .*chmod go-w '.*a cache'"
  ):
    workspace.check_cache(str(cache))
  subprocess.run(['chmod', 'go-w', cache], check=True)  # the remedy
  workspace.check_cache(str(cache))


def test_a_compilation_cache_is_made_so_that_others_cannot_write(tmp_path):
  previous = os.umask(0)
  try:
    workspace.check_cache(str(tmp_path / 'new' / 'cache'))
  finally:
    os.umask(previous)
  assert (tmp_path / 'new' / 'cache').stat().st_mode & 0o777 == 0o755
  workspace.check_cache('gs://bucket/cache')  # who may write there is the bucket's matter


def test_a_compilation_cache_of_another_user_is_refused(tmp_path, monkeypatch):
  if os.geteuid() == 0:
    os.chown(tmp_path, 12_345, -1)
  owner = tmp_path.stat().st_uid
  monkeypatch.setattr(os, 'geteuid', lambda: owner + 1)
  with pytest.raises(ValueError, match=f'belongs to user {owner}, who can put programs there'):
    workspace.check_cache(str(tmp_path))


def test_programs_refuse_a_shared_cache_of_the_environment_and_print_no_escapes(
  tmp_path, monkeypatch
):
  cache = tmp_path / 'c\x1b[2J'
  cache.mkdir()
  cache.chmod(0o777)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(cache))
  called = []
  with pytest.raises(SystemExit, match=r'error: others can write to .*c\\x1b\[2J'):
    workspace.run(lambda: called.append(1))
  assert not called


def test_errors_keep_their_lines_and_lose_their_escapes():
  def fail():
    raise UserError('a\n  \x1b]0;b\x07 \udcff')

  with pytest.raises(SystemExit) as caught:
    workspace.run(fail)
  assert str(caught.value) == 'error: a\n  \\x1b]0;b\\x07 \\udcff'


@pytest.mark.parametrize('text', ['{', '[]'])
def test_a_torn_mark_of_a_folder_is_named(tmp_path, text):
  (tmp_path / 'made_by.json').write_text(text)
  with pytest.raises(ValueError, match='made_by.json .*: move .* away first'):
    workspace.claim(tmp_path, {'soundstream': 'abc'})


@pytest.mark.parametrize('text', ['{', '[]', '{}', '{"rows": []}', '{"rows": {"a": 3}}'])
def test_damaged_results_are_named(tmp_path, text):
  files.write_text(evaluations.path(tmp_path, 'codec'), text)
  with pytest.raises(ValueError, match='codec.json .*: delete it and measure again'):
    evaluations.load(tmp_path)


def test_no_program_reads_a_number_without_a_check():
  sources = [*(ROOT / 'experiments').rglob('*.py')]
  assert len(sources) > 40
  unchecked = re.compile(r'\btype=(int|float)\b')
  assert not [path.name for path in sources if unchecked.search(path.read_text())]

"""F22: kills while a corpus is made, the k-means fitted, tokens written; and the same job on
several processes.
"""

import dataclasses
import json
import random
import sys
import time

import jax
import numpy as np
import pytest
import soundfile
from jax.experimental import multihost_utils

from audiolm_jax import arrays_file, storage
from audiolm_jax.data import synthesized, token_shards
from audiolm_jax.stages import w2v_bert
from audiolm_jax.training import configs, lock, saving, sharding
from experiments import encode
from tests.faults import runs
from tests.stages import test_contract
from tests.training import toy_run

CODEC = dataclasses.replace(
  test_contract.SOUNDSTREAM,
  network=dataclasses.replace(test_contract.SOUNDSTREAM.network, strides=(8, 40)),
)  # 50 frames a second
NUM_CLIPS = 40
_NUM_FILES = 10 + 2 + 2 + 1 + 1


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Untrained models in a workdir, and clips of 1 to 3 s, of which one cannot be read."""
  root = tmp_path_factory.mktemp('clips')
  draws = np.random.default_rng(22)
  for i in range(NUM_CLIPS):
    soundfile.write(root / f'{i:02d}.wav', 0.1 * draws.normal(size=16_000 * (1 + i % 3)), 16_000)
  (root / '05.wav').write_bytes(b'RIFF')
  workdir = tmp_path_factory.mktemp('models')
  save_models(workdir)
  return root, workdir


def save_models(workdir):
  for name, config in (
    ('soundstream', CODEC),
    ('w2v_bert', w2v_bert.Config(**test_contract.W2V_BERT)),
  ):
    variables = jax.jit(lambda key: sharding.unbox(config.make().init(key)))(jax.random.key(0))
    checkpointer = saving.Checkpointer(workdir / name / 'checkpoints')
    metadata = {'config': configs.describe(config), 'fingerprints': {}}
    checkpointer.save(0, {'params': variables.params, 'state': variables.state}, None, metadata)
    checkpointer.close()


@pytest.fixture
def there(made, place):
  """The same, but for a bucket models that are in it."""
  root, models = made
  if storage.in_bucket(place):
    save_models(place / 'models')
    models = place / 'models'
  return root, models


def encode_corpus(models, workdir, root, moment=None):
  """Runs the program in a workdir of its own; `moment` names where the last process kills
  itself.
  """
  storage.make_folder(workdir)
  for name in ('soundstream', 'w2v_bert'):
    if storage.in_bucket(workdir):
      if jax.process_index() == 0:
        runs.copy(models / name, workdir / name)
      continue
    try:
      (workdir / name).symlink_to(models / name)
    except FileExistsError:  # the other process was faster, or it is a later start
      pass
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('models are there')
  encode.SHARD_EXAMPLES = 4
  if moment is not None and jax.process_index() == jax.process_count() - 1:
    _arm(moment)
  sys.argv = [
    'encode',
    '--recipe=folder',
    f'--workdir={workdir}',
    f'--set=corpus.root={root}',
    '--set=corpus.held_out=0.2',
    '--set=semantic_tokens.layer=1',
    '--set=semantic_tokens.num_clusters=8',
    '--set=semantic_tokens.sample_seconds=40',
    # What the stages would have to be to learn from these tokens.
    '--set=coarse.model.num_quantizers=1',
    '--set=fine.model.num_coarse=1',
    *(f'--set={stage}.model.num_clusters=8' for stage in ('semantic', 'coarse')),
    *(f'--set={stage}.model.codebook_size=8' for stage in ('coarse', 'fine')),
    *(f'--set={stage}.model.total_quantizers=2' for stage in ('coarse', 'fine')),
  ]
  encode.main()


def _arm(moment):
  module, name, call = {
    'sample': (np, 'savez', 1),
    'clusters': (arrays_file, 'write', 1),
    'shard': (token_shards, 'encode', 10),
    'rename': (token_shards.os, 'replace', 3),
    'upload': (storage.client(), 'write', 3),
    'manifest': (token_shards, 'write_manifest', 1),
  }[moment]
  original, calls = getattr(module, name), []

  def killing(*arguments, **options):
    calls.append(0)
    if len(calls) == call:
      toy_run._kill()
    return original(*arguments, **options)

  setattr(module, name, killing)


def _hashes(workdir) -> dict[str, str]:
  """Returns the SHA-256 of every file that the job made, by name."""
  return {
    name.rpartition('/')[2]: storage.digest(workdir / folder / name)[1]
    for folder in ('tokens', 'semantic_tokens')
    for name in storage.files_below(workdir / folder)
    if name != lock.FILE  # a bucket's is deleted
  }


@pytest.fixture(scope='module')
def undisturbed(made, tmp_path_factory):
  root, models = made
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  logs = tmp_path_factory.mktemp('logs')
  runs.finish_pod(
    runs.start_pod(encode_corpus, models, workdir, root, count=1, devices=1, logs=logs), logs
  )
  hashes = _hashes(workdir)
  # Shards, manifests, lists of files, what made them, and the clusters.
  assert len(hashes) == _NUM_FILES and 'kmeans.safetensors' in hashes
  num_examples = sum(
    shard['num_examples']
    for split in ('train', 'test')
    for shard in json.loads((workdir / 'tokens' / f'{split}.json').read_text())['shards']
  )
  assert num_examples == NUM_CLIPS - 1
  return hashes


def test_f22_a_job_killed_anywhere_goes_on(there, undisturbed, place, tmp_path, outcome):
  """One job, killed at each moment, and then let to its end."""
  root, models = there
  moments = ['sample', 'clusters', 'shard', 'rename', 'manifest']
  if storage.in_bucket(place):
    moments[moments.index('rename')] = 'upload'
  workdir = place / 'run'
  for moment in moments:
    log = tmp_path / moment
    runs.finish(runs.start(encode_corpus, models, workdir, root, moment, log=log), log, runs.KILLED)
  runs.finish(runs.start(encode_corpus, models, workdir, root, log=log), log)
  assert _hashes(workdir) == undisturbed
  outcome('F22', f'encode killed at {", ".join(moments)}: all {len(undisturbed)} files bitwise')


@pytest.mark.parametrize(
  'place, counts', [('disk', (2, 1, 2)), ('disk', (4, 2)), ('bucket', (2, 1))], indirect=['place']
)
def test_f22_several_processes_make_the_same(counts, there, undisturbed, place, tmp_path, outcome):
  """Also where all of them are killed on the way, at random, and started again in another
  number.
  """
  root, models = there

  def start(name, attempt):
    logs = tmp_path / f'logs of {name} {attempt}'
    options = dict(count=counts[attempt], devices=1, logs=logs)
    return runs.start_pod(encode_corpus, models, place / name, root, **options), logs

  began = time.monotonic()
  runs.finish_pod(*start('whole', 0))
  seconds = time.monotonic() - began
  whole = _hashes(place / 'whole')
  same = whole['kmeans.safetensors'] == undisturbed['kmeans.safetensors']
  assert same and whole == undisturbed
  moments, last, was_killed = random.Random(counts[0]), len(counts) - 1, []
  for attempt in range(last):
    pod, _ = start('killed', attempt)
    time.sleep(moments.uniform(0.2, 0.6) * seconds)  # of a time that varies with the machine's load
    for process in pod:
      process.kill()
    for process in pod:
      process.join()
    was_killed += [process.exitcode == runs.KILLED for process in pod]
  # Not all: a later attempt may be done before, and one that sees another gone ends by itself.
  assert any(was_killed)
  runs.finish_pod(*start('killed', last))
  assert _hashes(place / 'killed') == undisturbed
  outcome(
    'F22',
    f'{counts[0]} processes: clusters and shards bitwise those of one; killed, and started again as '
    f'{", ".join(map(str, counts[1:]))}: the same',
  )


def make_corpus(config, cache, die):
  if die:
    original = synthesized.np.savez

    def half(file, **arrays):
      original(file, **{name: array[: len(array) // 2] for name, array in arrays.items()})
      file.flush()
      toy_run._kill()

    synthesized.np.savez = half
  synthesized.examples(config, 'train', cache_dir=str(cache))


def test_f22_a_corpus_killed_while_written_is_made_anew(tmp_path, outcome):
  pytest.importorskip('espeakng_loader')
  config = synthesized.Config(
    num_train_voices=2, num_test_voices=1, train_minutes=0.2, utterance_seconds=4.0
  )
  log = tmp_path / 'log'
  runs.finish(runs.start(make_corpus, config, tmp_path / 'killed', True, log=log), log, runs.KILLED)
  for name in ('killed', 'whole'):
    runs.finish(runs.start(make_corpus, config, tmp_path / name, False, log=log), log)
  killed, whole = (
    [path for path in (tmp_path / name).iterdir() if path.suffix == '.npz']
    for name in ('killed', 'whole')
  )
  with (
    np.load(killed[0], allow_pickle=False) as one,
    np.load(whole[0], allow_pickle=False) as other,
  ):
    for name in other.files:
      np.testing.assert_array_equal(one[name], other[name])
  outcome('F22', 'synthesized corpus killed while it was written: made anew, bitwise')

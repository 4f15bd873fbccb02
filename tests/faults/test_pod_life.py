"""A pod of four hosts lives through its life in the cloud of tests/tpu_scripts, with real training:
create, mount, launch, preemption, and all again under another name.
"""

import dataclasses
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np

from audiolm_jax import testing
from audiolm_jax.data import token_shards
from audiolm_jax.tokens import Spec
from audiolm_jax.training import checkpoints, metrics_writer
from tests import toys
from tests.faults import runs
from tests.tpu_scripts import test_pod_block

NUM_STEPS = 30
PAGE = f"""
from audiolm_jax.training.loop import TrainConfig
from experiments.corpora import LibriLight
from experiments.inputs import Tokens
from experiments.recipe import Recipe, SemanticTokens, StageRecipe
from tests import toys

TRAIN = TrainConfig(
  batch_size=8, num_steps={NUM_STEPS}, log_every=1, save_every=6, slack_steps=2, tensorboard=False
)
RECIPE = Recipe(
  corpus=LibriLight(root=''),
  stages={{'semantic': StageRecipe(model=toys.CONFIGS['semantic'], data=Tokens(), train=TRAIN)}},
  semantic_tokens=SemanticTokens(layer=1, num_clusters=toys.CLUSTERS),
)
"""
# Trains with the interpreter of the tests, on hosts that have mounted the shared folder. They find
# one another by an address, because there is no TPU that could tell them.
TRAIN = rf"""#!/usr/bin/env bash
[[ -L $HOME/mnt/shared && $AUDIOLM_DISTRIBUTED == 1 && $1 == -m && $2 == experiments.train ]] || exit 1
cd {test_pod_block.ROOT}
export POD_HOST=$(cat "$CLOUD/life")-w${{HOME##*/}}
export AUDIOLM_DISTRIBUTED=127.0.0.1:$(cat "$CLOUD/port"),4,${{HOME##*/}}
export PYTHONPATH=$PWD OMP_NUM_THREADS=1
exec {sys.executable} -m tests.faults.pod_host "${{@:3}}"
"""


class Pod(test_pod_block.Cloud):
  """A cloud of four hosts, whose machines have other names after each creation."""

  def __init__(self, folder: pathlib.Path):
    super().__init__(folder)
    gcloud = folder / 'bin/gcloud'
    gcloud.write_text(gcloud.read_text().replace('{0,1}', '{0,1,2,3}'))
    (folder / 'train').write_text(TRAIN)
    (folder / 'life').write_text('first')

  def make(self, name: str):
    """Creates the machines under a name, and mounts the shared folder."""
    (self.folder / 'life').write_text(name)
    flags = f'--name={name} --zone=us-west4-a'
    for line in (
      f'tpu_scripts/create.sh {flags} --topology=v5e:4x4 --tier=spot',
      f'tpu_scripts/status.sh {flags} --wait=600',
      f'tpu_scripts/mount.sh {flags} --source=10.0.0.2:/shared --folder=/mnt/shared',
    ):
      done = self.run(line)
      assert done.returncode == 0, (line, done.stdout, done.stderr)

  def launch(self, name: str, workdir: pathlib.Path) -> list[int]:
    """Starts training on all hosts, and returns the ids of their processes."""
    (self.folder / 'port').write_text(str(runs.free_port()))
    shared = self.folder / 'shared'
    done = self.run(
      f'tpu_scripts/launch.sh --name={name} --zone=us-west4-a -- python -m experiments.train '
      f'--stage=semantic --recipe={shared}/page.py --workdir={workdir} '
      f'--compilation_cache={shared}/compiled'
    )
    assert done.returncode == 0, done.stderr
    return [int(path.read_text()) for path in self.hosts('audiolm_jax.pid')]

  def hosts(self, name: str) -> list[pathlib.Path]:
    return [self.folder / 'hosts' / str(index) / name for index in range(4)]

  def finish(self, name: str, workdir: pathlib.Path):
    """Launches until the training is done, as one does on a machine that is too busy for Gloo."""
    for _ in range(3):
      pids = self.launch(name, workdir)
      _wait(lambda: not any(map(_runs, pids)), 400)
      if runs.newest(workdir / 'semantic') == NUM_STEPS:
        return
    raise AssertionError([path.read_text()[-2000:] for path in self.hosts('audiolm_jax.log')])


def _runs(pid: int) -> bool:
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except OSError:
    return False


def _wait(condition, seconds: float):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, 'waited in vain'
    time.sleep(0.05)


def _write_tokens(workdir: pathlib.Path):
  rng = np.random.default_rng(0)
  spec = Spec(
    semantic_rate=25.0,
    num_clusters=toys.CLUSTERS,
    frame_rate=50.0,
    num_quantizers=toys.LEVELS,
    codebook_size=toys.CODES,
  )
  metadata = {'fingerprints': {'soundstream': 'a'}, **dataclasses.asdict(spec)}
  for split in ('train', 'test'):
    rows = [
      {
        'semantic': rng.integers(0, toys.CLUSTERS, 60),
        'codes': rng.integers(0, toys.CODES, (120, toys.LEVELS)),
      }
      for _ in range(16)
    ]
    token_shards.write_shard(workdir / 'tokens', split, 0, 1, rows)
    token_shards.write_manifest(workdir / 'tokens', split, 1, metadata)


def test_a_pod_of_four_that_is_taken_away_and_created_again(tmp_path, outcome):
  pod = Pod(tmp_path)
  shared = tmp_path / 'shared'
  (shared / 'page.py').write_text(PAGE)
  for name in ('run', 'undisturbed'):
    _write_tokens(shared / name)
  pod.make('first')
  pod.finish('first', shared / 'undisturbed')
  pids = pod.launch('first', shared / 'run')
  metrics = shared / 'run/semantic' / metrics_writer.FILE
  _wait(lambda: metrics.exists() and b'{"step": 14, ' in metrics.read_bytes(), 400)
  for pid in pids:
    os.kill(pid, signal.SIGKILL)
  _wait(lambda: not any(map(_runs, pids)), 60)
  resumed = runs.newest(shared / 'run/semantic')
  assert 6 <= resumed < NUM_STEPS
  pod.preempt()
  assert pod.run('tpu_scripts/delete.sh --name=first --zone=us-west4-a').returncode == 0
  pod.make('second')
  pod.finish('second', shared / 'run')
  log = pod.hosts('audiolm_jax.log')[0].read_text()
  assert 'whether process' in log and 'on first-w0 still uses' in log
  found, expected = (
    checkpoints.load_variables(shared / name / 'semantic', config=toys.CONFIGS['semantic'])
    for name in ('run', 'undisturbed')
  )
  testing.assert_trees_equal(jax.device_get(found.variables), jax.device_get(expected.variables))
  losses = [
    [metrics_writer.read(shared / name / 'semantic')[step]['loss'] for step in range(1, 31)]
    for name in ('run', 'undisturbed')
  ]
  assert losses[0] == losses[1]
  outcome(
    'F4',
    f'four hosts taken away at step 14 or later, created again under other names: resumed from '
    f'{resumed}, {NUM_STEPS} losses and the state bitwise',
  )

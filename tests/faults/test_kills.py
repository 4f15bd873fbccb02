"""F1 to F3: kills at any moment, at the worst moments, and signals."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import pytest

from audiolm_jax import storage
from audiolm_jax.training import checkpoints, metrics_writer, saving
from tests.faults import runs
from tests.stages import test_contract
from tests.training import toy_run

NUM_KILLS, NUM_KILLS_IN_BUCKET = 12, 8
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.usefixtures('disturbed')
def test_f1_kills_at_random_moments(reference, place, tmp_path, outcome):
  """After every kill the same command goes on, from a whole step; at the end it is bitwise the
  undisturbed run.
  """
  moments, log = random.Random(1), tmp_path / 'log'
  in_bucket = storage.in_bucket(place)
  num_kills, last, latest = (NUM_KILLS_IN_BUCKET, 42, 2.0) if in_bucket else (NUM_KILLS, 46, 0.05)
  workdir = place / 'run'
  resumed_from = []
  for number in range(num_kills):
    resumed_from.append(runs.newest(workdir))
    if resumed_from[-1] >= 42:  # as good as done: the rest of the kills hit a run from the start
      workdir, resumed_from[-1] = place / f'run{number}', 0
    process = runs.start(runs.slow_toy, workdir, log=log)
    if number % 5 == 0:  # hits a start, which takes longer than all training
      time.sleep(moments.uniform(0, 2))
    else:  # from one step to two saves after the resume
      runs.wait_for_step(process, workdir, min(resumed_from[-1] + moments.randint(1, 13), last))
      time.sleep(moments.uniform(0, latest))
    process.kill()
    process.join()
    ended = (runs.KILLED, 0) if in_bucket else (runs.KILLED,)  # lines are late there
    assert process.exitcode in ended
    assert runs.newest(workdir) >= resumed_from[-1]  # nothing whole is lost
    steps = checkpoints.steps(workdir / 'checkpoints')
    if steps:  # no line is missing that came before a checkpoint
      assert set(range(1, steps[-1] + 1)) <= metrics_writer.read(workdir).keys()
  assert len(set(resumed_from)) > num_kills // 5, resumed_from
  result = toy_run.train(workdir)
  compared = runs.assert_same_run(workdir, result, reference)
  outcome(
    'F1',
    f'{num_kills} kills, resumed from steps {resumed_from}; {compared} logged numbers and the state bitwise',
  )


@pytest.mark.parametrize('moment', ['data', 'digest', 'prune'])
def test_f2_kills_within_a_save(moment, reference, place, tmp_path, outcome):
  log = tmp_path / 'log'
  process = runs.start(runs.slow_toy, place, moment, log=log)
  runs.finish(process, log, runs.KILLED)
  whole = checkpoints.steps(place / 'checkpoints')
  # at least one step is whole, and half a one lies there
  assert whole and runs.num_remains(place) > 0
  result = toy_run.train(place)
  runs.assert_same_run(place, result, reference)
  assert runs.num_remains(place) == 0
  outcome('F2', f'{moment}: resumed from {whole[-1]}, bitwise, nothing half left')


def test_f3_signals_save_and_the_second_leaves(reference, place, tmp_path, outcome):
  log, run, second = tmp_path / 'log', place / 'run', place / 'second'
  for number in (signal.SIGTERM, signal.SIGINT):
    process = runs.start(runs.slow_toy, run, log=log)
    runs.wait_for_step(process, run, runs.newest(run) + 8)
    os.kill(process.pid, number)
    name, step, preempted = runs.finish(process, log).split()[-3:]
    assert preempted == 'True' and runs.newest(run) == int(step)
    # what was logged last is what was saved: no step is lost
    assert max(metrics_writer.read(run)) == int(step)
  result = toy_run.train(run)
  runs.assert_same_run(run, result, reference)

  process = runs.start(hang_in_save, second, log=log)
  runs.wait_for_step(process, second, 2)
  os.kill(process.pid, signal.SIGTERM)
  time.sleep(0.5)
  assert process.is_alive()
  began = time.monotonic()
  os.kill(process.pid, signal.SIGTERM)
  process.join(10)
  assert process.exitcode == -signal.SIGTERM
  outcome(
    'F3',
    f'SIGTERM and SIGINT: saved the step they found, bitwise; a second ends it in {time.monotonic() - began:.2f} s',
  )


def hang_in_save(workdir):
  saving.Checkpointer.save = lambda *unused: time.sleep(60)
  runs.slow_toy(workdir)


@pytest.mark.parametrize(
  'name', ['soundstream', 'w2v_bert', 'semantic', 'coarse', 'fine', 'soundstorm']
)
def test_every_stage_resumes_bitwise(name, tmp_path, outcome):
  """A run of every stage, cut and resumed, is bitwise the uncut one."""
  from audiolm_jax import testing
  from audiolm_jax.training import loop, optimizers, sharding

  config, batch, _ = test_contract.CASES[name]
  train_config = loop.TrainConfig(
    batch_size=4,
    num_steps=6,
    log_every=1,
    save_every=2,
    tensorboard=False,
    optimizer=optimizers.OptimizerConfig(learning_rate=1e-3),
    mesh=sharding.MeshConfig(data=2, fsdp=2, tensor=2),
  )

  class Batches:
    index, cut = 0, None

    def __next__(self):
      if self.index == self.cut:
        raise runs.Cut
      self.index += 1
      return {
        key: value[[(row + self.index) % 4 for row in range(4)]] for key, value in batch.items()
      }

    def get_state(self):
      return self.index

    def set_state(self, state):
      self.index = state

  def train(workdir, cut=None):
    Batches.cut = cut
    return loop.train(config.make(), config, train_config, make_batches=Batches, workdir=workdir)

  whole = train(tmp_path / 'whole')
  with pytest.raises(runs.Cut):
    train(tmp_path / 'cut', 5)
  assert runs.newest(tmp_path / 'cut') == 4
  resumed = train(tmp_path / 'cut')
  testing.assert_trees_equal(jax.device_get(resumed.variables), jax.device_get(whole.variables))
  outcome('F1', f'{name} cut at 5, bitwise')


STAGES_IN_A_ROW = """
import pathlib, sys
from experiments import recipe, train
sys.executable = sys.argv[1]
train.train_all(recipe.load('tiny'), pathlib.Path('w'), ['--workdir=w'])
"""


def test_f3_a_signal_to_all_stages_reaches_the_one_that_trains(tmp_path, outcome):
  """SIGTERM to `train --stage=all`: the stage in training gets it, saves (here: writes a file), and
  nothing follows.
  """
  program, saved = tmp_path / 'python', tmp_path / 'saved'
  program.write_text(
    f'#!/bin/sh\ntrap "sleep 1; echo $* >>{saved}; exit 143" TERM\ntouch {tmp_path}/ready\n'
    'while :; do sleep 0.1; done\n'
  )
  program.chmod(0o755)
  process = subprocess.Popen([sys.executable, '-c', STAGES_IN_A_ROW, str(program)], cwd=ROOT)
  while not (tmp_path / 'ready').exists():
    assert process.poll() is None
    time.sleep(0.05)
  process.terminate()
  assert process.wait(60) == 143
  assert saved.read_text() == '-m experiments.train --stage=soundstream --workdir=w\n'
  outcome('F3', '--stage=all hands the signal on to the stage in training, and waits for it')

"""Trains the toy stage in a process of its own, to be killed: python -m tests.training.toy_run
WORKDIR [moment].

`moment` names where the process kills itself: 'data' (arrays written, no digest), 'digest' (digest
written, not yet renamed) or 'prune' (an old step half deleted).
"""

import os
import pathlib
import shutil
import signal
import sys
import time

import jax

from audiolm_jax import storage
from audiolm_jax.training import loop, optimizers, saving
from tests.training import toy

TRAIN = loop.TrainConfig(
  batch_size=8,
  num_steps=48,
  optimizer=optimizers.OptimizerConfig(learning_rate=1e-2),
  ema_decay=0.9,
  log_every=1,
  eval_every=16,
  save_every=6,
  max_to_keep=2,
  tensorboard=False,
)


class SlowBatches(toy.Batches):
  def __next__(self):
    time.sleep(0.03)
    return super().__next__()


def train(workdir, make_batches=toy.Batches, **changes):
  config = toy.Config()
  settings = dict(make_batches=make_batches, make_eval_batches=toy.Batches, workdir=workdir)
  return loop.train(config.make(), config, TRAIN, **settings | changes)


def _kill(*unused):
  os.kill(os.getpid(), signal.SIGKILL)


def _arm(moment):
  write = saving.Checkpointer._write_digest
  saves = []

  def write_digest(self):
    saves.append(moment == 'data' and len(saves) == 1 and _kill())
    write(self)
    if moment == 'digest' and len(saves) == 2:
      _kill()

  saving.Checkpointer._write_digest = write_digest
  if moment == 'prune':
    remove = shutil.rmtree

    def rmtree(path, *args, **kwargs):
      if str(path).endswith('.pruned'):
        next(path for path in pathlib.Path(path).rglob('*') if path.is_file()).unlink()
        _kill()
      remove(path, *args, **kwargs)

    shutil.rmtree = rmtree
    storage.remove = _kill  # of a bucket


if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', 8)
  _arm(sys.argv[2] if len(sys.argv) > 2 else None)
  result = train(sys.argv[1], SlowBatches)
  print('result', result.step, result.preempted)

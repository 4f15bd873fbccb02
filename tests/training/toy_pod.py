"""One of several processes that train the toy stage together: python -m tests.training.toy_pod WORKDIR PORT INDEX STEPS.

Every process takes every other row of a batch, so that the rows come in another order than in one process: the noise,
which is drawn by row, is off.
"""

import sys
import time

import jax

from audiolm_jax.training import loop, sharding
from tests.training import toy

PROCESSES = 2


class SlowBatches(toy.Batches):
  def __next__(self):
    time.sleep(0.02)
    return super().__next__()


def train(workdir, num_steps, mesh=sharding.MeshConfig(), make_batches=toy.Batches):
  config = toy.Config(inner=toy.Inner(noise=0.0))
  train_config = loop.TrainConfig(
      batch_size=8, num_steps=num_steps, log_every=1, save_every=5, ema_decay=0.9, tensorboard=False, mesh=mesh
  )
  return loop.train(config.make(), config, train_config, make_batches=make_batches, workdir=workdir)


if __name__ == '__main__':
  workdir, port, index, num_steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
  jax.config.update('jax_num_cpu_devices', 2)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'127.0.0.1:{port}', PROCESSES, index)
  mesh = sharding.MeshConfig(data=2, fsdp=2)
  result = train(workdir, num_steps, mesh, lambda: SlowBatches(process=index, processes=PROCESSES))
  print('result', result.step, result.preempted)

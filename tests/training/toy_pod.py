"""One of several processes that train the toy stage together: each holds the rows of its
devices.
"""

import time

import jax

from audiolm_jax.training import loop, sharding
from tests.training import toy


def settings(num_steps: int, **changes) -> loop.TrainConfig:
  values = dict(
    batch_size=8,
    num_steps=num_steps,
    log_every=1,
    save_every=5,
    ema_decay=0.9,
    tensorboard=False,
    mesh=sharding.MeshConfig(data=2, fsdp=2),
  )
  return loop.TrainConfig(**values | changes)


class SlowBatches(toy.Batches):
  def __next__(self):
    time.sleep(0.02)
    return super().__next__()


def train(workdir, num_steps, make_batches=SlowBatches, **changes):
  config = toy.Config()
  batches = lambda: make_batches(process=jax.process_index(), processes=jax.process_count())
  result = loop.train(
    config.make(), config, settings(num_steps, **changes), make_batches=batches, workdir=workdir
  )
  print('result', result.step, result.preempted)
  return result

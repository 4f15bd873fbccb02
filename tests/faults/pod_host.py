"""One host of the simulated pod of test_pod_life.py: python -m tests.faults.pod_host FLAGS of train.

It has the host name of the environment, and a lease and steps of a length that suits a test.
"""

import os
import socket
import time

import jax

from audiolm_jax.training import lock, monitor
from experiments import train
from experiments.cli import command_line

socket.gethostname = lambda: os.environ['POD_HOST']
lock.LEASE_SECONDS, lock.RENEW_SECONDS = 8.0, 1.0
_step = monitor.Monitor.step


def _slow_step(*arguments):
  time.sleep(0.1)
  return _step(*arguments)


if __name__ == '__main__':
  monitor.Monitor.step = _slow_step
  jax.config.update('jax_num_cpu_devices', 1)
  command_line.run(train.main)

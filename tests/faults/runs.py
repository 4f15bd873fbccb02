"""What the fault tests share: runs in processes that can be killed, and the comparison with an
undisturbed run.
"""

import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import tempfile
import time

import jax
import numpy as np

from audiolm_jax import storage, testing
from audiolm_jax.training import checkpoints, metrics_writer
from experiments.cli import command_line
from tests import bucket_server
from tests.training import toy, toy_run

# What one start compiles the next need not.
CACHE = os.path.join(tempfile.gettempdir(), f'audiolm_faults_{os.getpid()}')
_TIMES = {'time', 'steps_per_second'}

# A server that has imported everything and touched no device: a start then costs what training
# costs.
_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(['tests.faults.runs'])


def start(function, *arguments, log: pathlib.Path) -> multiprocessing.Process:
  """Runs function(*arguments), of a module, in a process of its own; what it prints goes to the
  file `log`.
  """
  clients = {name: os.environ[name] for name in bucket_server.CLIENTS if name in os.environ}
  process = _context.Process(target=_child, args=(function, arguments, str(log), CACHE, clients))
  process.start()
  return process


def keep_compiled(directory: str = CACHE) -> None:
  jax.config.update('jax_compilation_cache_dir', directory)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def _child(function, arguments, log, cache, clients):
  os.environ.update(clients)
  keep_compiled(cache)
  file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
  os.dup2(file, 1)
  os.dup2(file, 2)
  sys.stdout.reconfigure(line_buffering=True)
  function(*arguments)


def finish(
  process: multiprocessing.Process, log: pathlib.Path, code: int | tuple = 0, seconds: float = 300
) -> str:
  """Waits until the process ends with `code` (or one of them), and returns what it printed."""
  process.join(seconds)
  hung = process.exitcode is None
  if hung:
    process.kill()
    process.join()
  output = log.read_text()
  codes = code if isinstance(code, tuple) else (code,)
  assert not hung and process.exitcode in codes, (
    f'exit code {process.exitcode}, hung: {hung}\n{output[-3000:]}'
  )
  return output


def slow_toy(workdir, moment=None):
  """Trains the toy slowly enough to be hit at any moment; kills itself at `moment` (toy_run)."""
  jax.config.update('jax_num_cpu_devices', 8)
  toy_run._arm(moment)
  result = toy_run.train(workdir, toy_run.SlowBatches)
  print('result', result.step, result.preempted)


def free_port() -> int:
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def wait_for_step(process, directory: pathlib.Path, step: int) -> None:
  """Returns when the process has logged `step` or a later one, besides what was in the metrics file
  before.
  """
  file = directory / metrics_writer.FILE
  skip = file.stat().st_size if file.exists() else 0
  while process.is_alive():
    if file.exists() and f'{{"step": {step}, '.encode() in file.read_bytes()[skip:]:
      return
    time.sleep(0.005)
  raise AssertionError(f'the process ended with {process.exitcode} before it logged step {step}')


def assert_same_run(directory, result, reference) -> int:
  """Checks that a run is bitwise the reference, every logged loss included; returns the number of
  numbers compared.
  """
  expected, expected_metrics = reference
  metrics = metrics_writer.read(directory)
  compared = 0
  for step, values in expected_metrics.items():
    for name in set(values) - _TIMES:
      assert metrics[step][name] == values[name], (step, name)
      compared += 1
  assert result.step == expected.step
  testing.assert_trees_equal(jax.device_get(result.variables), jax.device_get(expected.variables))
  return compared


def newest(directory) -> int:
  return max(checkpoints.steps(storage.path(directory) / 'checkpoints'), default=0)


def files_of(step: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files of a checkpoint that its digest covers."""
  return [
    path
    for path in sorted(step.rglob('*'))
    if path.is_file() and str(path.relative_to(step)) not in checkpoints.UNDIGESTED
  ]


def flip(path: pathlib.Path, random: np.random.Generator) -> None:
  """Flips one bit of a file."""
  data = bytearray(path.read_bytes())
  data[random.integers(len(data))] ^= 1 << int(random.integers(8))
  path.write_bytes(data)


def truncate(path: pathlib.Path, random: np.random.Generator) -> None:
  path.write_bytes(path.read_bytes()[: random.integers(path.stat().st_size)])


def delete(path: pathlib.Path, random: np.random.Generator) -> None:
  path.unlink()


class Cut(BaseException):
  """Ends a run in this process where it stands, as a kill would: nothing that catches errors sees
  it.
  """


def cut_at(index: int, base=toy.Batches):
  """Returns make_batches of a data source that cuts the run when batch `index` is asked for."""

  class CutBatches(base):
    def __next__(self):
      if self.get_state()['next_index'] == index:
        raise Cut
      return super().__next__()

  return CutBatches


KILLED = -signal.SIGKILL


def start_pod(
  function, *arguments, count: int, devices: int, logs: pathlib.Path
) -> list[multiprocessing.Process]:
  """Starts `count` processes of `devices` CPU devices each that run function(*arguments) under
  jax.distributed.
  """
  logs.mkdir(exist_ok=True)
  port = free_port()
  return [
    start(_join, function, arguments, port, index, count, devices, log=logs / f'{index}')
    for index in range(count)
  ]


def finish_pod(pod, logs: pathlib.Path, code: int | tuple = 0, seconds: float = 300) -> list[str]:
  return [finish(process, logs / f'{index}', code, seconds) for index, process in enumerate(pod)]


def _join(function, arguments, port, index, count, devices):
  from experiments.cli import pod

  jax.config.update('jax_num_cpu_devices', devices)
  if count > 1:
    os.environ['AUDIOLM_DISTRIBUTED'] = f'127.0.0.1:{port},{count},{index}'

  def main():
    pod.join_pod()
    function(*arguments)

  command_line.run(main)
  # waits for the others, as at the end of a program; multiprocessing's children skip that
  jax.distributed.shutdown()

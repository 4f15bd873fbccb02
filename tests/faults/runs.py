"""What the fault tests share: runs in processes that can be killed, and the comparison with an
undisturbed run.
"""

import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import time

import jax
import numpy as np

from audiolm_jax import storage, testing
from audiolm_jax.storage import lines
from audiolm_jax.training import checkpoints, metrics_writer
from experiments.cli import command_line
from tests import bucket_server
from tests.training import toy, toy_run

_TIMES = {'time', 'steps_per_second'}

# A server that has imported everything and touched no device: a start then costs what training
# costs. What one start compiles, the next reads from the cache of tests/conftest.py.
_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(['tests.faults.test_jobs', 'tests.faults.test_pods'])


def start(function, *arguments, log: pathlib.Path) -> multiprocessing.Process:
  """Runs function(*arguments), of a module, in a process of its own; what it prints goes to the
  file `log`.
  """
  clients = {name: os.environ[name] for name in bucket_server.CLIENTS if name in os.environ}
  process = _context.Process(target=_child, args=(function, arguments, str(log), clients))
  process.start()
  return process


def _child(function, arguments, log, clients):
  os.environ.update(clients)
  file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
  os.dup2(file, 1)
  os.dup2(file, 2)
  sys.stdout.reconfigure(line_buffering=True)
  function(*arguments)


def finish(
  process: multiprocessing.Process, log: pathlib.Path, code: int | tuple = 0, seconds: float = 900
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


def wait_for_step(process, directory: storage.Path, step: int) -> None:
  """Returns when the process has logged `step`, besides what was logged before.

  In a bucket, lines are there with the next save.
  """
  file = directory / metrics_writer.FILE

  def logged():
    try:
      return [line['step'] for line in lines.read(file)[0]]
    except FileNotFoundError:
      return []

  skip = len(logged())
  while process.is_alive():
    if step in logged()[skip:]:
      return
    time.sleep(storage.poll_seconds(file) / 40)
  raise AssertionError(f'the process ended with {process.exitcode} before it logged step {step}')


def wait_for_save(process, workdir: storage.Path, step: int, seconds: float = 900) -> None:
  """Returns when the process has saved `step` or a later one."""
  end = time.monotonic() + seconds
  while newest(workdir) < step:
    assert process.is_alive() and time.monotonic() < end
    time.sleep(storage.poll_seconds(workdir) / 40)


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


def copy(source: storage.Path, target: storage.Path) -> storage.Path:
  """Copies a folder, also between disks and buckets, and returns the copy."""
  for name in storage.files_below(source):
    with storage.atomically(_made(target / name)) as partial:
      partial.write_bytes((source / name).read_bytes())
  return target


def _made(path: storage.Path) -> storage.Path:
  storage.make_folder(path.parent)
  return path


def num_remains(workdir: storage.Path) -> int:
  """Returns the number of listings and folders of checkpoints that are of no whole step."""
  directory = workdir / 'checkpoints'
  in_bucket = storage.in_bucket(directory)
  names = [name.removeprefix('data/') for name in storage.files_below(directory)]
  entries = {name.partition('/')[0] for name in names} - {checkpoints.MARKER}
  return len(entries) - len(checkpoints.steps(directory)) * (2 if in_bucket else 1)


def newest(directory) -> int:
  return max(checkpoints.steps(storage.path(directory) / 'checkpoints'), default=0)


def files_of(step: storage.Path) -> list[storage.Path]:
  """Returns the files of a checkpoint that its digest covers."""
  names = storage.files_below(step)
  return [step / name for name in names if name not in checkpoints.UNDIGESTED]


def flip(path: storage.Path, random: np.random.Generator) -> None:
  """Flips one bit of a file."""
  data = bytearray(path.read_bytes())
  data[random.integers(len(data))] ^= 1 << int(random.integers(8))
  path.write_bytes(data)


def truncate(path: storage.Path, random: np.random.Generator) -> None:
  data = path.read_bytes()
  path.write_bytes(data[: random.integers(len(data))])


def delete(path: storage.Path, random: np.random.Generator) -> None:
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


def finish_pod(pod, logs: pathlib.Path, code: int | tuple = 0, seconds: float = 900) -> list[str]:
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

"""The faults of disks in a bucket, and those that only buckets have: failing calls, lost answers,
one write a second per object, a process that is stopped, replaced and woken.
"""

import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from audiolm_jax import storage
from audiolm_jax.training import checkpoints, lock, metrics_writer, saving
from tests import bucket_server
from tests.faults import runs
from tests.training import toy_pod, toy_run

FAILING = (
  {'status': 503, 'rate': 0.02},
  {'status': 429, 'rate': 0.02},
  {'match': 'POST', 'lost': True, 'rate': 0.02},
)
NUM_KILLS = 8


def _entries(workdir):
  """Returns the names of the listings and the folders of steps."""
  names = storage.files_below(workdir / 'checkpoints')
  return {name.removeprefix('data/').partition('/')[0] for name in names}


def _wait_for_a_save(process, workdir, step, seconds=300):
  """Returns when the process has saved `step` or a later one."""
  end = time.monotonic() + seconds
  while runs.newest(workdir) < step:
    assert process.is_alive() and time.monotonic() < end
    time.sleep(0.05)


def test_f1_kills_at_random_moments_with_failing_calls(
  reference, bucket, faults, tmp_path, bucket_outcome
):
  moments, log, resumed_from = random.Random(1), tmp_path / 'log', []
  faults(*FAILING)
  for number in range(NUM_KILLS):
    resumed_from.append(runs.newest(bucket))
    process = runs.start(runs.slow_toy, bucket, log=log)
    if number % 4:  # else hits a start
      _wait_for_a_save(process, bucket, min(resumed_from[-1] + 6, 42))
    time.sleep(moments.uniform(0, 2))
    process.kill()
    process.join()
    assert process.exitcode == runs.KILLED and runs.newest(bucket) >= resumed_from[-1]
    steps = checkpoints.steps(bucket / 'checkpoints')
    if steps:  # no line is missing that came before a checkpoint
      assert set(range(1, steps[-1] + 1)) <= metrics_writer.read(bucket).keys()
  result = toy_run.train(bucket)
  compared = runs.assert_same_run(bucket, result, reference)
  bucket_outcome(
    'F1',
    f'{NUM_KILLS} kills with 6 % of the calls failing, resumed from steps {resumed_from}; '
    f'{compared} logged numbers and the state bitwise',
  )


@pytest.mark.parametrize('moment', ['data', 'digest', 'prune'])
def test_f2_kills_within_a_save(moment, reference, bucket, tmp_path, bucket_outcome):
  log = tmp_path / 'log'
  process = runs.start(runs.slow_toy, bucket, moment, log=log)
  runs.finish(process, log, runs.KILLED)
  whole = checkpoints.steps(bucket / 'checkpoints')
  assert whole and len(_entries(bucket)) > 2 * len(whole) + 1
  result = toy_run.train(bucket)
  runs.assert_same_run(bucket, result, reference)
  assert len(_entries(bucket)) == 5  # the mark of the folder, and two steps
  bucket_outcome('F2', f'{moment}: resumed from {whole[-1]}, bitwise, nothing half left')


def test_f3_a_signal_saves(reference, bucket, tmp_path, bucket_outcome):
  log = tmp_path / 'log'
  process = runs.start(runs.slow_toy, bucket, log=log)
  _wait_for_a_save(process, bucket, 6)
  os.kill(process.pid, signal.SIGTERM)
  _, step, preempted = runs.finish(process, log).split()[-3:]
  assert preempted == 'True' and runs.newest(bucket) == int(step)
  assert max(metrics_writer.read(bucket)) == int(step)
  runs.assert_same_run(bucket, toy_run.train(bucket), reference)
  bucket_outcome('F3', 'SIGTERM: saved the step it found, bitwise')


def test_f4_two_processes(bucket, tmp_path, bucket_outcome):
  """A step that every process writes to: the same run as on a disk, bit for bit."""
  for name, workdir in (('disk', tmp_path / 'run'), ('bucket', bucket)):
    logs = tmp_path / name
    pod = runs.start_pod(toy_pod.train, workdir, 11, count=2, devices=2, logs=logs)
    runs.finish_pod(pod, logs)
  on_disk, there = metrics_writer.read(tmp_path / 'run'), metrics_writer.read(bucket)
  assert [on_disk[step]['loss'] for step in on_disk] == [there[step]['loss'] for step in there]
  assert checkpoints.steps(bucket / 'checkpoints') == checkpoints.steps(
    tmp_path / 'run' / 'checkpoints'
  )
  pod = runs.start_pod(toy_pod.train, bucket, 16, count=2, devices=2, logs=tmp_path / 'resumed')
  runs.finish_pod(pod, tmp_path / 'resumed')
  assert runs.newest(bucket) == 16
  bucket_outcome('F4', '2 processes x 2 devices: losses bitwise those on a disk; resumed')


def test_f5_every_damaged_object_is_found(bucket, bucket_outcome):
  parts = {'params': {'w': np.arange(64.0), 'b': np.ones(3)}, 'state': {}}
  checkpointer = saving.Checkpointer(bucket)
  checkpointer.save(1, parts, None, {'config': {}, 'fingerprints': {}})
  checkpointer.close()
  folder, found = checkpoints.step_folder(bucket, 1), 0
  for name in storage.files_below(folder):
    if name in checkpoints.UNDIGESTED:
      continue
    data = (folder / name).read_bytes()
    for damaged in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), None):
      if damaged is None:
        (folder / name).unlink()
      else:
        (folder / name).write_bytes(damaged)
      assert name in checkpoints.step_fault(bucket, 1), name
      found += 1
    (folder / name).write_bytes(data)
  assert checkpoints.step_fault(bucket, 1) is None and found > 20
  bucket_outcome('F5', f'{found} damaged objects, each refused by name')


@pytest.mark.parametrize(
  'name, failing',
  [
    ('10 % of the calls 503, 2 % of the answers lost', (
      {'status': 503, 'rate': 0.1}, {'match': 'POST', 'lost': True, 'rate': 0.02},
    )),
    ('one write a second per object', ({'match': 'POST', 'once_a_second': True},)),
    ('30 ms a call', ({'stall': 0.03},)),
  ],
)  # fmt: skip
def test_f17_a_bucket_that_errs(
  name, failing, reference, bucket, faults, bucket_address, bucket_outcome
):
  before = bucket_server.counts(bucket_address)
  faults(*failing)
  began = time.monotonic()
  result = toy_run.train(bucket)
  seconds = time.monotonic() - began
  runs.assert_same_run(bucket, result, reference)
  after = bucket_server.counts(bucket_address)
  used = {key: after[key] - before.get(key, 0) for key in after}
  calls = sum(used[kind] for kind in ('get', 'upload', 'list', 'delete'))
  bucket_outcome(
    'F17', f'{name}: bitwise in {seconds:.0f} s, {used["faults"]} of {calls} calls affected'
  )


def test_f17_no_access_for_a_while(reference, bucket, faults, monkeypatch, bucket_outcome):
  """403 from batch 8 to 26: failed saves are warnings, and later ones succeed."""
  monkeypatch.setattr(saving, 'BACK_OFF_SECONDS', 0.05)
  monkeypatch.setattr(toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, max_failed_saves=100))

  class Batches(toy_run.SlowBatches):
    def __next__(self):
      index = self.get_state()['next_index']
      if index == 8:
        faults({'status': 403})
      if index == 26:
        faults()
      return super().__next__()

  with pytest.warns(UserWarning, match='training continues') as found:
    result = toy_run.train(bucket, Batches)
  failures = sum('training continues' in str(warning.message) for warning in found)
  runs.assert_same_run(bucket, result, reference)
  bucket_outcome('F17', f'403 from step 8 to 26: {failures} failed saves, then saved; bitwise')


HANGING = """
import sys, time
from audiolm_jax import storage
began = time.monotonic()
print((storage.path(sys.argv[1]) / 'a').read_text(), time.monotonic() - began)
"""


def test_f17_a_call_that_hangs_is_repeated(bucket, faults, bucket_outcome):
  """With a bound of 2 s; 30 s by default."""
  storage.write_text(bucket / 'a', 'there')
  faults({'match': 'GET', 'stall': 60, 'times': 1})
  done = subprocess.run(
    [sys.executable, '-c', HANGING, str(bucket)],
    env=os.environ | {'TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS': '2'},
    capture_output=True,
    text=True,
    timeout=50,
  )
  content, seconds = done.stdout.split()
  assert content == 'there' and 2 <= float(seconds) < 30
  bucket_outcome('F17', f'a call that hangs (bound 2 s): repeated after {float(seconds):.0f} s')


def other_host(workdir):
  """Trains as a machine of another name, with a short lease."""
  socket.gethostname = lambda: 'vanished'
  lock._boot = lambda: 'another'
  short_lease()
  runs.slow_toy(workdir)


def short_lease():
  lock.LEASE_SECONDS, lock.RENEW_SECONDS = 6.0, 1.0


@pytest.mark.parametrize('where', ['disk', 'bucket'])
def test_f19_a_holder_that_was_stopped_is_replaced_and_ends_when_woken(
  where, reference, request, tmp_path, monkeypatch, outcome
):
  """A machine that was taken away: another one takes the run over; the first one, when it comes
  back, neither saves nor changes a step.
  """
  workdir = tmp_path / 'run' if where == 'disk' else request.getfixturevalue('bucket')
  log = tmp_path / 'log'
  stopped = runs.start(other_host, workdir, log=log)
  _wait_for_a_save(stopped, workdir, 6)
  monkeypatch.setattr(lock, 'LEASE_SECONDS', 6.0)
  with pytest.warns(UserWarning, match='waiting'):
    with pytest.raises(ValueError, match='in use by process .* on vanished'):
      toy_run.train(workdir)  # it lives
  os.kill(stopped.pid, signal.SIGSTOP)
  began = time.monotonic()
  with pytest.warns(UserWarning, match='waiting'), lock.held(storage.path(workdir)):
    seconds = time.monotonic() - began
    os.kill(stopped.pid, signal.SIGCONT)
    output = runs.finish(stopped, log, 1)
  assert 'was taken over by another process' in output
  kept = checkpoints.steps(workdir / 'checkpoints')
  result = toy_run.train(workdir)
  runs.assert_same_run(workdir, result, reference)
  outcome(
    'F19',
    f'{where}: a stopped holder of another host was replaced after {seconds:.0f} s of standing '
    f'still (lease 6 s; 60 s by default); woken, it ended with steps {kept} there; bitwise',
  )


NO_NETWORK = """
import sys, time
from audiolm_jax import storage
began = time.monotonic()
try:
  storage.check_writable(storage.path(sys.argv[1]))
except OSError as error:
  print(error.strerror, time.monotonic() - began)
"""


def test_f19_no_network_is_named_in_seconds(bucket_outcome):
  """Nothing answers at the address of the bucket."""
  done = subprocess.run(
    [sys.executable, '-c', NO_NETWORK, 'gs://bucket/run'],
    env=os.environ | {'TENSORSTORE_GCS_HTTP_URL': f'http://127.0.0.1:{runs.free_port()}'},
    capture_output=True,
    text=True,
    timeout=50,
  )
  text, _, seconds = done.stdout.rpartition(' ')
  assert "bucket 'bucket' cannot be used" in text and 'check the network' in text
  assert float(seconds) < 20
  bucket_outcome('F19', f'no network: named in {float(seconds):.1f} s, before any compute')

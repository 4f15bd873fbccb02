"""F17, F19, F21: the faults that only buckets have (failing calls, lost answers, stalls, one write a
second per object, a cut upload), and on both a holder that is stopped, replaced and woken. All
other rows run on a disk and in a bucket, by the fixture `place`.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from audiolm_jax import storage
from audiolm_jax.training import checkpoints, lock
from tests import bucket_server
from tests.faults import runs
from tests.training import toy_run

OUTAGE_SECONDS = 6.0
UPLOAD_BYTES = 1 << 25  # more than the buffers of a connection hold


@pytest.mark.parametrize(
  'name, failing',
  [
    ('10 % of the calls 503, 2 % of the answers lost', (
      {'status': 503, 'rate': 0.1}, {'match': 'POST', 'lost': True, 'rate': 0.02},
    )),
    ('one write a second per object', ({'match': 'POST', 'once_a_second': True},)),
    ('30 ms a call', ({'stall': 0.03},)),
    ('1 call in 20 stalls for a second', ({'stall': 1.0, 'rate': 0.05},)),
  ],
)  # fmt: skip
def test_f17_a_bucket_that_errs(name, failing, reference, bucket, faults, bucket_address, outcome):
  before = bucket_server.counts(bucket_address)
  faults(*failing)
  began = time.monotonic()
  result = toy_run.train(bucket)
  seconds = time.monotonic() - began
  runs.assert_same_run(bucket, result, reference)
  after = bucket_server.counts(bucket_address)
  used = {key: after[key] - before.get(key, 0) for key in after}
  calls = sum(used[kind] for kind in ('get', 'upload', 'list', 'delete'))
  outcome('F17', f'{name}: bitwise in {seconds:.0f} s, {used["faults"]} of {calls} calls affected')


@pytest.mark.parametrize('status', [503, 429])
def test_f17_no_call_succeeds_for_a_while(status, reference, bucket, faults, outcome):
  class Batches(toy_run.SlowBatches):
    def __next__(self):
      if self.get_state()['next_index'] == 8:
        faults({'status': status})
        threading.Timer(OUTAGE_SECONDS, faults).start()
      return super().__next__()

  result = toy_run.train(bucket, Batches)
  runs.assert_same_run(bucket, result, reference)
  outcome('F17', f'every call answers {status} for {OUTAGE_SECONDS:g} s: no save failed, bitwise')


def upload(path):
  with storage.atomically(path) as partial:
    partial.write_bytes(bytes(UPLOAD_BYTES))


def test_f21_a_kill_within_an_upload_writes_nothing(
  bucket, faults, bucket_address, tmp_path, outcome
):
  path = bucket / 'weights'
  storage.write_text(path, 'before')
  faults({'match': 'POST .*weights', 'hold': 3.0})
  held = bucket_server.counts(bucket_address)['faults']
  process = runs.start(upload, path, log=tmp_path / 'log')
  while bucket_server.counts(bucket_address)['faults'] == held:
    assert process.is_alive()
    time.sleep(0.05)
  process.kill()
  process.join()
  time.sleep(3.5)
  faults()
  assert path.read_text() == 'before'
  upload(path)
  assert len(path.read_bytes()) == UPLOAD_BYTES
  outcome('F21', 'killed within an upload of 32 MiB: the object before is there, then the new one')


HANGING = """
import sys, time
from audiolm_jax import storage
began = time.monotonic()
print((storage.path(sys.argv[1]) / 'a').read_text(), time.monotonic() - began)
"""


def test_f17_a_call_that_hangs_is_repeated(bucket, faults, outcome):
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
  outcome('F17', f'a call that hangs (bound 2 s): repeated after {float(seconds):.0f} s')


def other_host(workdir):
  """Trains as a machine of another name, with a short lease."""
  socket.gethostname = lambda: 'vanished'
  lock._boot = lambda: 'another'
  short_lease()
  runs.slow_toy(workdir)


def short_lease():
  lock.LEASE_SECONDS, lock.RENEW_SECONDS = 6.0, 1.0


def test_f19_a_holder_that_was_stopped_is_replaced_and_ends_when_woken(
  reference, place, tmp_path, monkeypatch, outcome
):
  """A machine that was taken away: another one takes the run over; the first one, when it comes
  back, neither saves nor changes a step.
  """
  workdir, log = place / 'run', tmp_path / 'log'
  stopped = runs.start(other_host, workdir, log=log)
  runs.wait_for_save(stopped, workdir, 6)
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
    f'a stopped holder of another host was replaced after {seconds:.0f} s of standing '
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


def test_f19_no_network_is_named_in_seconds(outcome):
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
  outcome('F19', f'no network: named in {float(seconds):.1f} s, before any compute')

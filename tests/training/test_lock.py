"""Locks among hosts: leases on a disk and in a bucket. (Those of one host: test_checkpoints.py.)"""

import contextlib
import json
import threading
import time

import pytest

from audiolm_jax import storage
from audiolm_jax.training import lock

LEASE, RENEW = 2.0, 0.2


@pytest.fixture(params=['disk', 'bucket'])
def folder(request, tmp_path):
  return tmp_path if request.param == 'disk' else request.getfixturevalue('bucket')


@pytest.fixture(autouse=True)
def short(monkeypatch):
  monkeypatch.setattr(lock, 'LEASE_SECONDS', LEASE)
  monkeypatch.setattr(lock, 'RENEW_SECONDS', RENEW)


def _left_by_another_host(folder, **changes):
  holder = {'pid': 1, 'host': 'elsewhere', 'started': '1', 'boot': 'b', 'token': 'abc'} | changes
  stamp, _ = storage.look(folder / 'lock')
  text = json.dumps(holder).encode()
  return text, storage.swap(folder / 'lock', text, stamp)


@contextlib.contextmanager
def _renewed(folder, text, stamp):
  """Renews a lock, as its holder on another host does."""
  end = threading.Event()

  def renew():
    now = stamp
    while not end.wait(RENEW):
      now = storage.swap(folder / 'lock', text, now)

  thread = threading.Thread(target=renew)
  thread.start()
  yield
  end.set()
  thread.join()


def test_a_lock_that_stands_still_is_taken_over(folder):
  _left_by_another_host(folder)
  began = time.monotonic()
  with pytest.warns(UserWarning, match='waiting up to 2 s .* process 1 on elsewhere still uses'):
    with lock.held(folder):
      seconds = time.monotonic() - began
      assert json.loads((folder / 'lock').read_bytes())['host'] != 'elsewhere'
  assert LEASE <= seconds < 5 * LEASE
  with lock.held(folder):  # given back
    assert time.monotonic() - began < 10 * LEASE


def test_a_renewed_lock_is_respected(folder):
  text, stamp = _left_by_another_host(folder)
  with _renewed(folder, text, stamp), pytest.warns(UserWarning, match='waiting'):
    began = time.monotonic()
    with pytest.raises(ValueError, match='in use by process 1 on elsewhere: choose another'):
      with lock.held(folder):
        pass
  assert time.monotonic() - began < 5 * LEASE
  assert (folder / 'lock').read_bytes() == text


def test_equal_host_names_of_two_machines_are_not_mixed_up(folder):
  """Process 1 of the other machine is none of ours, dead or alive."""
  text, stamp = _left_by_another_host(folder, host=lock.socket.gethostname(), pid=2**30)
  with _renewed(folder, text, stamp), pytest.warns(UserWarning, match='waiting'):
    with pytest.raises(ValueError, match='in use by process'):
      with lock.held(folder):
        pass


def test_a_lock_that_is_given_back_while_we_wait_is_taken(folder):
  _, stamp = _left_by_another_host(folder)
  began = time.monotonic()
  timer = threading.Timer(0.3, lambda: storage.swap(folder / 'lock', None, stamp))
  timer.start()
  with pytest.warns(UserWarning, match='waiting'), lock.held(folder):
    assert time.monotonic() - began < 10 * LEASE
  timer.join()


def test_a_holder_renews_and_finds_that_it_lost_the_lock(folder, monkeypatch):
  with lock.held(folder) as lease:
    first, _ = storage.look(folder / 'lock')
    time.sleep(3 * RENEW)
    assert storage.look(folder / 'lock')[0] != first
    lease.check()
    monkeypatch.setattr(lock, 'RENEW_SECONDS', 99)  # paused, from here on
    time.sleep(2 * RENEW)
    text, _ = _left_by_another_host(folder)
    with pytest.raises(lock.LostError, match='was taken over by another process.*end one of'):
      lease.check()
  assert (folder / 'lock').read_bytes() == text  # not given back: it is another's


def test_a_deleted_lock_is_written_again(folder):
  with lock.held(folder) as lease:
    text = (folder / 'lock').read_bytes()
    (folder / 'lock').unlink()
    lease.check()
    assert (folder / 'lock').read_bytes() == text


def test_lost_answers_and_failing_calls_lose_no_lock(bucket, faults):
  faults({'match': 'POST', 'lost': True, 'times': 1})
  with lock.held(bucket) as lease:
    for fault in ({'lost': True, 'times': 1}, {'status': 503, 'times': 2}):
      faults({'match': 'POST', **fault})
      lease.renew()
    faults({'status': 403})
    lease.check()  # nothing is known now
    faults()
    lease.check()
    faults({'match': 'POST', 'once_a_second': True})
    lease.renew()
  assert storage.look(bucket / 'lock')[1] is None

"""F23: a hundred random faults, one after another, on runs that must all end as if nothing had
been.
"""

import collections
import dataclasses
import errno
import os
import signal
import threading
import time
import warnings

import jax
import numpy as np
import pytest

from audiolm_jax import storage
from audiolm_jax.training import checkpoints, errors, metrics_writer, saving, watchdog
from tests.faults import runs
from tests.training import toy, toy_run

NUM_FAULTS = {'disk': 100, 'bucket': 40}


class Faulty(toy.Batches):
  """At batch `at` the fault `kind` strikes, once."""

  kind = at = strike = None

  def __next__(self):
    kind = Faulty.kind if self._index == Faulty.at else None
    if kind is not None:
      Faulty.kind = None
    if kind in BUCKET_FAULTS:
      Faulty.strike()
    if kind == 'kill':
      raise runs.Cut
    if kind == 'signal':
      os.kill(os.getpid(), signal.SIGTERM)
    if kind == 'slow':
      time.sleep(0.2)
    if kind == 'hang':
      threading.Event().wait(30)
    batch = super().__next__()
    if kind == 'not finite':
      batch['waveform'][0, 0] = np.nan
    return batch


def _strike_save(monkeypatch, kind, after):
  """The save number `after` of the next run is killed, or finds no room."""
  write, count = saving.Checkpointer._write_digest, []

  def write_digest(self):
    count.append(0)
    if len(count) == after and kind == 'kill in save':
      raise runs.Cut
    if len(count) == after:
      raise OSError(errno.ENOSPC, 'No space left on device')
    write(self)

  monkeypatch.setattr(saving.Checkpointer, '_write_digest', write_digest)


def _strike_files(workdir, kind, random) -> bool:
  """Damages a file of the newest of at least two steps."""
  steps = checkpoints.steps(workdir / 'checkpoints')
  if len(steps) < 2:
    return False
  files = runs.files_of(checkpoints.step_folder(workdir / 'checkpoints', steps[-1]))
  getattr(runs, kind)(files[random.integers(len(files))], random)
  return True


BUCKET_FAULTS = {
  'failing': [{'status': 503, 'rate': 0.05}, {'match': 'POST', 'lost': True, 'rate': 0.05}],
  'too fast': [{'match': 'POST', 'once_a_second': True}],
  'stalls': [{'stall': 0.2, 'rate': 0.05}],
  'refusing': [{'status': 403, 'times': 20}],
}
KINDS = (
  'kill',
  'kill in save',
  'signal',
  'not finite',
  'slow',
  'hang',
  'no space',
  'no log',
  'flip',
  'truncate',
  'delete',
)


@pytest.fixture
def set_faults(request, place):
  return request.getfixturevalue('faults') if storage.in_bucket(place) else lambda *faults: None


def test_f23_many_faults(reference, place, set_faults, monkeypatch, outcome):
  random = np.random.default_rng(23)
  struck, finished = collections.Counter(), 0
  settings = dataclasses.replace(toy_run.TRAIN, slow_seconds=0.1, timeout_seconds=10.0)
  in_bucket = storage.in_bucket(place)
  num_faults = NUM_FAULTS['bucket' if in_bucket else 'disk']
  kinds = KINDS + tuple(BUCKET_FAULTS) * in_bucket
  workdir = place / 'run0'
  while struck.total() < num_faults or workdir.exists():
    kind = kinds[random.integers(len(kinds))] if struck.total() < num_faults else None
    set_faults()
    with monkeypatch.context() as patch, warnings.catch_warnings():
      warnings.simplefilter('ignore')
      patch.setattr(saving, 'BACK_OFF_SECONDS', 0.01)
      patch.setattr(toy_run, 'TRAIN', settings if kind in ('slow', 'hang') else toy_run.TRAIN)
      done = runs.newest(workdir)
      Faulty.kind, Faulty.at = kind, int(random.integers(done, min(done + 14, 48)))
      if kind in ('kill in save', 'no space'):
        _strike_save(patch, kind, int(random.integers(1, 3)))
      if kind in ('flip', 'truncate', 'delete') and not _strike_files(workdir, kind, random):
        continue
      if kind == 'no log':
        patch.setattr(metrics_writer.MetricsWriter, '_write_line', lambda *unused: 1 / 0)
      if kind in BUCKET_FAULTS:
        patch.setattr(toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, max_failed_saves=100))
        # Not from the start, which a bucket that refuses everything ends at once.
        Faulty.strike = lambda: set_faults(*BUCKET_FAULTS[kind])
      if kind is not None:
        struck[kind] += 1
      try:
        result = toy_run.train(workdir, Faulty)
      except (runs.Cut, errors.NonFiniteError, watchdog.StalledError):
        continue
    if result.preempted:
      continue
    jax.tree.map(
      np.testing.assert_array_equal,
      jax.device_get(result.variables),
      jax.device_get(reference[0].variables),
    )
    finished += 1
    workdir = place / f'run{finished}'
  counts = ', '.join(f'{name} {number}' for name, number in sorted(struck.items()))
  outcome(
    'F23', f'{struck.total()} faults ({counts}) over {finished} runs: every final state bitwise'
  )

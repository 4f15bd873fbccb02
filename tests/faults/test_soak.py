"""F23: two hundred random faults, one after another, on runs that must all end as if nothing had
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

from audiolm_jax.training import checkpoints, errors, metrics_writer, saving, watchdog
from tests.faults import runs
from tests.training import toy, toy_run

NUM_FAULTS = 200


class Faulty(toy.Batches):
  """At batch `at` the fault `kind` strikes, once."""

  kind = at = None

  def __next__(self):
    kind = Faulty.kind if self._index == Faulty.at else None
    if kind is not None:
      Faulty.kind = None
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
  steps = checkpoints.steps(workdir / 'checkpoints') if workdir.exists() else []
  if len(steps) < 2:
    return False
  files = runs.files_of(workdir / 'checkpoints' / str(steps[-1]))
  getattr(runs, kind)(files[random.integers(len(files))], random)
  return True


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


def test_f23_two_hundred_faults(reference, tmp_path, monkeypatch, outcome):
  random = np.random.default_rng(23)
  struck, finished = collections.Counter(), 0
  settings = dataclasses.replace(toy_run.TRAIN, slow_seconds=0.1, timeout_seconds=10.0)
  workdir = tmp_path / 'run0'
  while struck.total() < NUM_FAULTS or workdir.exists():
    kind = KINDS[random.integers(len(KINDS))] if struck.total() < NUM_FAULTS else None
    with monkeypatch.context() as patch, warnings.catch_warnings():
      warnings.simplefilter('ignore')
      patch.setattr(saving, 'BACK_OFF_SECONDS', 0.01)
      patch.setattr(toy_run, 'TRAIN', settings if kind in ('slow', 'hang') else toy_run.TRAIN)
      done = runs.newest(workdir) if workdir.exists() else 0
      Faulty.kind, Faulty.at = kind, int(random.integers(done, min(done + 14, 48)))
      if kind in ('kill in save', 'no space'):
        _strike_save(patch, kind, int(random.integers(1, 3)))
      if kind in ('flip', 'truncate', 'delete') and not _strike_files(workdir, kind, random):
        continue
      if kind == 'no log':
        patch.setattr(metrics_writer.MetricsWriter, '_write_line', lambda *unused: 1 / 0)
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
    workdir = tmp_path / f'run{finished}'
  counts = ', '.join(f'{name} {number}' for name, number in sorted(struck.items()))
  outcome(
    'F23', f'{struck.total()} faults ({counts}) over {finished} runs: every final state bitwise'
  )

"""Runs programs in parallel, because small models leave most of a second core idle."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

Command = Sequence[str]  # ('train', '--stage=coarse', ...): one of our programs and its arguments

_PR_SET_PDEATHSIG = 1

# XLA allocates its buffers at every step. By default, glibc returns them to the system, and page
# faults take a quarter of a small model's time (measured). One arena that is never trimmed, and
# also holds large blocks, keeps them.
_KEEP_MEMORY = {
  'MALLOC_ARENA_MAX': '1',
  'MALLOC_TRIM_THRESHOLD_': str(2**34),
  'MALLOC_MMAP_MAX_': '0',
}


def run(commands: Sequence[Command], num_slots: int = 2):
  """Runs commands in order, at most `num_slots` at a time, each on its share of the cores.

  If one fails, or this process gets SIGTERM, the others get SIGTERM (on which training saves), and
  this process exits.
  """
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  waiting, running = list(commands), {}
  shares = _shares(min(num_slots, len(waiting)))
  try:
    while waiting or running:
      for slot, cores in enumerate(shares):
        if waiting and slot not in running:
          running[slot] = _start(waiting.pop(0), slot, cores)
      for slot, process in list(running.items()):
        if process.poll() is not None:
          del running[slot]
          if process.returncode:
            sys.exit(process.returncode)
      time.sleep(0.1)
  finally:
    for process in running.values():
      process.terminate()
    for process in running.values():
      process.wait()


def _start(command: Command, slot: int, cores: set[int] | None) -> subprocess.Popen:
  program, *arguments = command
  experiments = __package__.rpartition('.')[0]
  # Each slot's progress bar has its own line.
  environment = _KEEP_MEMORY | os.environ | {'AUDIOLM_BAR_POSITION': str(slot)}
  return subprocess.Popen(
    [sys.executable, '-m', f'{experiments}.{program}', *arguments],
    env=environment,
    # Signals to the group of this process (Ctrl-C, a scheduler's SIGTERM) would reach a child in
    # addition to the one that `run` sends, and training ends unsaved at its second signal.
    process_group=0,
    preexec_fn=lambda: _prepare(cores),
  )


def _prepare(cores: set[int] | None):
  """Limits this child process to its cores, and has it get SIGTERM when its parent dies (Linux)."""
  if cores is not None:
    os.sched_setaffinity(0, cores)
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _shares(num_slots: int) -> list[set[int] | None]:
  """Returns disjoint sets of cores per slot, or Nones if there are too few or no affinity."""
  if (
    not hasattr(os, 'sched_getaffinity')
    or len(cores := sorted(os.sched_getaffinity(0))) < num_slots
  ):
    return [None] * num_slots
  return [set(cores[slot::num_slots]) for slot in range(num_slots)]

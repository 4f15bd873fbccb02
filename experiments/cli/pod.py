"""Joins the processes of a pod, and lets them wait for one another and end together."""

import os
import re
import secrets
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from audiolm_jax import storage
from audiolm_jax.errors import UserError
from audiolm_jax.training import errors as training_errors

from . import command_line

# Pauses grow to this while a process waits for files of others; it also reports that it waits.
_MOST_POLL_SECONDS, _SAY_SECONDS = 10.0, 60.0


def join_pod():
  """Connects the processes of a pod; must run before anything touches a device.

  AUDIOLM_DISTRIBUTED is one of:
    1: JAX finds the processes. The default with several TPU hosts; set by tpu_scripts.
    ADDRESS:PORT,COUNT,INDEX: address of process 0, number of processes, and index of this one, for
      machines on which JAX cannot find them (CPUs).
    0: there is one process. The default otherwise.
  """
  text = os.environ.get(
    'AUDIOLM_DISTRIBUTED', '1' if ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '') else ''
  )
  if text in ('', '0') or jax.distributed.is_initialized():
    return
  if text == '1':
    jax.distributed.initialize()
    return
  match = re.fullmatch(r'(.+:\d+),(\d+),(\d+)', text)
  if match is None:
    raise UserError(f'AUDIOLM_DISTRIBUTED={text}: set it to 1, or to ADDRESS:PORT,COUNT,INDEX')
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(match[1], int(match[2]), int(match[3]))


def leave_on_sigterm(patience_seconds: float = 10.0):
  """Makes SIGTERM end this process like an error, which removes locks and temporary files.

  For programs that do not ask whether a signal came, called after `join_pod`, which lets JAX catch
  SIGTERM. A process that is still there after `patience_seconds`, as while XLA compiles, ends
  without that.
  """
  status = 128 + signal.SIGTERM

  def on_signal(number, frame):
    raise command_line.Terminated(status)

  def end_at_last():
    while signal.SIGTERM not in os.read(reading, 1):
      pass
    time.sleep(patience_seconds)
    os._exit(status)

  # Python calls a handler between two of its instructions, but writes to this pipe at once.
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  signal.signal(signal.SIGTERM, on_signal)
  threading.Thread(target=end_at_last, daemon=True).start()


def check_shared(workdir: storage.Path, patience_seconds: float = 30.0):
  """Checks that all processes of a pod run the same command, and that their workdir is one folder,
  on a storage that they share.

  Process 0 writes a file with a random name there, which every process must find.

  Raises:
    UserError: on every process, naming those that do not find it within `patience_seconds`.
    PeerError: on every process, if commands differ, as when only some processes saw the last
      checkpoint of a stage, and continued with the next stage.
  """
  if jax.process_count() == 1:
    return
  nonce, first = secrets.randbits(31), jax.process_index() == 0
  file = lambda number: workdir / f'.shared-{number:08x}'
  if first:
    storage.write_text(file(nonce), '')
  try:
    nonce = int(multihost_utils.broadcast_one_to_all(np.int32(nonce)))
    end = time.monotonic() + patience_seconds
    while not (found := file(nonce).exists()) and time.monotonic() < end:
      time.sleep(0.2)
    command = zlib.crc32('\0'.join(sys.argv[1:]).encode(errors='surrogateescape')) >> 1
    told_PN = multihost_utils.process_allgather(np.array([found, command], np.int32))
  finally:
    if first:
      file(nonce).unlink(missing_ok=True)
  if lost := [index for index, (there, _) in enumerate(told_PN) if not there]:
    raise UserError(
      f'--workdir={workdir} of process {", ".join(map(str, lost[:9]))} ({len(lost)} of '
      f'{len(told_PN)} in all) is not that of process 0: mount the same storage on every host '
      '(tpu_scripts/mount.sh, or --storage of tpu_scripts/xpk.sh)'
    )
  if other := [index for index, (_, its) in enumerate(told_PN) if its != told_PN[0][1]]:
    raise training_errors.PeerError(
      f'process {", ".join(map(str, other[:9]))} ({len(other)} of {len(told_PN)} in all) runs '
      'another command than process 0: give all the same one, and start all of them again'
    )


def wait_for(
  what: str,
  missing: Callable[[], list[str]],
  patience_seconds: float = 3600.0,
  *,
  poll_seconds: float = 0.2,
):
  """Waits until `missing()`, the paths of files that other processes write, is empty.

  Looks less and less often, and says on stderr every minute how many are missing.

  Args:
    what: name of the files, for messages.
    missing: returns the paths of files that are not there yet.
    patience_seconds: limit of the time in which none is written.
    poll_seconds: first pause between two looks.

  Raises:
    UserError: naming some paths, if none was written for `patience_seconds`.
  """
  left, since = missing(), time.monotonic()
  pause, said = poll_seconds, since
  while left:
    time.sleep(pause)
    pause = min(1.5 * pause, max(poll_seconds, _MOST_POLL_SECONDS), patience_seconds)
    now_left = missing()
    if len(now_left) < len(left):
      since = time.monotonic()
    left = now_left
    if left and time.monotonic() - said >= _SAY_SECONDS:
      said = time.monotonic()
      print(f'waiting for {what}: {len(left)} missing, such as {left[0]}', file=sys.stderr)
    if time.monotonic() - since > patience_seconds:
      raise UserError(
        f'process {jax.process_index()} of {jax.process_count()} has waited '
        f'{patience_seconds:g} s for {what}: {", ".join(left[:3])} ({len(left)} in all): '
        'check the other processes, and restart all'
      )

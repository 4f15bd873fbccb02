"""Decodes recordings of strangers, each in a child process with limits of memory and time.

Children are forked from a server process that has imported the decoder and holds neither models nor
secrets. They answer with plain bytes.
"""

import io
import math
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import sys
import threading

import numpy as np

from audiolm_jax import audio
from audiolm_jax.errors import UserError

MAX_BYTES = 16 * 2**20  # of a recording
MAX_SECONDS = 30.0
MEMORY_BYTES = 512 * 2**20  # that a child may allocate
CHILD_SECONDS = 10  # until a child is killed
NAME = 'the recording'  # in messages: names that clients give are not used
_FINE, _WRONG = b'+', b'-'  # first byte of an answer: samples, or a message

_PROCESSES = multiprocessing.get_context('forkserver')


def start():
  """Starts the process from which children are forked; it imports the decoder once."""
  _PROCESSES.set_forkserver_preload([__name__])
  multiprocessing.forkserver.ensure_running()


def decode(data: bytes, sample_rate: int) -> np.ndarray:
  """Returns the waveform [T] of a WAV, FLAC, OGG or MP3, in [-1, 1] at `sample_rate`.

  Raises:
    UserError: if it is too large, too long or damaged, or if decoding exceeds the limits.
  """
  if len(data) > MAX_BYTES:
    raise UserError(f'{NAME} has {len(data):,} bytes, more than {MAX_BYTES:,}: cut it')
  receiving, sending = _PROCESSES.Pipe(duplex=False)
  child = _PROCESSES.Process(target=_answer, args=(sending, data, sample_rate), daemon=True)
  killer = threading.Timer(CHILD_SECONDS, child.kill)
  try:
    child.start()
    killer.start()
    sending.close()
    answer = receiving.recv_bytes(1 + 4 * (math.ceil(MAX_SECONDS * sample_rate) + 1))
  except (EOFError, OSError) as error:
    raise UserError(
      f'{NAME} cannot be decoded within {CHILD_SECONDS} s and {MEMORY_BYTES >> 20} MiB: save it as '
      f'WAV of at most {MAX_SECONDS:g} s'
    ) from error
  finally:
    killer.cancel()
    sending.close()
    receiving.close()
    if child.pid is not None:
      child.kill()
      child.join()
  if answer[:1] != _FINE:
    raise UserError(answer[1:].decode('utf-8', 'replace'))
  return np.frombuffer(answer[1:], np.float32)


def _answer(sending, data: bytes, sample_rate: int):
  """Sends the waveform or an error message, in a child."""
  _limit()
  try:
    wave_T = audio.decode(io.BytesIO(data), sample_rate, name=NAME, max_seconds=MAX_SECONDS)
    sending.send_bytes(_FINE + wave_T.astype(np.float32).tobytes())
  except UserError as error:
    sending.send_bytes(_WRONG + str(error).encode()[:1000])
  except MemoryError:
    os._exit(1)


def _limit():
  """Limits memory (where the system can, on Linux), processor time and files of this process."""
  limits = {resource.RLIMIT_CPU: CHILD_SECONDS, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
  if sys.platform == 'linux':
    with open('/proc/self/statm') as file:  # what the imports have mapped does not count
      mapped = int(file.read().split()[0]) * resource.getpagesize()
    limits[resource.RLIMIT_AS] = mapped + MEMORY_BYTES
  for kind, most in limits.items():
    resource.setrlimit(kind, (most, most))

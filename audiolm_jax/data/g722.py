"""G.722, the wideband telephone codec: raw files of 64 kbit/s without a header, as Asterisk's
prompts are.
"""

import os

import numpy as np

from audiolm_jax.errors import UserError, install

SAMPLE_RATE = 16_000  # Hz
_BIT_RATE = 64_000  # bit/s; one byte is two samples


def load(path: str | os.PathLike, *, max_seconds: float = 3600.0) -> np.ndarray:
  """Returns a raw G.722 file as float32 [T] at 16 kHz, two samples a byte.

  Raises ValueError for an empty file or one longer than `max_seconds` and, naming the extra, when
  the package G722 (ITU-T's reference in C) is missing.
  """
  try:
    import G722
  except ImportError as error:
    raise UserError(f'G.722 files need a decoder: {install("speech")}') from error
  num_bytes = os.path.getsize(path)
  seconds = 8 * num_bytes / _BIT_RATE
  if not 0 < seconds <= max_seconds:
    raise UserError(
      f'{path}: {num_bytes} bytes are {seconds:g} s of G.722; '
      f'expected more than 0, at most {max_seconds:g}: leave it out, or raise max_seconds'
    )
  with open(path, 'rb') as file:
    samples_T = G722.G722(SAMPLE_RATE, _BIT_RATE).decode(file.read())
  return np.asarray(samples_T, np.float32) / 32768

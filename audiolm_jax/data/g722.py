"""Decodes raw G.722 files (wideband telephony, 64 kbit/s, no header) such as Asterisk's prompts."""

import os

import numpy as np

from audiolm_jax.errors import UserError, install

SAMPLE_RATE = 16_000  # Hz
_BIT_RATE = 64_000  # bit/s; two samples per byte


def load(path: str | os.PathLike, *, max_seconds: float = 3600.0) -> np.ndarray:
  """Returns a raw G.722 file as float32 [T] at 16 kHz.

  Raises:
    UserError: if the file is empty or longer than `max_seconds`, or the package G722 (ITU-T's
      reference in C) is missing.
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
      f'expected more than 0, at most {max_seconds:g}: exclude it, or raise max_seconds'
    )
  with open(path, 'rb') as file:
    samples_T = G722.G722(SAMPLE_RATE, _BIT_RATE).decode(file.read())
  return np.asarray(samples_T, np.float32) / 32768

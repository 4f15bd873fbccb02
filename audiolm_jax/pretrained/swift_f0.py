"""Hears the pitch of one voice or instrument by SwiftF0 (package swift-f0 0.3.0, MIT, 0.1 MB).

It is installed by `pip install swift-f0==0.3.0`, and run by onnxruntime.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from audiolm_jax import audio, checks
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import extras

RATE = 16_000  # Hz
HOP = 256  # samples per frame
INSTALL = 'pip install swift-f0==0.3.0'
_VOICED = 0.5  # confidence from which on a frame has a pitch, by the package


def listener() -> Callable[[Float[np.ndarray, 'T'], int], Float[np.ndarray, 'N']]:
  """Returns a function (waveform [T], rate in Hz) -> MIDI pitch of each frame of 16 ms.

  The pitch is a real number, NaN in frames without one.

  Raises:
    UserError: if swift-f0 is not installed.
  """
  try:
    detector = extras.load('swift_f0', 'swift-f0').SwiftF0(threads=1)
  except UserError as error:
    raise UserError(f'swift-f0 is not installed: run `{INSTALL}`') from error

  def listen(wave_T: np.ndarray, sample_rate: int) -> np.ndarray:
    checks.shapes(wave_T=wave_T)
    [wave_T] = audio.resample(np.asarray(wave_T, np.float32)[None], sample_rate, RATE)
    found = detector.detect(wave_T, RATE)
    pitch_N = 69 + 12 * np.log2(np.maximum(found.pitch_hz, 1.0) / 440)
    return np.where(found.confidence >= _VOICED, pitch_N, np.nan)

  return listen

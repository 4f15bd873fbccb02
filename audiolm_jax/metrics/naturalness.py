"""Estimates speech quality without a reference: DNSMOS (Reddy et al., 2021 and 2022).

Wraps `speechmos` (extra `eval`), which contains the weights. DNSMOS was trained on noisy and
denoised human recordings: it says little about synthesized voices and nothing about content.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from audiolm_jax import audio
from audiolm_jax.metrics import extras
from audiolm_jax.metrics.perceptual import SILENCE

RATE = 16_000  # Hz, input rate of DNSMOS
SHORTEST = 0.5  # seconds; DNSMOS repeats clips shorter than 9 s


class Dnsmos(NamedTuple):
  """Holds predicted mean opinion scores, 1 to 5; None unless `status` is 'ok'."""

  overall: float | None  # P.835
  p808: float | None
  status: str


def dnsmos(wave_T: Float[np.ndarray, 'T'], sample_rate: int) -> Dnsmos:
  """Returns the DNSMOS scores of one clip.

  `status` is 'ok', 'not finite', 'too short' or 'silent'.

  Args:
    wave_T: waveform in [-1, 1].
    sample_rate: in Hz.

  Raises:
    UserError: if speechmos is not installed.
  """
  module = extras.load('speechmos.dnsmos', 'speechmos')
  if not np.isfinite(wave_T).all():
    return Dnsmos(None, None, 'not finite')
  if len(wave_T) < SHORTEST * sample_rate:
    return Dnsmos(None, None, 'too short')  # DNSMOS would repeat an empty clip forever
  wave_T = np.asarray(wave_T, np.float32)
  if np.sqrt(np.mean(np.square(wave_T))) < SILENCE:
    return Dnsmos(None, None, 'silent')
  [wave_T] = audio.resample(wave_T[None], sample_rate, RATE)
  found = module.run(np.clip(wave_T, -1, 1), sr=RATE)
  return Dnsmos(float(found['ovrl_mos']), float(found['p808_mos']), 'ok')

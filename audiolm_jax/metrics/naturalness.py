"""How natural speech sounds, without a reference: DNSMOS (Reddy et al., 2021 and 2022), a network's
guess of ratings.

By `speechmos` (the extra `eval`), which brings its weights along. It was trained on noisy and
denoised recordings of
people: it says little of the voices of synthesizers, and nothing of what is said.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from audiolm_jax import audio
from audiolm_jax.metrics import extras
from audiolm_jax.metrics.perceptual import SILENCE

RATE = 16_000  # Hz, what DNSMOS hears
SHORTEST = 0.5  # seconds; DNSMOS hears 9 s and repeats what is shorter until it is as long


class Dnsmos(NamedTuple):
  """Guesses of mean opinion scores, 1 to 5; None where status, not 'ok', says why there is none."""

  overall: float | None  # P.835
  p808: float | None
  status: str


def dnsmos(wave_T: Float[np.ndarray, 'T'], sample_rate: int) -> Dnsmos:
  """Returns DNSMOS of one clip. Raises ValueError when speechmos is not installed."""
  module = extras.load('speechmos.dnsmos', 'speechmos')
  if not np.isfinite(wave_T).all():
    return Dnsmos(None, None, 'not finite')
  if len(wave_T) < SHORTEST * sample_rate:
    return Dnsmos(None, None, 'too short')  # of no samples at all it would be repeating forever
  wave_T = np.asarray(wave_T, np.float32)
  if np.sqrt(np.mean(np.square(wave_T))) < SILENCE:
    return Dnsmos(None, None, 'silent')
  [wave_T] = audio.resample(wave_T[None], sample_rate, RATE)
  found = module.run(np.clip(wave_T, -1, 1), sr=RATE)
  return Dnsmos(float(found['ovrl_mos']), float(found['p808_mos']), 'ok')

"""Perceived quality as standards and their implementers estimate it: PESQ, STOI and ViSQOL, each of
one clip of speech.

Thin wrappers of `pesq`, `pystoi` and `visqol-python` (the `eval` extra), which disagree in how they
fail: they raise, give NaN, or make up a number near 0. Here every call ends in a `Score` whose
status says why there is no value.
"""

import functools
import importlib.util
import math
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from audiolm_jax import audio
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import extras

# Hz; wide-band PESQ and ViSQOL's speech mode are defined at this rate, and STOI goes below it
RATE = 16_000
SILENCE = 1e-4  # root mean square, -80 dB of full scale
SHORTEST = 0.7  # seconds, what ViSQOL takes; PESQ takes 0.25, STOI 0.4

MODULES = {'pesq': 'pesq', 'stoi': 'pystoi', 'visqol': 'visqol'}


class Score(NamedTuple):
  """status: 'ok', or why there is no value: 'silent' (one of the two), 'too short' or 'not
  finite'.
  """

  value: float | None
  status: str


class Mean(NamedTuple):
  value: float | None  # None where no clip was scored
  count: int  # clips that it is the mean of; the others are silent, too short or not finite


def available() -> tuple[str, ...]:
  """Returns the names of the measures that are installed."""
  return tuple(
    name for name, module in MODULES.items() if importlib.util.find_spec(module) is not None
  )


def mean(scores: Iterable[Score]) -> Mean:
  """Returns the mean of the scores that there are, and their number, without which it means
  nothing.
  """
  values = [score.value for score in scores if score.status == 'ok']
  return Mean(float(np.mean(values)) if values else None, len(values))


def pesq(
  reference_T: Float[np.ndarray, 'T'], estimate_T: Float[np.ndarray, 'T'], sample_rate: int
) -> Score:
  """Returns wide-band PESQ (ITU-T P.862.2): 1.02 to 4.64.

  Raises ValueError, as the other two do, when the lengths differ or the measure is not installed.
  """
  module = extras.load(MODULES['pesq'], 'pesq')

  def measure(reference_T, estimate_T):
    try:
      return Score(float(module.pesq(RATE, reference_T, estimate_T, 'wb')), 'ok')
    except module.NoUtterancesError:
      return Score(None, 'silent')
    except module.BufferTooShortError:
      return Score(None, 'too short')

  return _guarded(measure, reference_T, estimate_T, sample_rate)


def stoi(
  reference_T: Float[np.ndarray, 'T'], estimate_T: Float[np.ndarray, 'T'], sample_rate: int
) -> Score:
  """Returns STOI (Taal et al., 2011), a correlation: up to 1. 'too short' where pauses leave less
  than 30 frames.
  """
  module = extras.load(MODULES['stoi'], 'stoi')

  def measure(reference_T, estimate_T):
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      value = float(module.stoi(reference_T, estimate_T, RATE))
    if any('Not enough STFT frames' in str(warning.message) for warning in caught):
      return Score(None, 'too short')
    return Score(value, 'ok')

  return _guarded(measure, reference_T, estimate_T, sample_rate)


def visqol(
  reference_T: Float[np.ndarray, 'T'], estimate_T: Float[np.ndarray, 'T'], sample_rate: int
) -> Score:
  """Returns ViSQOL v3 in speech mode: 1 to 5, by the mapping that `visqol_mapper` names."""
  api = _visqol()

  def measure(reference_T, estimate_T):
    try:
      result = api.measure_from_arrays(
        reference_T.astype(np.float64), estimate_T.astype(np.float64), RATE
      )
    except (
      IndexError
    ):  # it takes the first of no patches: its detector of voices found none in the reference
      return Score(None, 'silent')
    return Score(float(result.moslqo), 'ok')

  return _guarded(measure, reference_T, estimate_T, sample_rate)


def visqol_mapper() -> str:
  """Returns how ViSQOL's similarity becomes a score: 'lattice' as in the original, or 'polynomial',
  a fallback.

  To be printed beside every score: the second, taken where ai-edge-litert is missing, gives 1 to 2
  points more.
  """
  return 'polynomial' if importlib.util.find_spec('ai_edge_litert') is None else 'lattice'


@functools.cache
def _visqol():
  module = extras.load(MODULES['visqol'], 'visqol')
  api = module.VisqolApi()
  api.create(mode='speech', use_lattice_model=visqol_mapper() == 'lattice')
  return api


def _guarded(measure, reference_T, estimate_T, sample_rate: int) -> Score:
  """Returns the score of what can be scored, at the rate of the measures."""
  if reference_T.shape != estimate_T.shape or reference_T.ndim != 1:
    raise UserError(
      f'waveforms of shapes {reference_T.shape} and {estimate_T.shape}: give two of one length, [T]'
    )
  if not (np.isfinite(reference_T).all() and np.isfinite(estimate_T).all()):
    return Score(None, 'not finite')
  if len(reference_T) < SHORTEST * sample_rate:
    return Score(None, 'too short')
  waves = [np.asarray(wave_T, np.float32) for wave_T in (reference_T, estimate_T)]
  if min(math.sqrt(np.mean(np.square(wave_T))) for wave_T in waves) < SILENCE:
    return Score(None, 'silent')
  score = measure(*audio.resample(np.stack(waves), sample_rate, RATE))
  if score.status == 'ok' and not math.isfinite(score.value):
    return Score(None, 'not finite')
  return score

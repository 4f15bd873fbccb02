"""Computes perceptual quality of one clip of speech: PESQ, STOI and ViSQOL.

Wraps `pesq`, `pystoi` and `visqol-python` (extra `eval`). They fail in different ways: they raise,
return NaN, or return a value near 0. Here each call returns a `Score` whose status gives the reason
for a missing value.
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

# Hz; wide-band PESQ and ViSQOL's speech mode are defined at this rate, STOI resamples from it
RATE = 16_000
SILENCE = 1e-4  # root mean square, -80 dB of full scale
SHORTEST = 0.7  # seconds, the minimum of ViSQOL; PESQ needs 0.25, STOI 0.4

MODULES = {'pesq': 'pesq', 'stoi': 'pystoi', 'visqol': 'visqol'}


class Score(NamedTuple):
  """Holds a value, or the reason why it is missing.

  `status` is 'ok', 'silent' (one of the two waveforms), 'too short' or 'not finite'.
  """

  value: float | None
  status: str


class Mean(NamedTuple):
  value: float | None  # None where no clip was scored
  count: int  # number of scored clips; the others are silent, too short or not finite


def available() -> tuple[str, ...]:
  """Returns the names of the installed measures."""
  return tuple(
    name for name, module in MODULES.items() if importlib.util.find_spec(module) is not None
  )


def mean(scores: Iterable[Score]) -> Mean:
  """Returns the mean and the number of the scores whose status is 'ok'.

  Args:
    scores: scores of clips.
  """
  values = [score.value for score in scores if score.status == 'ok']
  return Mean(float(np.mean(values)) if values else None, len(values))


def pesq(
  reference_T: Float[np.ndarray, 'T'], estimate_T: Float[np.ndarray, 'T'], sample_rate: int
) -> Score:
  """Returns wide-band PESQ (ITU-T P.862.2), 1.02 to 4.64.

  Args:
    reference_T: original waveform in [-1, 1].
    estimate_T: waveform of the same length.
    sample_rate: in Hz; both are resampled to 16 kHz.

  Raises:
    UserError: if the lengths differ or the package is not installed; so do `stoi` and `visqol`.
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
  """Returns STOI (Taal et al., 2011), a correlation of at most 1.

  The status is 'too short' where fewer than 30 frames remain after removing pauses.

  Args:
    reference_T: original waveform.
    estimate_T: waveform to judge, of the same length.
    sample_rate: in Hz.
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
  """Returns ViSQOL v3 in speech mode, 1 to 5, with the mapping named by `visqol_mapper`.

  Args:
    reference_T: original waveform.
    estimate_T: waveform to judge, of the same length.
    sample_rate: in Hz.
  """
  api = _visqol()

  def measure(reference_T, estimate_T):
    try:
      result = api.measure_from_arrays(
        reference_T.astype(np.float64), estimate_T.astype(np.float64), RATE
      )
    except IndexError:  # its voice activity detector found no patch in the reference
      return Score(None, 'silent')
    return Score(float(result.moslqo), 'ok')

  return _guarded(measure, reference_T, estimate_T, sample_rate)


def visqol_mapper() -> str:
  """Returns the mapping of similarity to score: 'lattice' (original) or 'polynomial' (fallback).

  Report it with every score: the fallback, used when ai-edge-litert is missing, gives values 1 to 2
  points higher.
  """
  return 'polynomial' if importlib.util.find_spec('ai_edge_litert') is None else 'lattice'


@functools.cache
def _visqol():
  module = extras.load(MODULES['visqol'], 'visqol')
  api = module.VisqolApi()
  api.create(mode='speech', use_lattice_model=visqol_mapper() == 'lattice')
  return api


def _guarded(measure, reference_T, estimate_T, sample_rate: int) -> Score:
  """Returns the score at the rate of the measures, or the reason for a missing value."""
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

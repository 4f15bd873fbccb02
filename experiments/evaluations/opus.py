"""Encodes and decodes speech with Opus (RFC 6716), using the programs of opus-tools."""

import os
import shutil
import subprocess
import tempfile

import numpy as np
from jaxtyping import Float

from audiolm_jax import audio
from audiolm_jax.errors import UserError

PROGRAMS = ('opusenc', 'opusdec')


def missing() -> tuple[str, ...]:
  """Returns the names of the programs that are not installed."""
  return tuple(program for program in PROGRAMS if shutil.which(program) is None)


def round_trip(
  wave_T: Float[np.ndarray, 'T'], sample_rate: int, kbit_per_second: int
) -> Float[np.ndarray, 'T']:
  """Returns a waveform, encoded and decoded at a constant bit rate with tuning for speech.

  Raises:
    OSError: if opus-tools are not installed.
    UserError: if they fail.
  """
  with tempfile.TemporaryDirectory() as folder:
    original, coded, decoded = (
      os.path.join(folder, name) for name in ('original.wav', 'coded.opus', 'decoded.wav')
    )
    audio.save(original, wave_T, sample_rate)
    _call('opusenc', '--hard-cbr', '--speech', '--bitrate', str(kbit_per_second), original, coded)
    _call('opusdec', '--rate', str(sample_rate), '--no-dither', coded, decoded)
    estimate_T = audio.load(decoded, sample_rate)
  if abs(len(estimate_T) - len(wave_T)) > 2:  # the decoder resamples from 48 kHz, and may round
    raise UserError(f'opusdec made {len(estimate_T)} samples of {len(wave_T)}')
  return np.pad(estimate_T, (0, 2))[: len(wave_T)]


def _call(program: str, *arguments: str):
  done = subprocess.run([program, '--quiet', *arguments], capture_output=True, text=True)
  if done.returncode:
    raise UserError(f'{program} failed: {done.stderr.strip()}')

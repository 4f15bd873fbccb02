"""Adds noise to clean speech, for codecs trained to remove it."""

from typing import Any

import numpy as np

from audiolm_jax.data import inventory
from audiolm_jax.data.example import Example
from audiolm_jax.errors import UserError

CLEAN_SHARE = 0.2  # share of examples without noise, so that clean input stays unchanged


class WithNoise:
  """Random access source that adds an entry 'noise' to examples, of the length of 'waveform'.

  An example always gets the same noise. It is part of a recording, which is repeated if too short.
  Without recordings, it is Gaussian noise with power 1 / f^a at frequency f, for a random a between
  0 (white) and 2 (brown).

  Args:
    source: random access source of speech.
    noises: random access source of noise, with the same sample rate; None for Gaussian noise.
    snr_db: range in dB of the signal-to-noise ratio, drawn uniformly.
    seed: seed of noise and ratios.

  Raises:
    UserError: if `noises` is empty.
  """

  def __init__(
    self,
    source: Any,
    noises: Any | None = None,
    *,
    snr_db: tuple[float, float] = (0.0, 15.0),
    seed: int = 0,
  ):
    if noises is not None and not len(noises):
      raise UserError('noises has no examples: give a folder of noise, or None for Gaussian noise')
    self._source, self._noises, self._snr_db, self._seed = source, noises, snr_db, seed

  @property
  def sample_rate(self) -> int:
    return self._source.sample_rate

  def __len__(self) -> int:
    return len(self._source)

  def inventory(self) -> list[str]:
    """Returns the inventory of the speech, because noise does not change tokens."""
    return inventory.of(self._source)

  def refuse(self, i: int, reason: str):
    """Records example i as unreadable."""
    if hasattr(self._source, 'refuse'):
      self._source.refuse(i, reason)

  def __getitem__(self, i: int) -> Example | None:
    i = range(len(self))[i]
    example = self._source[i]
    if example is None:
      return None
    wave_T, random = (
      np.asarray(example['waveform'], np.float32),
      np.random.default_rng((self._seed, i)),
    )
    if random.random() < CLEAN_SHARE:
      return {**example, 'noise': np.zeros_like(wave_T)}
    noise_T = (
      _coloured(len(wave_T), random)
      if self._noises is None
      else self._recorded(len(wave_T), random)
    )
    ratio = 10 ** (random.uniform(*self._snr_db) / 10)
    gain = np.sqrt(np.mean(np.square(wave_T)) / max(ratio * np.mean(np.square(noise_T)), 1e-12))
    return {**example, 'noise': (gain * noise_T).astype(np.float32)}

  def _recorded(self, length: int, random: np.random.Generator) -> np.ndarray:
    """Returns a random part of a random recording, or of the next readable recording."""
    first = int(random.integers(len(self._noises)))
    for offset in range(len(self._noises)):
      noise = self._noises[(first + offset) % len(self._noises)]
      if noise is not None:
        repeated_T = np.resize(noise['waveform'], max(length, len(noise['waveform'])))
        start = int(random.integers(len(repeated_T) - length + 1))
        return repeated_T[start : start + length]
    raise UserError('no recording of noise can be read: give another folder of noise')


def _coloured(length: int, random: np.random.Generator) -> np.ndarray:
  spectrum_N = np.fft.rfft(random.normal(size=length))
  return np.fft.irfft(
    spectrum_N * np.arange(1, len(spectrum_N) + 1) ** (-random.uniform(0, 2) / 2), n=length
  )

"""A prepared TensorFlow Datasets data set (ArrayRecord) as a source, without TensorFlow."""

import io
import os
from typing import Any

import numpy as np
import soxr

from audiolm_jax import audio, audio_checks
from audiolm_jax.data import skipped
from audiolm_jax.data.example import Example
from audiolm_jax.errors import UserError


class Examples:
  """A random access source: {'waveform' [T] float32, 'speaker' [] int32 where known}; None where
  unreadable.

  The reasons are in `bad`, by index, and in the file `quarantine` where one is named. A speaker
  below 0 is unknown, as `data.builders` writes it. Raises ValueError, when reading, once more than
  `max_bad_fraction` are.
  """

  def __init__(
    self,
    source: Any,
    sample_rate: int,
    stored_sample_rate: int,
    audio_name: str,
    speaker_name: str | None,
    max_bad_fraction: float = 0.05,
    quarantine: str | None = None,
    identity: str = '',
  ):
    self.bad = skipped.Skipped(len(source), max_bad_fraction, 'records', quarantine)
    self._source = source
    self.sample_rate, self._rates = sample_rate, (stored_sample_rate, sample_rate)
    self._audio_name, self._speaker_name, self._identity = audio_name, speaker_name, identity

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: int) -> Example | None:
    i = range(len(self))[i]
    record = self._source[i]
    try:
      example = {'waveform': self._waveform(record[self._audio_name], i)}
    except ValueError as error:
      self.refuse(i, str(error))
      return None
    if self._speaker_name is not None and (speaker := np.int32(record[self._speaker_name])) >= 0:
      example['speaker'] = speaker
    return example

  def refuse(self, i: int, reason: str):
    """Counts record i as unreadable, by what others find in it."""
    self.bad.add(range(len(self))[i], f'{self._identity}: record {i}', reason)

  def inventory(self) -> list[str]:
    """Returns lines that are equal for the same data set."""
    return [f'{self._identity}: {len(self)} records']

  def _waveform(self, stored: Any, i: int) -> np.ndarray:
    stored_rate, rate = self._rates
    stored = stored.item() if isinstance(stored, np.ndarray) and stored.dtype == object else stored
    if isinstance(stored, bytes):
      return audio.decode(io.BytesIO(stored), rate, name=f'record {i}')
    if stored.ndim != 1 or not len(stored):
      raise UserError(
        f'record {i}: {self._audio_name!r} has shape {stored.shape}; one channel of samples is wanted'
      )
    wave_T = stored.astype(np.float32)
    # 16-bit samples, in whatever integers they are kept
    if np.issubdtype(stored.dtype, np.integer):
      wave_T = wave_T / 32768
    audio_checks.check_samples(wave_T, f'record {i}')
    if stored_rate != rate:
      wave_T = soxr.resample(wave_T, stored_rate, rate)
    if not len(wave_T):
      raise UserError(audio_checks.too_short(f'record {i}'))
    return wave_T


def examples(
  folder: str | os.PathLike,
  split: str,
  sample_rate: int,
  *,
  audio_name: str = 'audio',
  speaker_name: str | None = None,
  stored_sample_rate: int | None = None,
  max_bad_fraction: float = 0.05,
  quarantine: str | None = None,
) -> Examples:
  """Returns a split of the data set prepared in `folder` (the one with dataset_info.json).

  The audio is an encoded file's bytes, or samples (integers are 16-bit) at `stored_sample_rate`, by
  default `sample_rate`. `speaker_name`: the feature that numbers the speakers.

  Raises ImportError, naming the extra, without tensorflow-datasets; ValueError when a feature or
  split is missing.
  """
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ImportError(
      'TFDS data sets need tensorflow-datasets: pip install audiolm_jax[tfds]'
    ) from error
  builder = tensorflow_datasets.builder_from_directory(os.fspath(folder))
  if split not in builder.info.splits:
    raise UserError(
      f'{folder}: split {split!r} is asked for; there are {sorted(builder.info.splits)}'
    )
  for name in (audio_name, speaker_name):
    if name is not None and name not in builder.info.features:
      raise UserError(
        f'{folder}: feature {name!r} is asked for; there are {sorted(builder.info.features)}'
      )
  source = builder.as_data_source(split)
  return Examples(
    source,
    sample_rate,
    stored_sample_rate or sample_rate,
    audio_name,
    speaker_name,
    max_bad_fraction,
    quarantine,
    identity=f'{builder.info.full_name}, {split}',
  )

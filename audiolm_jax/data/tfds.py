"""A prepared TensorFlow Datasets data set (ArrayRecord) as a source, without TensorFlow."""

import io
import os
from typing import Any

import numpy as np
import soxr

from audiolm_jax import audio


class Examples:
  """A random access source: {'waveform' [T] float32, 'label' [] int32 where there is one}; None where unreadable.

  The reasons are in `bad`, by index. Raises ValueError, when reading, once more than `max_bad_fraction` are.
  """

  def __init__(
      self,
      source: Any,
      sample_rate: int,
      stored_sample_rate: int,
      audio_name: str,
      label_name: str | None,
      max_bad_fraction: float = 0.05,
  ):
    self.bad: dict[int, str] = {}
    self._source = source
    self.sample_rate, self._rates = sample_rate, (stored_sample_rate, sample_rate)
    self._audio_name, self._label_name = audio_name, label_name
    self._max_bad_fraction = max_bad_fraction

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: int) -> dict | None:
    i = range(len(self))[i]
    record = self._source[i]
    try:
      example = {'waveform': self._waveform(record[self._audio_name], i)}
    except ValueError as error:
      self.bad[i] = str(error)
      if len(self.bad) > self._max_bad_fraction * len(self):
        raise ValueError(
            f'{len(self.bad)} of {len(self)} records cannot be read, more than max_bad_fraction='
            f'{self._max_bad_fraction}; the last: {error}'
        ) from error
      return None
    if self._label_name is not None:
      example['label'] = np.int32(record[self._label_name])
    return example

  def _waveform(self, stored: Any, i: int) -> np.ndarray:
    stored_rate, rate = self._rates
    stored = stored.item() if isinstance(stored, np.ndarray) and stored.dtype == object else stored
    if isinstance(stored, bytes):
      return audio.decode(io.BytesIO(stored), rate, name=f'record {i}')
    if stored.ndim != 1 or not len(stored):
      raise ValueError(f'record {i}: {self._audio_name!r} has shape {stored.shape}; one channel of samples is wanted')
    wave_T = stored.astype(np.float32)
    if np.issubdtype(stored.dtype, np.integer):  # 16-bit samples, in whatever integers they are kept
      wave_T = wave_T / 32768
    if not np.isfinite(wave_T).all():
      raise ValueError(f'record {i}: {np.sum(~np.isfinite(wave_T))} samples are NaN or infinite')
    return soxr.resample(wave_T, stored_rate, rate) if stored_rate != rate else wave_T


def examples(
    folder: str | os.PathLike,
    split: str,
    sample_rate: int,
    *,
    audio_name: str = 'audio',
    label_name: str | None = None,
    stored_sample_rate: int | None = None,
    max_bad_fraction: float = 0.05,
) -> Examples:
  """Returns a split of the data set prepared in `folder` (the one with dataset_info.json).

  The audio is an encoded file's bytes, or samples (integers are 16-bit) at `stored_sample_rate`, by default
  `sample_rate`.

  Raises ImportError, naming the extra, without tensorflow-datasets; ValueError when a feature or split is missing.
  """
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ImportError('TFDS data sets need tensorflow-datasets: pip install audiolm_jax[tfds]') from error
  builder = tensorflow_datasets.builder_from_directory(os.fspath(folder))
  if split not in builder.info.splits:
    raise ValueError(f'{folder}: split {split!r} is asked for; there are {sorted(builder.info.splits)}')
  for name in (audio_name, label_name):
    if name is not None and name not in builder.info.features:
      raise ValueError(f'{folder}: feature {name!r} is asked for; there are {sorted(builder.info.features)}')
  source = builder.as_data_source(split)
  return Examples(
      source, sample_rate, stored_sample_rate or sample_rate, audio_name, label_name, max_bad_fraction
  )

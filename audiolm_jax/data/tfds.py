"""Reads prepared TensorFlow Datasets data sets (ArrayRecord), without TensorFlow, from disks and
buckets (gs://).
"""

import errno
import io
import os
from typing import Any

import numpy as np
import soxr

from audiolm_jax import audio, audio_checks, storage
from audiolm_jax.data import pipeline, skipped, token_shards
from audiolm_jax.data.example import Example
from audiolm_jax.errors import UserError, install

# Threads that read batches from a bucket: at 30 ms a record, about 1,000 records a second. Fewer
# than for tokens, because twice as many batches of audio are held in memory.
_BUCKET_THREADS = 32


class Examples:
  """Random access source of examples with 'waveform' and, if known, 'speaker'.

  A negative speaker is unknown, as in data sets of `data.builders`. Unreadable records are None;
  they are recorded with reasons in `bad`, and in the JSON lines of the file `quarantine` if given.
  `num_threads` is the number of threads that should read from it (`pipeline.batches`).

  Raises:
    UserError: on reading, if more than `max_bad_fraction` of the records are unreadable.
    OSError: on reading, if a bucket fails.
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
    num_threads: int = pipeline.NUM_THREADS,
  ):
    self.bad = skipped.Skipped(len(source), max_bad_fraction, 'records', quarantine)
    self._source, self.num_threads = source, num_threads
    self.sample_rate, self._rates = sample_rate, (stored_sample_rate, sample_rate)
    self._audio_name, self._speaker_name, self._identity = audio_name, speaker_name, identity

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: int) -> Example | None:
    i = range(len(self))[i]
    try:
      record = self._source[i]
    except RuntimeError as error:  # of ArrayRecord
      if token_shards.DAMAGE not in str(error):
        raise OSError(errno.EIO, f'record {i} cannot be read ({error})', self._identity) from error
      self.refuse(i, str(error))
      return None
    try:
      example = {'waveform': self._waveform(record[self._audio_name], i)}
    except ValueError as error:
      self.refuse(i, str(error))
      return None
    if self._speaker_name is not None and (speaker := np.int32(record[self._speaker_name])) >= 0:
      example['speaker'] = speaker
    return example

  def refuse(self, i: int, reason: str):
    """Records example i as unreadable."""
    self.bad.add(range(len(self))[i], f'{self._identity}: record {i}', reason)

  def inventory(self) -> list[str]:
    """Returns one line with the name of the data set and its number of records."""
    return [f'{self._identity}: {len(self)} records']

  def _waveform(self, stored: Any, i: int) -> np.ndarray:
    stored_rate, rate = self._rates
    stored = stored.item() if isinstance(stored, np.ndarray) and stored.dtype == object else stored
    if isinstance(stored, bytes):
      return audio.decode(io.BytesIO(stored), rate, name=f'record {i}')
    if stored.ndim != 1 or not len(stored):
      raise UserError(
        f'record {i}: {self._audio_name!r} has shape {stored.shape}; expected one channel '
        'of samples'
      )
    wave_T = stored.astype(np.float32)
    # Integers of any type are 16-bit samples.
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
  """Returns a source of a split of the data set prepared in `folder`.

  Args:
    folder: folder with dataset_info.json, on a disk or in a bucket.
    split: name of the split.
    sample_rate: of the waveforms, in Hz.
    audio_name: feature with the bytes of an encoded file, or samples (integers are 16-bit).
    speaker_name: feature with the number of the speaker; None if there is none.
    stored_sample_rate: of stored samples, in Hz; defaults to `sample_rate`.
    max_bad_fraction: largest accepted share of unreadable records.
    quarantine: file that lists unreadable records; None for no file.

  Raises:
    UserError: if a feature, the split, or the package tensorflow-datasets is missing.
  """
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise UserError(f'TFDS data sets need tensorflow-datasets: {install("tfds")}') from error
  folder = storage.path(folder)
  builder = tensorflow_datasets.builder_from_directory(os.fspath(folder))
  if split not in builder.info.splits:
    raise UserError(f'{folder}: no split {split!r}: choose from {sorted(builder.info.splits)}')
  for name in (audio_name, speaker_name):
    if name is not None and name not in builder.info.features:
      raise UserError(f'{folder}: no feature {name!r}: choose from {sorted(builder.info.features)}')
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
    num_threads=_BUCKET_THREADS if storage.in_bucket(folder) else pipeline.NUM_THREADS,
  )

"""Builds TFDS data sets of Libri-Light, MAESTRO or a folder of audio files by Apache Beam.

Use it for corpora that are too large for one host: `prepare` runs a builder on any Beam runner,
without TensorFlow, and writes ArrayRecord shards for `data.tfds`. An example contains the bytes of
the file (or of a FLAC with a part of it), its id, speaker (-1 if unknown), number of samples, rate,
and the SHA-256 of the bytes.

A data set may be written to a bucket (gs://). TFDS renames shards, and their folder at the end,
which in a bucket copies them through the machine that does it.

This module needs the extra `beam`; import it only to prepare data sets.
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import soundfile
import tensorflow_datasets as tfds

from audiolm_jax import audio, files, storage
from audiolm_jax.data import folders, librilight
from audiolm_jax.errors import UserError

_COUNTERS = 'audiolm_jax'
storage.client()  # of buckets, through which TFDS sees them, in each of Beam's processes


class _Writer(tfds.core.writer.ExampleWriter):
  """Writes shards to a disk or a bucket; ArrayRecord's own writer knows disks only."""

  def write(self, path, examples):
    with storage.atomically(path) as partial:
      return super().write(partial, examples)


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Builds a data set of the audio below `root`; subclasses assign parts to splits."""

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'Give the folder that holds the audio as root.'

  def __init__(self, *, root: str | os.PathLike, **options):
    self._root = os.fspath(root)
    super().__init__(file_format='array_record', **options)

  def _parts(self) -> Mapping[str, Sequence[folders.Part]]:
    """Returns the parts of each split."""
    raise NotImplementedError

  def _example_writer(self) -> _Writer:
    return _Writer(self.info.file_format)

  def _info(self) -> tfds.core.DatasetInfo:
    # tfds.features.Text and Audio need TensorFlow.
    text = lambda: tfds.features.Tensor(shape=(), dtype=np.object_)
    features = {
      'audio': text(),
      'id': text(),
      'sha256': text(),
      'speaker': tfds.features.Scalar(np.int32),
      'num_samples': tfds.features.Scalar(np.int64),
      'sample_rate': tfds.features.Scalar(np.int32),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    del dl_manager
    return {
      split: self._generate_examples(parts) for split, parts in self._parts().items() if parts
    }

  def _generate_examples(self, parts: Sequence[folders.Part]) -> beam.PTransform:
    root = self._root
    # Shuffle paths before reading files, because neighbours in the list belong to one book.
    return (
      beam.Create(list(parts)) | beam.Reshuffle() | beam.FlatMap(lambda part: _examples(part, root))
    )


class LibriLight(_Builder):
  """Builds a data set of Libri-Light's unlab splits as downloaded (see `data.librilight`).

  The share `held_out` of the speakers is the test split.
  """

  def __init__(
    self,
    *,
    root,
    splits: Sequence[str] = ('unlab-600', 'unlab-6k', 'unlab-60k'),
    held_out: float = 0.005,
    **options,
  ):
    self._subsets, self._held_out = tuple(splits), held_out
    super().__init__(root=root, **options)

  def _parts(self):
    parts = librilight.examples(self._root, splits=self._subsets).parts
    return _held_out(parts, self._held_out, lambda part: str(part.speaker))


class Maestro(_Builder):
  """Builds a data set of MAESTRO v3 as unpacked; the splits are those of its file maestro-*.csv."""

  def _parts(self):
    [table] = _tables(self._root)
    parts = {'train': [], 'validation': [], 'test': []}
    with files.open_csv(table, 'download it again') as file:
      for row in csv.DictReader(file):
        if row['split'] not in parts:
          raise UserError(
            f'{table}: split {row["split"]!r} of {row["audio_filename"]} is not one of '
            f'{sorted(parts)}'
          )
        parts[row['split']].append(folders.Part(os.path.join(self._root, row['audio_filename'])))
    return parts


class AudioFolder(_Builder):
  """Builds a data set of the WAV, FLAC, OGG and MP3 files in a folder.

  The share `held_out` is the test split, chosen by path; with `speaker_folders`, it is chosen by
  the name of a file's folder, so that no speaker is in both splits.
  """

  def __init__(self, *, root, held_out: float = 0.05, speaker_folders: bool = False, **options):
    self._held_out, self._speaker_folders = held_out, speaker_folders
    super().__init__(root=root, **options)

  def _parts(self):
    parts = folders.examples(self._root, 16_000, speaker_folders=self._speaker_folders).parts
    name = lambda part: folders.split_name(part, self._root, self._speaker_folders)
    return _held_out(parts, self._held_out, name)


def prepare(
  builder: tfds.core.GeneratorBasedBuilder,
  beam_options: Sequence[str] = (),
  *,
  num_shards: int | None = None,
) -> dict[str, int]:
  """Prepares the data set and returns the number of examples of each split.

  Prepared splits are not changed.

  Args:
    builder: the builder.
    beam_options: Beam flags, for example ['--runner=DirectRunner', '--direct_num_workers=8'].
    num_shards: number of shards of each split; None lets TFDS choose.
  """
  config = tfds.download.DownloadConfig(
    manual_dir=builder._root,
    beam_options=beam.options.pipeline_options.PipelineOptions(list(beam_options)),
    try_download_gcs=False,
    num_shards=num_shards,
  )
  builder.download_and_prepare(download_config=config)
  return {name: split.num_examples for name, split in builder.info.splits.items()}


def _tables(root: str) -> list[str]:
  found = sorted(
    name for name in os.listdir(root) if name.startswith('maestro-') and name.endswith('.csv')
  )
  if len(found) != 1:
    raise UserError(
      f'{root}: contains {found or "no maestro-*.csv"}: give the folder into which MAESTRO was '
      'unpacked'
    )
  return [os.path.join(root, found[0])]


def _held_out(parts: Sequence[folders.Part], share: float, name) -> dict[str, list[folders.Part]]:
  """Splits parts by the checksum of a name, with the same result as the recipes' corpora."""
  splits = {'train': [], 'test': []}
  for part in parts:
    splits['test' if folders.is_held_out(name(part), share) else 'train'].append(part)
  return splits


def _examples(part: folders.Part, root: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
  """Yields the example of a part, or nothing if it cannot be read; Beam counts both."""
  try:
    content, num_samples, sample_rate = _encoded(part)
  except (ValueError, OSError):
    beam.metrics.Metrics.counter(_COUNTERS, 'unreadable').inc()
    return
  beam.metrics.Metrics.counter(_COUNTERS, 'examples').inc()
  key = os.fsencode(os.path.relpath(part.path, root))  # bytes, because names may be invalid text
  if part.num_seconds is not None:
    key += f'@{part.start_seconds:.3f}'.encode()
  yield (
    key,
    {
      'audio': content,
      'id': key,
      'sha256': hashlib.sha256(content).hexdigest().encode(),
      'speaker': -1 if part.speaker is None else part.speaker,
      'num_samples': num_samples,
      'sample_rate': sample_rate,
    },
  )


def _encoded(part: folders.Part) -> tuple[bytes, int, int]:
  """Returns bytes, number of samples and rate of a part, encoded as FLAC unless it is a whole file.

  Whole files are decoded to check them.
  """
  rate = audio.info(part.path).sample_rate
  wave_T = audio.load(
    part.path, rate, start_seconds=part.start_seconds, num_seconds=part.num_seconds
  )
  if part.num_seconds is None and not part.start_seconds:
    with open(part.path, 'rb') as file:
      return file.read(), len(wave_T), rate
  flac = io.BytesIO()
  soundfile.write(flac, wave_T, rate, format='FLAC', subtype='PCM_16')
  return flac.getvalue(), len(wave_T), rate

"""Defines the corpora of recipes: frozen configs with the method `examples(split, cache_dir)`.

It returns a source of the split 'train' or 'test' (held out): `len(source)`, and `source[i]`, which
is an example or None (see data.pipeline). `cache_dir` is a folder for prepared audio and for the
list of skipped files.
"""

import dataclasses
import functools
import os
from typing import Any, ClassVar

import numpy as np

from audiolm_jax import checks, storage
from audiolm_jax.data import (
  captions,
  debian,
  folders,
  librilight,
  librispeech,
  music,
  noise,
  speech,
  synthesized,
  tfds,
)
from audiolm_jax.data.utterances import Utterances
from audiolm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthesized:
  """Speech of espeak-ng, synthesized on first use and kept in `cache_dir`."""

  config: synthesized.Config = synthesized.Config()

  def examples(self, split: str, cache_dir):
    os.makedirs(cache_dir, exist_ok=True)
    return synthesized.examples(self.config, split, cache_dir=cache_dir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
  """A folder of WAV, FLAC, OGG, Opus or MP3 files, at any rate.

  Whether a file is held out depends on its path, or with `speaker_folders` on the name of its
  folder, so that no voice is in both splits. Files in `test_root` are never trained on, even if the
  two folders overlap or link to each other.
  """

  root: str
  # folder of held-out files; '': `held_out` of the files below `root`
  test_root: str = ''
  sample_rate: int = 16_000  # Hz
  held_out: float = 0.05  # share of the files, or of the speakers
  speaker_folders: bool = False  # the name of a file's folder is its speaker
  max_seconds: float = 3600.0  # longer files are skipped
  # share of unreadable files that may be skipped (and listed); more stop the run
  max_bad_fraction: float = 0.05

  def __post_init__(self):
    checks.fields(
      self,
      root=checks.TEXT,
      test_root=checks.TEXT,
      sample_rate=checks.WHOLE,
      held_out=checks.SHARE,
      speaker_folders=checks.FLAG,
      max_seconds=checks.POSITIVE,
      max_bad_fraction=checks.SHARE,
    )

  def examples(self, split: str, cache_dir):
    root = self.test_root if self.test_root and split == 'test' else self.root
    found = folders.examples(
      _given(root),
      self.sample_rate,
      speaker_folders=self.speaker_folders,
      max_seconds=self.max_seconds,
      max_bad_fraction=self.max_bad_fraction,
      quarantine=listing(cache_dir),
    )
    if not self.test_root:
      name = lambda part: folders.split_name(part, self.root, self.speaker_folders)
      return _split(found, split, self.held_out, name)
    if split == 'test':
      return found
    held_out = folders.same_files(folders.find(_given(self.test_root)))
    trains = lambda part: folders.same_files([part.path]).isdisjoint(held_out)
    kept = [part for part in found.parts if trains(part)]
    if not kept:
      raise UserError(
        f'every audio file of corpus.root={self.root} is one of '
        f'corpus.test_root={self.test_root}: nothing is left to '
        'train on; give other folders, or --set corpus.test_root= to hold out a share of the files'
      )
    return found.keep(kept)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LibriLight:
  """Libri-Light's unlab splits as downloaded; held out are all files of some speakers."""

  root: str
  splits: tuple[str, ...] = ('unlab-600', 'unlab-6k', 'unlab-60k')
  held_out: float = 0.005  # share of the speakers
  part_seconds: float = 60.0  # approximate length of the parts of chapters
  max_seconds: float = 3600.0  # longer chapters without voice activity are skipped
  # share of unreadable parts that may be skipped (and listed); more stop the run
  max_bad_fraction: float = 0.05

  def __post_init__(self):
    checks.fields(
      self,
      root=checks.TEXT,
      splits=checks.each(checks.TEXT),
      held_out=checks.SHARE,
      part_seconds=checks.POSITIVE,
      max_seconds=checks.POSITIVE,
      max_bad_fraction=checks.SHARE,
    )

  def examples(self, split: str, cache_dir):
    found = _librilight(self, _given(self.root), listing(cache_dir))
    return _split(found, split, self.held_out, lambda part: str(part.speaker))


@functools.lru_cache(maxsize=1)  # both splits: a listing reads a JSON file per chapter
def _librilight(corpus: LibriLight, root: str, quarantine: str | None) -> folders.AudioFiles:
  return librilight.examples(
    root,
    splits=corpus.splits,
    part_seconds=corpus.part_seconds,
    max_seconds=corpus.max_seconds,
    max_bad_fraction=corpus.max_bad_fraction,
    quarantine=quarantine,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LibriSpeech:
  """LibriSpeech as unpacked, with texts, in its own splits, which share no speakers."""

  root: str
  train: tuple[str, ...] = ('train-clean-100', 'train-clean-360')
  test: tuple[str, ...] = ('dev-clean', 'test-clean')

  def __post_init__(self):
    texts = checks.each(checks.TEXT)
    checks.fields(self, root=checks.TEXT, train=texts, test=texts)

  def examples(self, split: str, cache_dir):
    names = {'train': self.train, 'test': self.test}[split]
    root = _given(self.root)
    there = [name for name in names if os.path.isdir(os.path.join(root, name))]
    if not there:
      raise UserError(
        f'{root} has none of {", ".join(names)}: --set corpus.root=FOLDER must name the folder '
        f'that contains them (or choose others by --set corpus.{split})'
      )
    found = [one for name in there for one in librispeech.utterances(os.path.join(root, name))]
    return Utterances(found, 16_000, quarantine=listing(cache_dir), root=root)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speech:
  """Human speech of Debian packages (data.debian), and optionally files of LibriSpeech.

  A third split is 'labelled' (data.speech). LibriSpeech's speakers with a number divisible by 5 are
  in 'test', all others in 'train'.
  """

  PHONES: ClassVar[str] = 'labelled'  # the split whose examples have phones

  root: str  # folder with usr/share/... of the packages; '/' for installed ones
  librispeech: str = ''  # a folder of LibriSpeech's files; '': none
  packages: tuple[str, ...] = tuple(debian.PACKAGES)  # (): LibriSpeech alone

  def __post_init__(self):
    checks.fields(self, root=checks.TEXT, librispeech=checks.TEXT)
    if self.packages != ():
      checks.fields(self, packages=checks.each(checks.TEXT))

  def examples(self, split: str, cache_dir):
    found, phone_names = [], ()
    if self.packages:
      folder = speech.prepared(debian.clips(_given(self.root), self.packages), cache_dir)
      found, phone_names = speech.utterances(folder, split)
    if self.librispeech and split != 'labelled':
      if not os.path.isdir(self.librispeech):
        raise UserError(
          f'{self.librispeech!r} is not a folder: --set corpus.librispeech=FOLDER must name one'
        )
      others = librispeech.utterances(self.librispeech)
      found += [one for one in others if librispeech.held_out(one) == (split == 'test')]
    if not found:
      raise UserError(
        f'no recordings of {", ".join(self.packages) or "LibriSpeech"} are in the split {split!r}: '
        'give more packages by --set corpus.packages, or a folder by --set corpus.librispeech'
      )
    return Utterances(
      found, speech.SAMPLE_RATE, phone_names=phone_names, quarantine=listing(cache_dir)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds:
  """A TFDS data set in ArrayRecord format, read without TensorFlow.

  `folder` contains its dataset_info.json, on a disk or in a bucket (gs://).
  """

  IN_BUCKETS: ClassVar[tuple[str, ...]] = ('folder',)  # fields that may be gs://

  folder: str
  train_split: str = 'train'
  test_split: str = 'test'
  sample_rate: int = 16_000  # Hz
  audio_name: str = 'audio'
  # feature with the speaker's number; 'speaker' in data sets of experiments.prepare
  speaker_name: str | None = None
  stored_sample_rate: int | None = None  # Hz, if not `sample_rate`
  # share of unreadable records that may be skipped (and listed); more stop the run
  max_bad_fraction: float = 0.05

  def __post_init__(self):
    names = ('folder', 'train_split', 'test_split', 'audio_name')
    checks.fields(
      self,
      **dict.fromkeys(names, checks.TEXT),
      sample_rate=checks.WHOLE,
      speaker_name=checks.optional(checks.TEXT),
      stored_sample_rate=checks.optional(checks.WHOLE),
      max_bad_fraction=checks.SHARE,
    )

  def examples(self, split: str, cache_dir):
    name = {'train': self.train_split, 'test': self.test_split}[split]
    return tfds.examples(
      _given(self.folder),
      name,
      self.sample_rate,
      audio_name=self.audio_name,
      speaker_name=self.speaker_name,
      stored_sample_rate=self.stored_sample_rate,
      max_bad_fraction=self.max_bad_fraction,
      quarantine=listing(cache_dir),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Music:
  """Tunes for piano, or for six instruments with texts, rendered when first read (data.music).

  Audio is kept in `cache_dir`. A third split of captioned music is 'pairs': pairs of attributes
  that the others lack.
  """

  config: music.Config = music.Config()

  def examples(self, split: str, cache_dir):
    return music.examples(self.config, split, cache_dir=cache_dir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioned:
  """A folder of music with a file of captions (data.captions), such as MusicCaps.

  Whether a file is held out depends on its path.
  """

  root: str
  captions: str  # CSV, JSON lines, or a list of MusicCaps, MTG-Jamendo or FMA
  subset: str = ''  # of FMA, whose list names all tracks: small, medium or large; '': all
  sample_rate: int = 24_000  # Hz, of MusicLM
  held_out: float = 0.05  # share of the files
  num_texts: int = 1  # most captions of a file
  text_bytes: int = 512  # of the longest caption, in UTF-8
  # share of captions without files, and of files without captions, that may be skipped (listed)
  max_unmatched: float = 0.0
  max_seconds: float = 3600.0  # longer files are skipped
  # share of unreadable files that may be skipped (and listed); more stop the run
  max_bad_fraction: float = 0.05

  def __post_init__(self):
    checks.fields(
      self,
      root=checks.TEXT,
      captions=checks.TEXT,
      subset=checks.one_of('', *captions.FMA_SUBSETS),
      sample_rate=checks.WHOLE,
      held_out=checks.SHARE,
      num_texts=checks.WHOLE,
      text_bytes=checks.WHOLE,
      max_unmatched=checks.SHARE,
      max_seconds=checks.POSITIVE,
      max_bad_fraction=checks.SHARE,
    )

  def examples(self, split: str, cache_dir):
    root = _given(self.root)
    entries = captions.subset(captions.read(self.captions), self.subset)
    found = captions.CaptionedFiles(
      captions.parts(root, entries, max_unmatched=self.max_unmatched, listing=listing(cache_dir)),
      self.sample_rate,
      num_texts=self.num_texts,
      text_bytes=self.text_bytes,
      max_seconds=self.max_seconds,
      max_bad_fraction=self.max_bad_fraction,
      quarantine=listing(cache_dir),
      root=root,
    )
    return _split(found, split, self.held_out, lambda part: folders.split_name(part, root, False))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noisy:
  """Another corpus with added noise (data.noise), for a codec with a denoising switch."""

  speech: Any  # another corpus
  noise: Any | None = None  # a corpus of noise; None: Gaussian
  snr_db: tuple[float, float] = (0.0, 15.0)  # range

  def __post_init__(self):
    checks.fields(self, snr_db=checks.each(checks.NUMBER))
    if len(self.snr_db) != 2 or self.snr_db[0] > self.snr_db[1]:
      raise UserError(f'snr_db={self.snr_db!r}: must be the lowest and the highest, in dB')

  def examples(self, split: str, cache_dir):
    speech = self.speech.examples(split, cache_dir)
    noises = None if self.noise is None else self.noise.examples(split, cache_dir)
    if noises is not None and noises.sample_rate != speech.sample_rate:
      raise UserError(
        f'the noise is read at {noises.sample_rate} Hz, the speech at {speech.sample_rate}: '
        'give both the same sample_rate'
      )
    return noise.WithNoise(speech, noises, snr_db=self.snr_db)


def _given(path: str) -> str:
  if not path:
    raise UserError(
      'the recipe does not say where the audio is: '
      'add --set corpus.root=FOLDER (TFDS: corpus.folder)'
    )
  if not storage.path(path).is_dir():
    raise UserError(
      f'{path!r} is not a folder: --set corpus.root=FOLDER (TFDS: corpus.folder) must name one'
    )
  return path


def listing(cache_dir) -> str | None:
  """Returns the path of the list of skipped files and reasons; None if `cache_dir` is None."""
  return None if cache_dir is None else os.path.join(cache_dir, 'skipped.jsonl')


def _split(found, split: str, held_out: float, name):
  """Returns the parts of a split.

  The checksum of a part's name decides whether it is held out, so that new files move no others.
  """
  kept = [
    part for part in found.parts if folders.is_held_out(name(part), held_out) == (split == 'test')
  ]
  if not kept:
    names = len({name(part) for part in found.parts})
    raise UserError(
      f'no audio falls into the split {split!r} with held_out={held_out} ({names} files or '
      'speakers): change --set corpus.held_out, name a folder by --set corpus.test_root=FOLDER, '
      'or add files'
    )
  return found.keep(kept)


class Subset:
  """A random but fixed choice of at most `size` examples of a source.

  They keep their order, or with `shuffle` have a random one. Only whole examples are read: the
  class has no `crop` (data.pipeline).
  """

  def __init__(self, source, size: int, *, seed: int, shuffle: bool = False):
    chosen = [int(index) for index in np.random.default_rng(seed).permutation(len(source))[:size]]
    self._source, self._indices = source, chosen if shuffle else sorted(chosen)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int):
    return self._source[self._indices[index]]

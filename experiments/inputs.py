"""Defines the kinds of training data of a stage (`StageRecipe.data`).

Each kind returns training and held-out examples, and names the programs that make them.

The detector's clips are made by `experiments.detector_clips`. Records 2 n and 2 n + 1 of a split
are a pair from one utterance: the original, and a continuation of its prompt, both decoded by the
codec. A record holds 'waveform' (int16, as audio files), 'start' (the sample at which the prompt
ends), 'label' (stages.detector) and 'speaker'.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from audiolm_jax import storage, tokens
from audiolm_jax.data import music
from audiolm_jax.errors import UserError
from audiolm_jax.stages import detector

from . import corpora, sources, workspace
from .recipe import Recipe
from .sources import Sources

CLIP_SPLITS = ('train', 'validation', 'test')  # of the detector's clips
FULL_SCALE = 32767


@dataclasses.dataclass(frozen=True)
class Audio:
  """Waveforms of the corpus."""

  makers = ()

  def sources(self, recipe: Recipe, name: str, workdir: pathlib.Path) -> Sources:
    rate = recipe.stages[name].model.sample_rate
    return Sources(
      *(sources.corpus(recipe, split, workdir, rate) for split in ('train', 'test')), {}
    )


@dataclasses.dataclass(frozen=True)
class Melodies:
  """Pairs of recordings of one melody, rendered from tunes; they are not those of the corpus."""

  config: music.Config
  makers = ()

  def sources(self, recipe: Recipe, name: str, workdir: pathlib.Path) -> Sources:
    pairs = dataclasses.replace(recipe, corpus=corpora.Music(config=self.config))
    rate = recipe.stages[name].model.sample_rate
    return Sources(
      *(sources.corpus(pairs, split, workdir, rate) for split in ('train', 'test')), {}
    )


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Semantic and acoustic tokens of the corpus."""

  makers = ('encode',)

  def sources(self, recipe: Recipe, name: str, workdir: pathlib.Path) -> Sources:
    training, held_out = (
      workspace.token_source(workdir, split, max_bad_fraction=recipe.max_bad_tokens)
      for split in ('train', 'test')
    )
    model = recipe.stages[name].model
    sources.check_tokens(name, model, tokens.Spec.of(training.metadata))
    return Sources(training, held_out, model.spec.relevant(training.metadata['fingerprints']))


@dataclasses.dataclass(frozen=True)
class HeldOutVoices:
  """Utterances of the held-out voices through the codec, labelled by voice; half are held out."""

  makers = ()

  def sources(self, recipe: Recipe, name: str, workdir: pathlib.Path) -> Sources:
    codec = workspace.load_codec(workdir)
    sides = sources.held_out_voices(recipe, workdir)
    self._check_classes(sides, name, recipe.stages[name].model.num_classes)
    sides = [sources.reconstructions(side, workdir) for side in sides]
    return Sources(*sides, {'soundstream': codec.fingerprint})

  def _check_classes(self, sides: tuple[list[dict], list[dict]], name: str, num_classes: int):
    voices = 1 + max((int(example['label']) for side in sides for example in side), default=0)
    if voices > num_classes:
      raise UserError(
        f'the held-out split has {voices} voices, the stage {name} tells {num_classes} apart: '
        f'--set {name}.model.num_classes={voices}'
      )


@dataclasses.dataclass(frozen=True)
class SpokenNumbers:
  """Windows of counting utterances through the codec, labelled by the number in their middle."""

  makers = ()

  def sources(self, recipe: Recipe, name: str, workdir: pathlib.Path) -> Sources:
    codec, config = workspace.load_codec(workdir), recipe.stages[name].model
    length = round(config.crop_seconds * config.sample_rate)
    sides = [
      sources.labelled_windows(sources.reconstructions(side, workdir), length)
      for side in sources.counting_voices(recipe, workdir)
    ]
    return Sources(*sides, {'soundstream': codec.fingerprint})


@dataclasses.dataclass(frozen=True)
class DetectorClips:
  """Originals and continuations, of training voices and of validation voices.

  Fields:
    originals_only: whether to use originals only, with random labels: a control at chance level.
  """

  originals_only: bool = False
  makers = ('encode', 'detector_clips')

  def sources(self, recipe: Recipe, name: str, workdir: pathlib.Path) -> Sources:
    training, held_out = (
      LabelledClips(load_clips(workdir, split), random_labels=self.originals_only)
      for split in CLIP_SPLITS[:2]
    )
    return Sources(training, held_out, training.fingerprints)


def clip_folder(workdir: storage.Path) -> storage.Path:
  """Returns the folder of the detector's clips; in older workdirs, its name is `forgeries`."""
  older = workdir / 'forgeries'
  return older if older.is_dir() else workdir / 'detector_clips'


def load_clips(workdir: storage.Path, split: str):
  """Returns the records of a split of the detector's clips.

  Raises:
    UserError: naming the command that makes them, if they are missing.
  """
  folder = clip_folder(workdir).name
  return workspace.token_source(workdir, split, folder=folder, program='detector_clips')


def clip_record(wave_T: np.ndarray, start: int, label: int, speaker: int) -> dict[str, Any]:
  """Returns the record of a clip, whose prompt ends at the sample `start`."""
  samples_T = np.round(np.clip(wave_T, -1, 1) * FULL_SCALE).astype(np.int16)
  return {'waveform': samples_T, 'start': start, 'label': label, 'speaker': speaker}


def whole_clip(record: dict[str, Any]) -> np.ndarray:
  """Returns the waveform of a record, including its prompt, as float32."""
  return record['waveform'].astype(np.float32) / FULL_SCALE


class LabelledClips:
  """Clips without their prompts: float32 waveforms with labels.

  Args:
    records: records of a split.
    random_labels: whether to use originals only, and to give a random half of them the label of
      continuations.
    seed: of the random labels.
  """

  def __init__(self, records, *, random_labels: bool = False, seed: int = 0):
    self._records, self._labels = records, None
    if random_labels:
      self._labels = np.random.default_rng(seed).permutation(len(records) // 2) % 2

  @property
  def fingerprints(self) -> dict[str, str]:
    return self._records.metadata['fingerprints']

  def __len__(self) -> int:
    return len(self._records) if self._labels is None else len(self._labels)

  def __getitem__(self, index: int) -> dict[str, Any] | None:
    found = self._records[index if self._labels is None else 2 * index + detector.ORIGINAL]
    if found is None:
      return None
    label = found['label'] if self._labels is None else np.int32(self._labels[index])
    return {
      'waveform': whole_clip(found)[int(found['start']) :],
      'label': label,
      'speaker': found['speaker'],
    }


def of_stage(recipe: Recipe, name: str, workdir: pathlib.Path) -> Any:
  """Returns the sources of a stage.

  Raises:
    UserError: naming the command to run, if its inputs are missing; if no held-out example can be
      read.
  """
  found = recipe.stages[name].data.sources(recipe, name, workdir)
  sources.check_held_out(name, found.held_out)
  sources.report_skipped(workdir)
  return found

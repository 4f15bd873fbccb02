"""What stages learn from: the kinds of `StageRecipe.data`.

Each kind returns training and held-out examples, and names the programs that make them.
"""

import dataclasses
import pathlib
from typing import Any

from audiolm_jax import tokens
from audiolm_jax.data import music
from audiolm_jax.errors import UserError

from . import corpora, forgeries, sources, workspace
from .recipe import Recipe
from .sources import Sources


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
    made = tokens.Spec.of(training.metadata)
    sources.check_tokens(name, recipe.stages[name].model, made)
    return Sources(training, held_out, training.metadata['fingerprints'])


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
class Forgeries:
  """Originals and continuations, of training voices and of validation voices.

  Fields:
    originals_only: originals alone, with random labels: a control, which must be at chance.
  """

  originals_only: bool = False
  makers = ('encode', 'forge')

  def sources(self, recipe: Recipe, name: str, workdir: pathlib.Path) -> Sources:
    training, held_out = (
      forgeries.Clips(forgeries.load(workdir, split), by_lot=self.originals_only)
      for split in forgeries.SPLITS[:2]
    )
    return Sources(training, held_out, training.fingerprints)


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

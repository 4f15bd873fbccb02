"""Prompts for music from held-out clips, and audio that a workdir's models generate from them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from audiolm_jax import generation, music_generation
from audiolm_jax.chain import Models
from audiolm_jax.data import texts
from audiolm_jax.data.arrangements import ATTRIBUTES
from audiolm_jax.token_generation import Segments

from .. import sources, workspace
from ..recipe import Recipe
from .acoustic import SYSTEMS

REAL = 'real, through the codec'
TEXT, AUDIO, NONE = 'text prompt', 'audio prompt', 'unconditional'
OTHER, OTHER_AUDIO = "other clip's text", "other clip's audio"
CONTROLS = {TEXT: OTHER, AUDIO: OTHER_AUDIO}
WITHOUT_SEMANTIC = 'without semantic stage'
ACOUSTIC_ONLY = 'acoustic_only'  # the stage of that row


class Clips(NamedTuple):
  """Holds held-out clips with their texts.

  Fields:
    wave_BT: clips of one length.
    texts: first text of each clip.
    labels: by attribute, the place of each clip's value in `arrangements.ATTRIBUTES`; attributes
      that the corpus does not name are missing.
    other_B: number of another clip, for each clip.
    unseen_texts: a text of each clip in words that no training text has; [] if there are none.
  """

  wave_BT: np.ndarray
  texts: list[str]
  labels: Mapping[str, np.ndarray]
  other_B: np.ndarray
  unseen_texts: list[str] = []


class System(NamedTuple):
  """Names models and the way in which they make audio (`chain.ACOUSTIC`)."""

  label: str
  models: Models
  acoustic: str

  def options(self, recipe: Recipe) -> dict[str, Any]:
    """Returns the options of the functions that generate."""
    carry_seconds = recipe.evaluation.carry_seconds
    return dict(sampling=recipe.sampling, carry_seconds=carry_seconds, acoustic=self.acoustic)


def held_out(
  recipe: Recipe, workdir: pathlib.Path, sample_rate: int, split: str = 'test'
) -> list[dict]:
  """Returns `evaluation.num_prompts` different held-out clips, or all if there are fewer.

  They have the length of a prompt and its continuation, see `sources.prompts`.
  """
  found = sources.prompts(recipe, workdir, sample_rate, split)  # repeated if there are fewer
  return list({id(example): example for example in found}.values())


def lacking(examples: Sequence[dict]) -> str:
  """Returns the reason why these clips do not allow the suite; '' if they do."""
  if not all('texts' in example and texts.decode(example['texts']) for example in examples):
    return 'the corpus does not have a text of every clip'
  return 'there is no other clip for the control: hold out more' if len(examples) < 2 else ''


def clips_of(examples: Sequence[dict], seed: int) -> Clips:
  names = [name for name in ATTRIBUTES if all(name in example for example in examples)]
  has_unseen = all('unseen_texts' in example for example in examples)
  first = lambda entry: [texts.decode(example[entry])[0] for example in examples]
  return Clips(
    np.stack([example['waveform'] for example in examples]),
    first('texts'),
    {name: np.array([int(example[name]) for example in examples]) for name in names},
    others(len(examples), seed),
    first('unseen_texts') if has_unseen else [],
  )


def others(count: int, seed: int) -> Int[np.ndarray, 'B']:
  """Returns a random permutation of 0, ..., count - 1 that moves each number (one cycle)."""
  order_B = np.random.default_rng(seed).permutation(count)
  other_B = np.empty(count, int)
  other_B[order_B] = np.roll(order_B, 1)
  return other_B


def through_codec(examples: list[dict], workdir: pathlib.Path) -> Float[np.ndarray, 'B T']:
  return np.stack([example['waveform'] for example in sources.reconstructions(examples, workdir)])


def usable(
  recipe: Recipe, workdir: pathlib.Path, models: Models
) -> tuple[list[System], dict[str, str]]:
  """Returns the systems that prompts control, the fastest first, and reasons for the others."""
  found, left_out = [], {}
  for label, acoustic in reversed(SYSTEMS.items()):
    stage = models.soundstorm if acoustic == 'soundstorm' else models.coarse
    if stage is None:
      left_out[label] = 'its stage is not trained'
    elif not _readers(models, stage):
      left_out[label] = 'its stages have no condition'
    elif acoustic == 'soundstorm' and models.semantic.config.deduplicate:
      left_out[label] = 'it needs a semantic stage with deduplicate=False'
    else:
      found.append(System(label, models, acoustic))
  if not (workdir / ACOUSTIC_ONLY).is_dir():
    left_out[WITHOUT_SEMANTIC] = f'the stage {ACOUSTIC_ONLY} is not trained'
    return found, left_out
  alone = workspace.load_models(workdir, coarse=ACOUSTIC_ONLY, tokenizer=models.tokenizer)
  if alone.coarse.config.condition is None:
    left_out[WITHOUT_SEMANTIC] = f'the stage {ACOUSTIC_ONLY} has no condition'
  else:
    found.append(System(WITHOUT_SEMANTIC, alone, 'autoregressive'))
  return found, left_out


def _readers(models: Models, stage) -> list:
  """Returns the stages that read a condition, of the semantic one and an acoustic one."""
  reads_semantic = getattr(stage.config, 'condition_on_semantic', True)
  used = [models.semantic, stage] if reads_semantic else [stage]
  return [model for model in used if model.config.condition is not None]


def generated(
  recipe: Recipe, system: System, clips: Clips
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns clips made from texts, from audio and without, by row, and reasons for missing rows."""
  label, models, acoustic = system
  num_samples, rate = clips.wave_BT.shape[1], models.tokenizer.sample_rate
  seconds, count = num_samples / rate, len(clips.texts)
  key, options = jax.random.key(recipe.evaluation.seed), system.options(recipe)
  audio_BN = models.tokenizer.music.clips(clips.wave_BT, rate)
  condition = Segments(audio_BN[:, None])
  make = lambda **how: generation.generate_unconditional(
    models, key, count, seconds, **options, **how
  )
  made = {
    TEXT: music_generation.from_texts(models, key, clips.texts, seconds, **options).audio,
    AUDIO: make(condition=condition),
  }
  left_out = {}
  stage = models.soundstorm if acoustic == 'soundstorm' else models.coarse
  if all(model.config.condition.dropout for model in _readers(models, stage)):
    made[NONE] = make()
  else:
    left_out[f'{NONE}, {label}'] = 'a stage was trained without condition.dropout'
  waves = {f'{name}, {label}': one.wave_BT[:, :num_samples] for name, one in made.items()}
  return waves, left_out

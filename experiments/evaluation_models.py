"""Who speaks and what is said: by classifiers that were trained on the codec's audio of other
utterances or, for voices of a recipe without that stage, by d-vectors (metrics.d_vector).
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from audiolm_jax.errors import UserError, install
from audiolm_jax.metrics import d_vector, speech
from audiolm_jax.stages import classifier
from audiolm_jax.stages.base import Model, Variables

from . import workspace
from .recipe import Recipe


class Judges(NamedTuple):
  """The classifier of held-out voices, the recognizer of numbers, and the d-vectors of people.

  The first two are None where the recipe has no such stage; the last, a function of
  `d_vector.embedder`, where it has a stage speaker or the extra `judges` is not installed.
  """

  speaker: Model | None
  numbers: Model | None
  d_vector: Callable[[np.ndarray, int], np.ndarray] | None


class Voice(NamedTuple):
  """Holds what a judge hears in each whole second of a clip.

  Of d-vectors both are the same. Of the classifier, the first are what its logits are a linear
  function of; the second are its logits minus their mean, a projection that tells its voices apart
  (two of eight equally different voices have a cosine of -1/7).
  """

  features_ND: np.ndarray
  embedding_ND: np.ndarray


def load(recipe: Recipe, workdir: pathlib.Path) -> Judges:
  """Returns the judges of a workdir; ValueError naming the command that trains one that the recipe
  has.
  """
  trained = [
    None if name not in recipe.stages else workspace.load_stage(workdir, name)
    for name in ('speaker', 'numbers')
  ]
  people = 'speaker' not in recipe.stages and not d_vector.missing()
  return Judges(*trained, d_vector.embedder() if people else None)


def left_out(judged: Judges, examples: Sequence[dict], seconds: float = 1.0) -> dict[str, str]:
  """Returns what cannot be measured of these examples, by name, with the reason.

  seconds: length of the shortest part of a clip whose voice is judged.
  """
  found = {}
  if judged.speaker is None and judged.d_vector is None:
    found['voices'] = (
      f'the recipe has no stage speaker, and {", ".join(d_vector.missing())} is not installed: '
      f'{install("judges")}'
    )
  elif judged.speaker is None and seconds < 1:
    found['voices'] = f'd-vectors need a second, prompts and continuations have {seconds:g} s'
  elif judged.speaker is None and any(speaker_of(example) < 0 for example in examples):
    found['verification'] = 'the corpus does not tell who speaks'
  if judged.numbers is None:
    found['numbers'] = 'the recipe has no stage numbers'
  elif any(example.get('kind') != 'counting' for example in examples):
    found['numbers'] = 'the corpus does not say who counts'
  return found


def speaker_of(example: dict) -> int:
  """Returns the number of an example's voice; -1 where the corpus does not tell it."""
  return int(example.get('label', example.get('speaker', -1)))


def hear(judges: Judges, clip_T: np.ndarray, sample_rate: int) -> Voice:
  """Returns what the judge of voices hears in a clip: the classifier, else the d-vectors."""
  if judges.speaker is None:
    embedding_ND = judges.d_vector(clip_T, sample_rate)
    return Voice(embedding_ND, embedding_ND)
  config, variables, _ = judges.speaker
  crops_NT = _seconds(config, clip_T)
  log_probs_NC = _log_probabilities(judges.speaker, crops_NT)
  features_ND = in_buckets(_embed, config, variables, crops_NT)
  return Voice(features_ND, log_probs_NC - log_probs_NC.mean(axis=1, keepdims=True))


def voice(judges: Judges, clip_T: np.ndarray) -> int:
  """Returns the voice of a clip by the classifier: the largest mean log-probability over its
  seconds.
  """
  crops_NT = _seconds(judges.speaker.config, clip_T)
  return int(_log_probabilities(judges.speaker, crops_NT).mean(axis=0).argmax())


def numbers(judges: Judges, clip_T: np.ndarray) -> list[int]:
  """Returns the numbers heard in a clip."""
  config = judges.numbers.config
  windows_NT = speech.windows(
    clip_T, round(config.crop_seconds * config.sample_rate), round(0.05 * config.sample_rate)
  )
  return speech.decode_numbers(_log_probabilities(judges.numbers, windows_NT))


def _seconds(config: classifier.Config, clip_T: np.ndarray) -> np.ndarray:
  length = config.crop_length
  if len(clip_T) < length:
    raise UserError(
      f'a clip has {len(clip_T)} samples, the speaker classifier hears {length} at a time: too short'
    )
  return np.stack(
    [clip_T[start : start + length] for start in range(0, len(clip_T) - length + 1, length)]
  )


def _log_probabilities(model: Model, crops_NT: np.ndarray) -> np.ndarray:
  return in_buckets(_classify, model.config, model.variables, crops_NT)


def in_buckets(function, config, variables: Variables, crops_NT: np.ndarray) -> np.ndarray:
  """Returns function(config, variables, wave_BT) of all crops, a fixed number at a time."""
  bucket = 64  # windows at a time: one compilation for clips of any length
  padded_NT = np.pad(crops_NT, ((0, -len(crops_NT) % bucket), (0, 0)))
  parts = [
    function(config, variables, padded_NT[n : n + bucket]) for n in range(0, len(padded_NT), bucket)
  ]
  return np.concatenate([np.asarray(part) for part in parts])[: len(crops_NT)]


@functools.partial(jax.jit, static_argnums=0)
def _classify(config, variables, wave_BT):
  return jax.nn.log_softmax(classifier.logits(config, variables, wave_BT))


@functools.partial(jax.jit, static_argnums=0)
def _embed(config, variables, wave_BT):
  return classifier.embedding(config, variables, wave_BT)

"""Who speaks and what is said, by classifiers that were trained on the codec's audio of other
utterances.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from audiolm_jax.errors import UserError
from audiolm_jax.metrics import speech
from audiolm_jax.stages import classifier
from audiolm_jax.stages.base import Model, Variables

from . import workspace
from .recipe import Recipe


class Judges(NamedTuple):
  """The classifier of held-out voices and of the recognizer of numbers.

  None where the recipe has no such stage.
  """

  speaker: Model | None
  numbers: Model | None


def load(recipe: Recipe, workdir: pathlib.Path) -> Judges:
  """Returns the judges of a workdir; ValueError naming the command that trains one that the recipe
  has.
  """
  return Judges(
    *(
      None if name not in recipe.stages else workspace.load_stage(workdir, name)
      for name in Judges._fields
    )
  )


def left_out(judged: Judges, examples: Sequence[dict]) -> dict[str, str]:
  """Returns what cannot be measured of these examples, by name, with the reason."""
  found = {}
  if judged.speaker is None:
    found['voices'] = 'the recipe has no stage speaker'
  if judged.numbers is None:
    found['numbers'] = 'the recipe has no stage numbers'
  elif any(example.get('kind') != 'counting' for example in examples):
    found['numbers'] = 'the corpus does not say who counts'
  return found


def voices(judges: Judges, clip_T: np.ndarray) -> np.ndarray:
  """Returns the log-probabilities [N, voices] of each whole second (the classifier's crop) of a
  clip.
  """
  return _log_probabilities(judges.speaker, _seconds(judges.speaker.config, clip_T))


def features(judges: Judges, clip_T: np.ndarray) -> np.ndarray:
  """Returns what the speaker classifier's logits are a linear function of, [N, D], for each whole
  second of a clip.
  """
  return in_buckets(
    _embed, judges.speaker.config, judges.speaker.variables, _seconds(judges.speaker.config, clip_T)
  )


def voice(judges: Judges, clip_T: np.ndarray) -> int:
  """Returns the voice of a clip: the largest mean log-probability over its seconds."""
  return int(voices(judges, clip_T).mean(axis=0).argmax())


def embeddings(judges: Judges, clip_T: np.ndarray) -> np.ndarray:
  """Returns a speaker embedding [voices] of each whole second: the classifier's logits about their
  mean.

  A projection of its features that tells these voices apart; two of eight equally different voices
  have -1/7.
  """
  log_probs_NC = voices(judges, clip_T)
  return log_probs_NC - log_probs_NC.mean(axis=1, keepdims=True)


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

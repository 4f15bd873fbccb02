"""Judges voices and spoken numbers in generated audio.

The judges are classifiers, trained on the codec's audio of other utterances. For voices, d-vectors
(metrics.d_vector) replace the classifier in recipes without that stage.
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

from .. import workspace
from ..recipe import Recipe


class Judges(NamedTuple):
  """Holds the judges of a workdir.

  Fields:
    speaker: classifier of held-out voices; None if the recipe has no stage 'speaker'.
    numbers: recognizer of numbers; None if the recipe has no stage 'numbers'.
    d_vector: function of `d_vector.embedder`; None if the recipe has a stage 'speaker', or the
      extra `judges` is not installed.
  """

  speaker: Model | None
  numbers: Model | None
  d_vector: Callable[[np.ndarray, int], np.ndarray] | None


class Voice(NamedTuple):
  """Holds the features of each whole second of a clip, by a judge of voices.

  Fields:
    features_ND: d-vectors, or the classifier's last hidden layer.
    embedding_ND: d-vectors, or the classifier's logits minus their mean. The latter separate its
      voices: two of eight equally different voices have a cosine of -1/7.
  """

  features_ND: np.ndarray
  embedding_ND: np.ndarray


def load(recipe: Recipe, workdir: pathlib.Path) -> Judges:
  """Returns the judges of a workdir.

  Raises:
    UserError: naming the command that trains a judge, if the recipe has it and the workdir not.
  """
  trained = [
    None if name not in recipe.stages else workspace.load_stage(workdir, name)
    for name in ('speaker', 'numbers')
  ]
  people = 'speaker' not in recipe.stages and not d_vector.missing()
  return Judges(*trained, d_vector.embedder() if people else None)


def left_out(judged: Judges, examples: Sequence[dict], seconds: float = 1.0) -> dict[str, str]:
  """Returns the reasons for measures that these examples do not allow, by name.

  Args:
    judged: the judges.
    examples: examples of a corpus.
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
  """Returns the number of an example's voice; -1 if unknown."""
  return int(example.get('label', example.get('speaker', -1)))


def hear(judges: Judges, clip_T: np.ndarray, sample_rate: int) -> Voice:
  """Returns features of the voice in a clip, by the classifier or else as d-vectors."""
  if judges.speaker is None:
    embedding_ND = judges.d_vector(clip_T, sample_rate)
    return Voice(embedding_ND, embedding_ND)
  config, variables, _ = judges.speaker
  crops_NT = _seconds(config, clip_T)
  log_probs_NC = _log_probabilities(judges.speaker, crops_NT)
  features_ND = in_buckets(_embed, config, variables, crops_NT)
  return Voice(features_ND, log_probs_NC - log_probs_NC.mean(axis=1, keepdims=True))


def voice(judges: Judges, clip_T: np.ndarray) -> int:
  """Returns the class with the largest log-probability, averaged over the seconds of a clip."""
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
      f'a clip has {len(clip_T)} samples, which is too short: the speaker classifier needs {length}'
    )
  return np.stack(
    [clip_T[start : start + length] for start in range(0, len(clip_T) - length + 1, length)]
  )


def _log_probabilities(model: Model, crops_NT: np.ndarray) -> np.ndarray:
  return in_buckets(_classify, model.config, model.variables, crops_NT)


def in_buckets(function, config, variables: Variables, crops_NT: np.ndarray) -> np.ndarray:
  """Applies function(config, variables, wave_BT) to all crops, a fixed number at a time."""
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

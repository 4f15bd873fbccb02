"""Continuations: whose voice they are in, and whether they count on."""

import functools
import pathlib

import jax
import numpy as np

from audiolm_jax import generation
from audiolm_jax.metrics import speech
from audiolm_jax.stages import classifier
from audiolm_jax.stages.base import Variables
from experiments import sources, workspace
from experiments.recipe import Recipe


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns who speaks in continuations of held-out voices, and whether what they say obeys the number grammar."""
  settings = recipe.evaluation
  _, judged = sources.held_out_voices(recipe, workdir)
  counting = [example for example in judged if example['kind'] == 'counting']
  prompts = [counting[index % len(counting)] for index in range(settings.num_prompts)]
  rate = workspace.load_stage(workdir, 'soundstream')[0].sample_rate
  start, end = (round(seconds * rate) for seconds in (settings.prompt_seconds, settings.prompt_seconds + settings.seconds))
  prompt_BT, num_samples_B = workspace.stacked([example['waveform'][:start] for example in prompts])
  waves = {'original, through the codec': [e['waveform'][:end] for e in sources.reconstructions(prompts, workdir)]}
  for label, coarse in (('continuation', 'coarse'), ('acoustic-only continuation', 'acoustic_only')):
    if not (workdir / coarse).is_dir():
      continue
    models = workspace.load_models(workdir, coarse=coarse)
    result = generation.continue_audio(
        models, jax.random.key(settings.seed), prompt_BT, num_samples_B, seconds=settings.seconds,
        sampling=recipe.sampling, carry_seconds=settings.carry_seconds,
    )
    waves[label] = list(np.asarray(result.wave_BT)[:, :end])
  speakers, numbers = (workspace.load_stage(workdir, name)[:2] for name in ('speaker', 'numbers'))
  labels = np.array([int(example['label']) for example in prompts])
  steps = [speech.counting_step(example['text'].split()) for example in prompts]
  rows = {}
  for label, clips in waves.items():
    new = [clip[start:] for clip in clips]
    rows[label] = {
        'speaker_accuracy': float(np.mean([_speaker(*speakers, clip) for clip in new] == labels)),
        **speech.grammar_scores([_numbers(*numbers, clip) for clip in new], steps),
    }
  whole = sources.reconstructions(counting, workdir)
  said = [[speech.NUMBERS.index(word) for word in example['text'].split()] for example in whole]
  error_rate = speech.word_error_rate([_numbers(*numbers, example['waveform']) for example in whole], said)
  return {
      'rows': rows,
      'chance_speaker': 1 / speakers[0].num_classes,
      'chance_step': 1 / len(speech.NUMBERS),
      'recognizer_word_error_rate': error_rate,
      'prompts': len(prompts),
      'seconds': settings.seconds,
  }


def _speaker(config: classifier.Config, variables: Variables, clip_T: np.ndarray) -> int:
  """Returns the voice of a clip: the largest mean log-probability over its crops."""
  length = round(config.crop_seconds * config.sample_rate)
  crops = np.stack([clip_T[start : start + length] for start in range(0, len(clip_T) - length + 1, length)])
  return int(_log_probabilities(config, variables, crops).mean(axis=0).argmax())


def _numbers(config: classifier.Config, variables: Variables, clip_T: np.ndarray) -> list[int]:
  """Returns the numbers heard in a clip."""
  windows = speech.windows(clip_T, round(config.crop_seconds * config.sample_rate), round(0.05 * config.sample_rate))
  return speech.decode_numbers(_log_probabilities(config, variables, windows))


def _log_probabilities(config: classifier.Config, variables: Variables, crops_NT: np.ndarray) -> np.ndarray:
  bucket = 64  # windows at a time: one compilation for clips of any length
  padded_NT = np.pad(crops_NT, ((0, -len(crops_NT) % bucket), (0, 0)))
  parts = [_classify(config, variables, padded_NT[n : n + bucket]) for n in range(0, len(padded_NT), bucket)]
  return np.concatenate([np.asarray(part) for part in parts])[: len(crops_NT)]


@functools.partial(jax.jit, static_argnums=0)
def _classify(config, variables, wave_BT):
  return jax.nn.log_softmax(classifier.logits(config, variables, wave_BT))

"""Music with a melody: whether the melody that was asked for is heard, by SwiftF0."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from audiolm_jax import audio, music_generation
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import music as music_metrics
from audiolm_jax.pretrained import swift_f0

from .. import corpora
from ..recipe import Recipe
from .music_judges import share
from .music_prompts import TEXT, Clips, System, others

COVER = 'the same tune by another instrument'
WITH_MELODY = 'text and melody'

Listen = Callable[[np.ndarray, int], np.ndarray]


def measure(
  recipe: Recipe, workdir: pathlib.Path, system: System, clips: Clips
) -> tuple[dict[str, Any], dict[str, str]]:
  """Returns the part `melody`, or the reason why there is none.

  Held-out recordings of tunes are asked for with the texts of held-out clips, one by one. The real
  cover of a recording, by another instrument, in another key and tempo, is the ceiling; the same
  texts without a melody are the floor.

  distance, distance_other: mean `metrics.music.melody_distance` to the melody that was asked for,
    and to another one, in semitones.
  nearer: share of clips that are nearer to the asked one; chance is 1/2.
  clips: number of clips in which a pitch is heard.
  """
  if system.models.tokenizer.music.melody is None:
    return {}, {'melody': 'the models read no melodies'}
  try:
    listen = swift_f0.listener()
  except UserError as error:
    return {}, {'melody': str(error)}
  settings = recipe.evaluation
  held_out = recipe.stages['melody'].data.sources(recipe, 'melody', workdir).held_out
  count = min(settings.num_long_clips, len(held_out), len(clips.texts))
  if count < 2:
    return {}, {'melody': 'there is no other melody for the control: hold out more'}
  pairs = list(corpora.Subset(held_out, count, seed=settings.seed))
  rate = system.models.tokenizer.sample_rate
  seconds = clips.wave_BT.shape[1] / rate

  def made(text, melody_T):
    found = music_generation.from_texts(
      system.models,
      jax.random.key(settings.seed),
      [text],
      seconds,
      melody_T=melody_T,
      **system.options(recipe),
    )
    return found.audio.wave_BT[0]

  own_rate = recipe.stages['melody'].model.sample_rate
  melodies = [audio.resample(pair['waveform'][None], own_rate, rate)[0] for pair in pairs]
  waves = {
    COVER: [audio.resample(pair['cover'][None], own_rate, rate)[0] for pair in pairs],
    f'{WITH_MELODY}, {system.label}': list(map(made, clips.texts, melodies)),
    f'{TEXT}, {system.label}': [made(text, None) for text in clips.texts[:count]],
  }
  other_B = others(count, settings.seed)
  return {'melody': {'rows': tables(waves, melodies, other_B, listen, rate)}}, {}


def tables(
  waves: Mapping[str, Sequence[np.ndarray]],
  melodies: Sequence[np.ndarray],
  other_B: Int[np.ndarray, 'B'],
  listen: Listen,
  sample_rate: int,
) -> dict[str, dict[str, float | int | None]]:
  """Returns a row of the distances to the asked and to the other melody, for each set of clips.

  Args:
    waves: clips by row, in the order of the melodies.
    melodies: recordings.
    other_B: number of another melody, for each.
    listen: function of `swift_f0.listener`.
    sample_rate: of clips and recordings, in Hz.
  """
  asked = [listen(wave_T, sample_rate) for wave_T in melodies]
  rows = {}
  for name, clips in waves.items():
    heard = [listen(np.asarray(wave_T), sample_rate) for wave_T in clips]
    own, other = (
      [music_metrics.melody_distance(heard[b], asked[n]) for b, n in enumerate(numbers)]
      for numbers in (range(len(asked)), other_B)
    )
    known = np.array(
      [pair for pair in zip(own, other, strict=True) if None not in pair], np.float64
    ).reshape(-1, 2)
    mean_2 = known.mean(axis=0).tolist() if len(known) else (None, None)
    rows[name] = {
      'distance': mean_2[0],
      'distance_other': mean_2[1],
      **share('nearer', known[:, 0] < known[:, 1]),
      'clips': len(known),
    }
  return rows

"""Evaluates long music: stories whose instrument changes, and drift of clips of minutes."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from audiolm_jax import music_generation
from audiolm_jax.data import arrangements, descriptions
from audiolm_jax.metrics import music as music_metrics

from ..recipe import Recipe
from . import music_judges
from .music_judges import Judges, share
from .music_prompts import Clips, System

TWO_TEXTS, SAME_TEXT = 'two texts', 'the same text twice'
_PARTS = 8  # rows of the part `drift`


def measure(
  recipe: Recipe, system: System, clips: Clips, judges: Judges
) -> tuple[dict[str, Any], dict[str, str]]:
  """Returns the parts `stories` and `drift`, and reasons for missing ones."""
  parts, left_out = {}, {}
  rate = system.models.tokenizer.sample_rate
  seconds = clips.wave_BT.shape[1] / rate
  if judges.attributes:
    parts['stories'] = {'rows': story_rows(recipe, system, judges, len(clips.texts), seconds)}
  else:
    left_out['stories'] = 'it needs judges of attributes'
  if recipe.evaluation.long_seconds < _PARTS * seconds:
    left_out['drift'] = f'evaluation.long_seconds must be at least {_PARTS * seconds:g}'
  else:
    parts['drift'] = {'rows': drift_rows(recipe, system, clips, judges)}
  return parts, left_out


def story_rows(
  recipe: Recipe, system: System, judges: Judges, count: int, seconds: float
) -> dict[str, dict]:
  """Returns whether the second text of a story is heard, and the rhythm kept.

  The texts of a story differ in the instrument only. In the control, both segments have the first
  text; it is judged as if the second had been asked for.

  first, second: share of segments with the asked instrument; switch: share of stories with both.
  onset_change: mean difference of the onsets per second of both segments; onset_change_other: the
    same for segments of different stories, the level of unrelated music.
  """
  random = np.random.default_rng(recipe.evaluation.seed)
  drawn = [story(random) for _ in range(count)]
  asked_B2 = np.array([instruments for _, instruments in drawn])
  stories = {
    TWO_TEXTS: [captions for captions, _ in drawn],
    SAME_TEXT: [captions[:1] * 2 for captions, _ in drawn],
  }
  rate, rows = system.models.tokenizer.sample_rate, {}
  length = round(seconds * rate)
  for name, captions in stories.items():
    made = music_generation.from_texts(
      system.models,
      jax.random.key(recipe.evaluation.seed),
      captions,
      2 * seconds,
      story_seconds=seconds,
      **system.options(recipe),
    )
    halves = (made.audio.wave_BT[:, :length], made.audio.wave_BT[:, length : 2 * length])
    heard = [music_judges.hear(judges, wave_BT, rate) for wave_BT in halves]
    right_2B = np.stack([one.labels['instrument'] for one in heard]) == asked_B2.T
    first_B, second_B = (one.onset_B for one in heard)
    rows[name] = {
      **share('first', right_2B[0]),
      **share('second', right_2B[1]),
      **share('switch', right_2B.all(axis=0)),
      'onset_change': float(np.abs(second_B - first_B).mean()),
      'onset_change_other': float(np.abs(np.roll(second_B, 1) - first_B).mean()),
    }
  return rows


def story(random: np.random.Generator) -> tuple[list[str], list[int]]:
  """Returns two texts that differ in the instrument, and the numbers of both instruments."""
  drawn = arrangements.random_attributes(random)
  names = arrangements.ATTRIBUTES['instrument']
  both = random.permutation(len(names))[:2].tolist()
  captions = []
  for number in both:
    described = drawn | {'instrument': names[number]}
    captions += descriptions.describe(described, 1, random)
  return captions, both


def drift_rows(recipe: Recipe, system: System, clips: Clips, judges: Judges) -> dict[str, dict]:
  """Returns how well long clips of one text keep to it and to their key, by time.

  similarity, similarity_other: cosine of the clips' windows and their text, and another clip's.
  instrument: share of windows with the asked instrument, by a judge of another sound font.
  pitch_distance: total variation of the pitch classes of a clip's windows and of its first ones,
    pitch_distance_other: and of the first ones of another clip.
  """
  settings, rate = recipe.evaluation, system.models.tokenizer.sample_rate
  count = min(settings.num_long_clips, len(clips.texts))
  captions = clips.texts[:count]
  made = music_generation.from_texts(
    system.models,
    jax.random.key(settings.seed),
    captions,
    settings.long_seconds,
    **system.options(recipe),
  )
  length = clips.wave_BT.shape[1]
  windows_BWT = cut(made.audio.wave_BT, length)
  number_of_windows = windows_BWT.shape[1]
  heard = music_judges.hear(judges, windows_BWT.reshape(-1, length), rate)
  text_BD = judges.embedding.texts(captions)
  vector_BWD = heard.vector_BD.reshape(count, number_of_windows, -1)
  pitch_BWK = np.stack(
    [music_metrics.heard_pitch_classes(wave_T, rate) for wave_T in windows_BWT.reshape(-1, length)]
  ).reshape(count, number_of_windows, -1)
  rows, first_BK = {}, None
  for inside in np.array_split(np.arange(number_of_windows), _PARTS):
    here_BD, here_BK = vector_BWD[:, inside].mean(axis=1), pitch_BWK[:, inside].mean(axis=1)
    first_BK = here_BK if first_BK is None else first_BK
    row = {
      'similarity': float((here_BD * text_BD).sum(axis=1).mean()),
      'similarity_other': float((here_BD * np.roll(text_BD, 1, axis=0)).sum(axis=1).mean()),
      'pitch_distance': _distance(here_BK, first_BK),
      'pitch_distance_other': _distance(here_BK, np.roll(first_BK, 1, axis=0)),
    }
    if judges.attributes and 'instrument' in clips.labels:
      heard_BW = heard.labels['instrument'].reshape(count, number_of_windows)
      right_BW = heard_BW[:, inside] == clips.labels['instrument'][:count, None]
      row |= share('instrument', right_BW.ravel())
    start, end = (second * length / rate for second in (inside[0], inside[-1] + 1))
    rows[f'{start:g} to {end:g} s'] = row
  return rows


def cut(wave_BT: Float[np.ndarray, 'B T'], length: int) -> Float[np.ndarray, 'B W L']:
  """Returns the whole windows of a length, one after another."""
  count = wave_BT.shape[1] // length
  return np.asarray(wave_BT)[:, : count * length].reshape(len(wave_BT), count, length)


def _distance(one_BK: Float[np.ndarray, 'B K'], other_BK: Float[np.ndarray, 'B K']) -> float:
  pairs = zip(one_BK, other_BK, strict=True)
  return float(np.mean([music_metrics.histogram_distance(*pair) for pair in pairs]))

"""Judges of music: attributes by another sound font, tags by musicnn, and the joint embedding.

The judges of attributes learn from clips of the recipe's corpus with other draws, rendered with a
font that the models never heard (`evaluation.judge_font`), through the codec. The clips have all
pairs of attributes, also those that the models never heard together. The row of real clips has the
judges' accuracy on the corpus's own font, which is the ceiling.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from audiolm_jax import audio, files
from audiolm_jax.data import rendering
from audiolm_jax.data.arrangements import ATTRIBUTES
from audiolm_jax.errors import UserError
from audiolm_jax.joint_embedding import JointEmbedding
from audiolm_jax.metrics import attributes, detection
from audiolm_jax.metrics import music as music_metrics
from audiolm_jax.pretrained import musicnn

from .. import corpora, sources
from ..recipe import Recipe

MUSICNN_SECONDS = 3.0  # of a window of musicnn, which reads whole ones only
_PAIRS = 6  # one clip of so many has a pair of attributes that the models never heard together


class Judges(NamedTuple):
  """Holds the judges.

  Fields:
    embedding: joint embedding of audio and texts.
    attributes: classifiers by attribute; {} if there is no second font.
    listen: function of `musicnn.listener`; None without musicnn.
  """

  embedding: JointEmbedding
  attributes: attributes.Judges
  listen: Callable[[np.ndarray, int], musicnn.Heard] | None


class Heard(NamedTuple):
  """Holds the judgements of the clips of a row.

  Fields:
    vector_BD: unit vectors of the joint embedding.
    level_B: root mean square.
    onset_B: onsets per second.
    labels: by attribute, the value that is heard; {} without judges of attributes.
    tag_BV: probability of each of `musicnn.TAGS`; None without musicnn.
    feature_BD: features of musicnn; None without musicnn.
  """

  vector_BD: np.ndarray
  level_B: np.ndarray
  onset_B: np.ndarray
  labels: Mapping[str, np.ndarray]
  tag_BV: np.ndarray | None
  feature_BD: np.ndarray | None


def load(
  recipe: Recipe, workdir: pathlib.Path, embedding: JointEmbedding, sample_rate: int, seconds: float
) -> tuple[Judges, dict[str, str]]:
  """Returns the judges, and the reasons for missing ones, by name.

  Args:
    recipe: recipe of the models that are judged.
    workdir: has their codec.
    embedding: joint embedding of audio and texts.
    sample_rate: of the clips to judge, in Hz.
    seconds: length of the clips to judge.

  Raises:
    UserError: if the second font is no font, or the corpus's own.
  """
  left_out, listen = {}, None
  if seconds < MUSICNN_SECONDS:
    left_out['musicnn'] = f'musicnn needs {MUSICNN_SECONDS:g} s, the clips have {seconds:g} s'
  else:
    try:
      listen = musicnn.listener()
    except UserError as error:
      left_out['musicnn'] = str(error)
  if reason := lacking(recipe):
    return Judges(embedding, {}, listen), left_out | {'attributes': reason}
  return Judges(embedding, fitted(recipe, workdir, sample_rate), listen), left_out


def lacking(recipe: Recipe) -> str:
  """Returns why the recipe has no judges of attributes; '' if it has.

  Raises:
    UserError: if the second font is no font, or the corpus's own.
  """
  if not is_captioned(recipe):
    return 'the corpus is no rendered music with attributes'
  own, font = recipe.corpus.config.font, recipe.evaluation.judge_font
  if not font:
    return (
      'no second sound font is named: --set evaluation.judge_font=FILE, such as that of the Debian '
      'package fluid-soundfont-gm'
    )
  if files.sha256(rendering.font_path(font)) == files.sha256(rendering.font_path(own)):
    raise UserError(
      f'evaluation.judge_font={font} is the font of the corpus, whose judges would know its '
      'sounds: name another one'
    )
  return ''


def is_captioned(recipe: Recipe) -> bool:
  """Returns whether the corpus is rendered music whose attributes are known."""
  corpus = recipe.corpus
  return isinstance(corpus, corpora.Music) and corpus.config.setting == 'captioned'


def fitted(recipe: Recipe, workdir: pathlib.Path, sample_rate: int) -> attributes.Judges:
  """Returns classifiers of attributes, fitted to clips with the second font through the codec."""
  own, count = recipe.corpus.config, recipe.evaluation.num_judge_clips
  config = dataclasses.replace(
    own,
    font=recipe.evaluation.judge_font,
    seed=own.seed + 1,
    train_clips=max(1, count - count // _PAIRS),
    pairs_clips=max(1, count // _PAIRS),
  )
  theirs = recipe.derived(corpus=corpora.Music(config=config))
  examples = [
    example
    for split in ('train', 'pairs')
    for example in sources.corpus(theirs, split, workdir, sample_rate)
  ]
  features_ND = np.stack(
    [
      attributes.features(example['waveform'], sample_rate)
      for example in sources.reconstructions(examples, workdir)
    ]
  )
  labels = {name: np.array([int(example[name]) for example in examples]) for name in ATTRIBUTES}
  return attributes.fit(features_ND, labels)


def hear(judges: Judges, wave_BT: Float[np.ndarray, 'B T'], sample_rate: int) -> Heard:
  """Returns the judgements of clips."""
  wave_BT = np.asarray(wave_BT, np.float32)
  at_rate_BT = audio.resample(wave_BT, sample_rate, judges.embedding.sample_rate)
  labels, by_musicnn = {}, None
  if judges.attributes:
    features_BD = np.stack([attributes.features(wave_T, sample_rate) for wave_T in wave_BT])
    labels = attributes.judge(judges.attributes, features_BD)
  if judges.listen is not None:
    by_musicnn = [judges.listen(wave_T, sample_rate) for wave_T in wave_BT]
  return Heard(
    vector_BD=judges.embedding.audio(at_rate_BT),
    level_B=np.sqrt((wave_BT.astype(np.float64) ** 2).mean(axis=1)),
    onset_B=np.array([music_metrics.heard_onset_rate(wave_T, sample_rate) for wave_T in wave_BT]),
    labels=labels,
    tag_BV=by_musicnn and np.stack([one.tag_V for one in by_musicnn]),
    feature_BD=by_musicnn and np.stack([one.feature_D for one in by_musicnn]),
  )


def share(name: str, is_right_B: Bool[np.ndarray, 'B']) -> dict[str, float | None]:
  """Returns the share of right clips, with Wilson's 95 % interval; None without clips."""
  return share_of(name, int(np.sum(is_right_B)), len(is_right_B))


def share_of(name: str, right: int, count: int) -> dict[str, float | None]:
  """Returns right / count with Wilson's 95 % interval, as `share`."""
  if not count:
    return {name: None, f'{name}_low': None, f'{name}_high': None}
  interval = detection.proportion_interval(right, count)
  return {name: right / count, f'{name}_low': interval.low, f'{name}_high': interval.high}

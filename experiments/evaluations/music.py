"""Evaluates how well music from texts follows its prompt; the control is another clip's prompt."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from audiolm_jax import music_generation
from audiolm_jax.data.arrangements import ATTRIBUTES, HELD_OUT_PAIRS
from audiolm_jax.joint_embedding import JointEmbedding
from audiolm_jax.metrics import detection, frechet
from audiolm_jax.pretrained import musicnn

from .. import workspace
from ..recipe import Recipe
from . import music_judges, music_long, music_melody, music_probes
from .music_judges import Heard, Judges, share
from .music_prompts import (
  CONTROLS,
  OTHER,
  REAL,
  TEXT,
  Clips,
  System,
  clips_of,
  generated,
  held_out,
  lacking,
  through_codec,
  usable,
)

# Attributes whose labels columns and parts need.
COLUMNS = {'dynamics': 'dynamics', 'tempi': 'tempo', 'musicnn_auc': 'instrument'}


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns how well clips generated from the prompts of held-out clips agree with these prompts.

  The rows "other clip's ..." compare the same clips with the text and the attributes of another
  clip, the unconditional rows compare clips made without a prompt: both are chance.

  similarity, similarity_other: mean cosine of a clip and its text, and of a clip and another's, by
    the joint embedding. It conditions the models, so that these columns favour them.
  nearer: share of clips that are more similar to their text than to the other; chance is 1/2.
  recall_1, recall_10: share of texts whose own clip is the most similar one of the row, or among
    ten. Chance is 1 or 10 clips of all; recall_10 needs more than ten.
  dynamics: share of clips on the right side, soft or loud, of the real ones' median level.
  musicnn_auc: mean over instruments of the part `instruments`: the area under the ROC of musicnn's
    tag, clips that ask for the instrument against the others; chance is 1/2.
  frechet_mulan, frechet_musicnn: Frechet distance to the held-out clips before the codec, of the
    embeddings of either model. It is biased upwards by few clips; rows have equally many.
  low, high: Wilson's 95 % interval, in which a clip is one trial.

  Part `accuracy`: share of clips whose attribute is the one asked for, by judges of another sound
  font (music_judges.py). Part `tempi`: mean number of onsets per second by the tempo asked for;
  librosa follows the notes of piano, harp, cello and sitar, but not those of flute and choir, so
  that the row of real clips is the ceiling. Parts `embedding`, `semantic`, `pairs` and
  `memorization` are of music_probes.py, `stories` and `drift` of music_long.py, `melody` of
  music_melody.py.

  Measures that the corpus or the recipe does not allow are omitted, and named in 'left_out' with
  the reason.
  """
  if not recipe.condition_windows:
    reason = 'no stage of the recipe has a condition, so that texts control nothing'
    return {'rows': {}, 'left_out': {'music from texts': reason}}
  models = workspace.load_models(workdir)
  rate = models.tokenizer.sample_rate
  examples = held_out(recipe, workdir, rate)
  if reason := lacking(examples):
    return {'rows': {}, 'left_out': {'music from texts': reason}}
  if models.tokenizer.music is None:
    reason = 'the workdir has no music tokens, which the program encode makes'
    return {'rows': {}, 'left_out': {'music from texts': reason}}
  clips = clips_of(examples, recipe.evaluation.seed)
  seconds = clips.wave_BT.shape[1] / rate
  embedding = models.tokenizer.music.embedding
  judges, left_out = music_judges.load(recipe, workdir, embedding, rate, seconds)
  left_out |= unmeasured(clips.labels)
  systems, reasons = usable(recipe, workdir, models)
  left_out |= reasons
  waves = {REAL: through_codec(examples, workdir)}
  for system in systems:
    made, reasons = generated(recipe, system, clips)
    waves, left_out = waves | made, left_out | reasons
  hear = lambda wave_BT: music_judges.hear(judges, wave_BT, rate)
  heard = {title: hear(wave_BT) for title, wave_BT in waves.items()}
  parts = tables(heard, hear(clips.wave_BT), clips, embedding)
  probes, reasons = music_probes.measure(recipe, workdir, models, clips)
  parts, left_out = parts | probes, left_out | reasons
  if systems:
    found, reasons = pairs(recipe, workdir, systems[0], judges)
    parts, left_out = parts | found, left_out | reasons
    found, reasons = music_long.measure(recipe, systems[0], clips, judges)
    parts, left_out = parts | found, left_out | reasons
    found, reasons = music_melody.measure(recipe, workdir, systems[0], clips)
    parts, left_out = parts | found, left_out | reasons
  return {
    **parts,
    'clips': len(examples),
    'seconds': seconds,
    'similarity_by': 'mulan, which conditions the models and so favours them',
    'left_out': left_out,
  }


def unmeasured(labels: Mapping[str, np.ndarray]) -> dict[str, str]:
  """Returns the reasons for columns whose labels are missing, by name."""
  return {
    column: f'the corpus does not name the {attribute} of every clip'
    for column, attribute in COLUMNS.items()
    if attribute not in labels
  }


def tables(
  heard_by_row: Mapping[str, Heard], originals: Heard, clips: Clips, embedding: JointEmbedding
) -> dict[str, Any]:
  """Returns the rows, and the parts `accuracy`, `instruments` and `tempi` as far as they are known.

  Clips made from prompts have two rows: compared with their own texts, and with those of others.

  Args:
    heard_by_row: judgements of the clips of each row; needs REAL.
    originals: judgements of the held-out clips before the codec.
    clips: the held-out clips.
    embedding: joint embedding of audio and texts.
  """
  text_BD = embedding.texts(clips.texts)
  own_B = np.arange(len(clips.texts))
  median = float(np.median(heard_by_row[REAL].level_B))
  rows, accuracy, instruments, tempi = {}, {}, {}, {}
  for title, one in heard_by_row.items():
    asked = {title: (own_B, clips.other_B)}
    prompt = title.split(',')[0]
    if prompt in CONTROLS:
      asked[title.replace(prompt, CONTROLS[prompt], 1)] = (clips.other_B, own_B)
    for name, (asked_B, other_B) in asked.items():
      row = similarity(one.vector_BD, text_BD[asked_B], text_BD[other_B])
      row |= music_probes.recalls(one.vector_BD, text_BD, asked_B)
      labels = {attribute: label_B[asked_B] for attribute, label_B in clips.labels.items()}
      if 'dynamics' in labels:
        row |= dynamics(one.level_B, labels['dynamics'], median)
      if columns := accuracies(one.labels, labels):
        accuracy[name] = columns
      if one.tag_BV is not None and 'instrument' in labels:
        instruments[name] = areas(one.tag_BV, labels['instrument'])
        known = [area for area in instruments[name].values() if area is not None]
        row['musicnn_auc'] = float(np.mean(known)) if known else None
      if 'tempo' in labels:
        tempi[name] = onsets(one.onset_B, labels['tempo'])
      rows[name] = row
    rows[title] |= distances(one, originals)
  parts = {'accuracy': accuracy, 'instruments': instruments, 'tempi': tempi}
  return {'rows': rows, **{name: {'rows': part} for name, part in parts.items() if part}}


def similarity(
  audio_BD: Float[np.ndarray, 'B D'],
  asked_BD: Float[np.ndarray, 'B D'],
  other_BD: Float[np.ndarray, 'B D'],
) -> dict[str, float]:
  """Returns the mean cosines of unit vectors of clips and two texts each, and which is nearer."""
  asked_B, other_B = ((audio_BD * text_BD).sum(axis=1) for text_BD in (asked_BD, other_BD))
  return {
    'similarity': float(asked_B.mean()),
    'similarity_other': float(other_B.mean()),
    **share('nearer', asked_B > other_B),
  }


def distances(one: Heard, originals: Heard) -> dict[str, float]:
  """Returns the Frechet distances to the originals, by each model that embeds clips."""
  pairs = {
    'frechet_mulan': (one.vector_BD, originals.vector_BD),
    'frechet_musicnn': (one.feature_BD, originals.feature_BD),
  }
  return {
    name: frechet.distance(frechet.fit(made_BD), frechet.fit(true_BD))
    for name, (made_BD, true_BD) in pairs.items()
    if made_BD is not None
  }


def accuracies(
  heard: Mapping[str, np.ndarray], asked: Mapping[str, np.ndarray]
) -> dict[str, float | None]:
  """Returns for each attribute the share of clips in which the requested value is heard."""
  columns = {}
  for name in asked:
    if name in heard:
      columns |= share(name, heard[name] == asked[name])
  return columns


def dynamics(
  level_B: Float[np.ndarray, 'B'], label_B: Int[np.ndarray, 'B'], median: float
) -> dict[str, float]:
  """Returns the share of clips that are above a level if 'loud' is asked for, else at or below."""
  is_loud_B = label_B == ATTRIBUTES['dynamics'].index('loud')
  return share('dynamics', (level_B > median) == is_loud_B)


def areas(
  tag_BV: Float[np.ndarray, 'B V'], label_B: Int[np.ndarray, 'B']
) -> dict[str, float | None]:
  """Returns the area under the ROC of each instrument's tag; None if all or no clips request it."""
  found = {}
  for number, name in enumerate(ATTRIBUTES['instrument']):
    asked_B = (label_B == number).astype(int)
    both = 0 < asked_B.sum() < len(asked_B)
    score_B = tag_BV[:, musicnn.TAGS.index(name)]
    found[name] = detection.area_under_curve(score_B, asked_B) if both else None
  return found


def onsets(
  onset_B: Float[np.ndarray, 'B'], label_B: Int[np.ndarray, 'B']
) -> dict[str, float | int | None]:
  """Returns the mean onsets per second and the number of clips of each tempo asked for.

  fast_above_slow: share of pairs in which the clip that asks for 'fast' has more onsets than that
    which asks for 'slow', ties half; None without pairs.
  """
  parts = {name: onset_B[label_B == number] for number, name in enumerate(ATTRIBUTES['tempo'])}
  columns = {}
  for name, part_N in parts.items():
    columns[name] = float(part_N.mean()) if len(part_N) else None
    columns[f'clips_{name}'] = len(part_N)
  slow_N, fast_N = parts['slow'], parts['fast']
  pairs = np.concatenate([slow_N, fast_N]), np.repeat([0, 1], [len(slow_N), len(fast_N)])
  has_both = len(slow_N) and len(fast_N)
  columns['fast_above_slow'] = detection.area_under_curve(*pairs) if has_both else None
  return columns


def pairs(
  recipe: Recipe, workdir: pathlib.Path, system: System, judges: Judges
) -> tuple[dict[str, Any], dict[str, str]]:
  """Returns the part `pairs`: clips from texts with pairs of attributes that no training clip has.

  The control holds clips to the pair of another clip, as far as it is another pair.
  """
  if not judges.attributes:
    return {}, {'pairs': 'it needs judges of attributes'}
  rate = system.models.tokenizer.sample_rate
  examples = held_out(recipe, workdir, rate, 'pairs')
  clips = clips_of(examples, recipe.evaluation.seed)
  num_samples = clips.wave_BT.shape[1]
  made = music_generation.from_texts(
    system.models,
    jax.random.key(recipe.evaluation.seed),
    clips.texts,
    num_samples / rate,
    **system.options(recipe),
  )
  title = f'{TEXT}, {system.label}'
  waves = {REAL: through_codec(examples, workdir), title: made.audio.wave_BT[:, :num_samples]}
  own_B, rows = np.arange(len(examples)), {}
  for name, wave_BT in waves.items():
    heard = music_judges.hear(judges, wave_BT, rate).labels
    rows[name] = pair_shares(heard, clips.labels, own_B)
    if name == title:
      rows[title.replace(TEXT, OTHER, 1)] = pair_shares(heard, clips.labels, clips.other_B)
  return {'pairs': {'rows': rows, 'clips': len(examples)}}, {}


def pair_shares(
  heard: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], asked_B: Int[np.ndarray, 'B']
) -> dict[str, float | int | None]:
  """Returns how often a held-out pair's attributes are heard, each and both in one clip.

  Args:
    heard: by attribute, the value heard in each clip.
    labels: by attribute, the value of each clip; all clips have a held-out pair.
    asked_B: the clip whose pair is asked for; a clip is left out if it is another clip with the
      same pair.
  """
  pair_B = np.full(len(asked_B), -1)
  right = np.zeros((len(HELD_OUT_PAIRS), 2, len(asked_B)), bool)
  for number, pair in enumerate(HELD_OUT_PAIRS):
    values = [(name, ATTRIBUTES[name].index(value)) for name, value in pair]
    pair_B[np.all([labels[name] == value for name, value in values], axis=0)] = number
    right[number] = [heard[name] == value for name, value in values]
  clip_B = np.arange(len(asked_B))
  counts_B = (asked_B == clip_B) | (pair_B[asked_B] != pair_B)
  right_2N = right[pair_B[asked_B], :, clip_B][counts_B].T
  return {
    'clips': int(counts_B.sum()),
    **share('first', right_2N[0]),
    **share('second', right_2N[1]),
    **share('both', right_2N.all(axis=0)),
  }

"""Music from texts: whether what is heard was asked for. Another clip's text is the control."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from audiolm_jax import audio, generation, music_generation
from audiolm_jax.data import texts
from audiolm_jax.data.arrangements import ATTRIBUTES
from audiolm_jax.errors import UserError
from audiolm_jax.generation import Models
from audiolm_jax.joint_embedding import JointEmbedding
from audiolm_jax.metrics import detection
from audiolm_jax.metrics import music as music_metrics
from audiolm_jax.nn import language_model
from audiolm_jax.pretrained import musicnn
from audiolm_jax.tokens import PAD

from .. import sources, workspace
from ..recipe import Recipe
from .acoustic import SYSTEMS

REAL = 'real, through the codec'
TEXT, OTHER, NONE = 'text prompt', "other clip's text", 'unconditional'
# Attributes whose labels columns and parts need.
COLUMNS = {'dynamics': 'dynamics', 'tempi': 'tempo', 'musicnn_auc': 'instrument'}
MUSICNN_SECONDS = 3.0  # of a window of musicnn, which reads whole ones only


class Clips(NamedTuple):
  """Holds held-out clips with their texts.

  Fields:
    wave_BT: clips of one length.
    texts: first text of each clip.
    labels: by attribute, the place of each clip's value in `arrangements.ATTRIBUTES`; attributes
      that the corpus does not name are missing.
    other_B: number of another clip, for each clip.
  """

  wave_BT: np.ndarray
  texts: list[str]
  labels: Mapping[str, np.ndarray]
  other_B: np.ndarray


class Heard(NamedTuple):
  """Holds what judges hear in the clips of a row.

  Fields:
    vector_BD: unit vectors of the joint embedding.
    level_B: root mean square.
    onset_B: onsets per second.
    tag_BV: probability of each of `musicnn.TAGS`; None without musicnn.
  """

  vector_BD: np.ndarray
  level_B: np.ndarray
  onset_B: np.ndarray
  tag_BV: np.ndarray | None


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns how far clips made from the texts of held-out clips have what the texts ask for.

  The rows "other clip's text" hold the same clips to the text and the attributes of another clip,
  the unconditional ones clips made without a text to those of the held-out clips: chance.

  similarity, similarity_other: mean cosine of a clip and its text, and of a clip and another's, by
    the joint embedding. It conditions the models, so that these columns favour them.
  nearer: share of clips that are more similar to their text than to the other; chance is 1/2.
  dynamics: share of clips on the right side, soft or loud, of the real ones' median level.
  musicnn_auc: mean over instruments of the part `instruments`: the area under the ROC of musicnn's
    tag, clips that ask for the instrument against the others; chance is 1/2.
  low, high: Wilson's 95 % interval, in which a clip is one trial.

  The part `tempi` has the mean number of onsets per second by the tempo that is asked for: librosa
  follows the notes of piano, harp, cello and sitar, but not those of flute and choir, so that the
  row of real clips is the ceiling. The part `semantic` has nats per semantic token of the real
  clips under the semantic stage, by its condition.
  What the recipe or the corpus does not allow is left out, and named in 'left_out' with the reason.
  """
  if not recipe.condition_windows:
    reason = 'no stage of the recipe has a condition, so that texts control nothing'
    return {'rows': {}, 'left_out': {'music from texts': reason}}
  models = workspace.load_models(workdir)
  examples = held_out(recipe, workdir, models.tokenizer.sample_rate)
  if reason := lacking(examples):
    return {'rows': {}, 'left_out': {'music from texts': reason}}
  clips = clips_of(examples, recipe.evaluation.seed)
  embedding = workspace.load_embedding(workdir)
  codec_waves = [example['waveform'] for example in sources.reconstructions(examples, workdir)]
  waves = {REAL: np.stack(codec_waves)}
  made, left_out = generated(recipe, models, clips)
  waves |= made
  seconds = clips.wave_BT.shape[1] / models.tokenizer.sample_rate
  left_out |= unmeasured(clips.labels, seconds)
  tag = None if 'musicnn_auc' in left_out else musicnn.tagger()
  hear = lambda wave_BT: heard(wave_BT, models.tokenizer.sample_rate, embedding, tag)
  parts = tables({title: hear(wave_BT) for title, wave_BT in waves.items()}, clips, embedding)
  if models.semantic.config.condition is None:
    left_out['semantic'] = 'the stage semantic has no condition'
  else:
    parts['semantic'] = {'rows': semantic_rows(models, clips)}
  return {
    **parts,
    'clips': len(examples),
    'seconds': seconds,
    'similarity_by': 'mulan, which conditions the models and so favours them',
    'left_out': left_out,
  }


def held_out(recipe: Recipe, workdir: pathlib.Path, sample_rate: int) -> list[dict]:
  """Returns `evaluation.num_prompts` different held-out clips, or all if there are fewer.

  They have the length of a prompt and its continuation, see `sources.prompts`.
  """
  found = sources.prompts(recipe, workdir, sample_rate)  # repeated if there are fewer
  return list({id(example): example for example in found}.values())


def lacking(examples: Sequence[dict]) -> str:
  """Returns what these clips lack for all measures of this suite; '' if nothing."""
  if not all('texts' in example and texts.decode(example['texts']) for example in examples):
    return 'the corpus does not have a text of every clip'
  return 'there is no other clip for the control: hold out more' if len(examples) < 2 else ''


def clips_of(examples: Sequence[dict], seed: int) -> Clips:
  names = [name for name in ATTRIBUTES if all(name in example for example in examples)]
  return Clips(
    np.stack([example['waveform'] for example in examples]),
    [texts.decode(example['texts'])[0] for example in examples],
    {name: np.array([int(example[name]) for example in examples]) for name in names},
    others(len(examples), seed),
  )


def others(count: int, seed: int) -> Int[np.ndarray, 'B']:
  """Returns a random permutation of 0, ..., count - 1 that moves each number (one cycle)."""
  order_B = np.random.default_rng(seed).permutation(count)
  other_B = np.empty(count, int)
  other_B[order_B] = np.roll(order_B, 1)
  return other_B


def generated(
  recipe: Recipe, models: Models, clips: Clips
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns clips made from the texts and without, by row, and reasons for rows left out."""
  settings, num_samples = recipe.evaluation, clips.wave_BT.shape[1]
  key = jax.random.key(settings.seed)
  seconds = num_samples / models.tokenizer.sample_rate
  waves, left_out = {}, {}
  for label, acoustic in SYSTEMS.items():
    stage = models.soundstorm if acoustic == 'soundstorm' else models.coarse
    if stage is None:
      left_out[label] = 'its stage is not trained'
      continue
    readers = [model for model in (models.semantic, stage) if model.config.condition is not None]
    if not readers:
      left_out[label] = 'its stages have no condition'
      continue
    if acoustic == 'soundstorm' and models.semantic.config.deduplicate:
      left_out[label] = 'it needs a semantic stage with deduplicate=False'
      continue
    options = dict(
      sampling=recipe.sampling, carry_seconds=settings.carry_seconds, acoustic=acoustic
    )
    from_texts = music_generation.from_texts(models, key, clips.texts, seconds, **options)
    waves[f'{TEXT}, {label}'] = from_texts.audio.wave_BT[:, :num_samples]
    if all(model.config.condition.dropout for model in readers):
      free = generation.generate_unconditional(models, key, len(clips.texts), seconds, **options)
      waves[f'{NONE}, {label}'] = free.wave_BT[:, :num_samples]
    else:
      left_out[f'{NONE}, {label}'] = 'a stage was trained without condition.dropout'
  return waves, left_out


def unmeasured(labels: Mapping[str, np.ndarray], seconds: float) -> dict[str, str]:
  """Returns the reasons for columns that these labels and this length do not allow, by name."""
  # No stage is a judge of attributes of music.
  left_out = {'instrument accuracy': 'no stage classifies instruments'}
  for column, attribute in COLUMNS.items():
    if attribute not in labels:
      left_out[column] = f'the corpus does not name the {attribute} of every clip'
  if 'musicnn_auc' not in left_out and seconds < MUSICNN_SECONDS:
    left_out['musicnn_auc'] = f'musicnn needs {MUSICNN_SECONDS:g} s, the clips have {seconds:g} s'
  elif 'musicnn_auc' not in left_out:
    try:
      musicnn.folder()
    except UserError as error:
      left_out['musicnn_auc'] = str(error)
  return left_out


def heard(
  wave_BT: Float[np.ndarray, 'B T'],
  sample_rate: int,
  embedding: JointEmbedding,
  tag: Callable[[np.ndarray, int], np.ndarray] | None,
) -> Heard:
  wave_BT = np.asarray(wave_BT, np.float32)
  at_rate_BT = audio.resample(wave_BT, sample_rate, embedding.sample_rate)
  return Heard(
    vector_BD=embedding.audio(at_rate_BT),
    level_B=np.sqrt((wave_BT.astype(np.float64) ** 2).mean(axis=1)),
    onset_B=np.array([music_metrics.heard_onset_rate(wave_T, sample_rate) for wave_T in wave_BT]),
    tag_BV=None if tag is None else np.stack([tag(wave_T, sample_rate) for wave_T in wave_BT]),
  )


def tables(
  heard_by_row: Mapping[str, Heard], clips: Clips, embedding: JointEmbedding
) -> dict[str, Any]:
  """Returns the rows, and the parts `instruments` and `tempi` as far as the corpus has them.

  Clips made from texts have two rows: held to their own texts, and to those of other clips.
  """
  text_BD = embedding.texts(clips.texts)
  own_B = np.arange(len(clips.texts))
  median = float(np.median(heard_by_row[REAL].level_B))
  rows, instruments, tempi = {}, {}, {}
  for title, one in heard_by_row.items():
    asked = {title: (own_B, clips.other_B)}
    if title.startswith(TEXT):
      asked[title.replace(TEXT, OTHER)] = (clips.other_B, own_B)
    for name, (asked_B, other_B) in asked.items():
      row = similarity(one.vector_BD, text_BD[asked_B], text_BD[other_B])
      labels = {attribute: label_B[asked_B] for attribute, label_B in clips.labels.items()}
      if 'dynamics' in labels:
        row |= dynamics(one.level_B, labels['dynamics'], median)
      if one.tag_BV is not None:
        instruments[name] = areas(one.tag_BV, labels['instrument'])
        known = [area for area in instruments[name].values() if area is not None]
        row['musicnn_auc'] = float(np.mean(known)) if known else None
      if 'tempo' in labels:
        tempi[name] = onsets(one.onset_B, labels['tempo'])
      rows[name] = row
  parts = {'instruments': instruments, 'tempi': tempi}
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
    **_share('nearer', asked_B > other_B),
  }


def dynamics(
  level_B: Float[np.ndarray, 'B'], label_B: Int[np.ndarray, 'B'], median: float
) -> dict[str, float]:
  """Returns the share of clips that are above a level if 'loud' is asked for, else at or below."""
  is_loud_B = label_B == ATTRIBUTES['dynamics'].index('loud')
  return _share('dynamics', (level_B > median) == is_loud_B)


def areas(
  tag_BV: Float[np.ndarray, 'B V'], label_B: Int[np.ndarray, 'B']
) -> dict[str, float | None]:
  """Returns the area under the ROC of each instrument's tag; None where all or no clip asks it."""
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


def semantic_rows(models: Models, clips: Clips) -> dict[str, dict]:
  """Returns nats per semantic token of the real clips by the condition of the semantic stage.

  Clips are cut to the stage's crop. fewer: share of clips with fewer nats under their own text than
  under the other, with Wilson's interval.
  """
  config, variables, _ = models.semantic
  music, rate, condition = models.tokenizer.music, models.tokenizer.sample_rate, config.condition
  semantic_BS = models.tokenizer.encode(clips.wave_BT)[0][:, : config.num_semantic]
  text_BN = music.texts(clips.texts)
  windows = condition.windows
  # The tokens of a clip's first second, as in training on a crop that starts there.
  own_audio = [music.seconds(wave_T, rate, (windows,))[windows][0] for wave_T in clips.wave_BT]
  conditions = {
    'own text': text_BN,
    OTHER: text_BN[clips.other_B],
    'own audio': np.stack(own_audio),
  }
  if condition.dropout:
    conditions['no condition'] = np.full_like(text_BN, PAD)
  nats = {}
  for name, tokens_BN in conditions.items():
    batch = {'semantic': semantic_BS, condition.name: tokens_BN[:, None, : condition.levels]}
    prefix, target_BS1 = config.prefix_and_target(batch)
    found_BS1 = language_model.log_likelihoods(
      config.language_model, variables.params, prefix, target_BS1
    )
    nats[name] = -np.asarray(found_BS1)[..., 0], np.asarray(target_BS1)[..., 0] != PAD
  rows = {
    name: {'nats': float(nats_BS[here_BS].mean())} for name, (nats_BS, here_BS) in nats.items()
  }
  own_B, other_B = (nats[name][0].sum(axis=1) for name in ('own text', OTHER))
  rows['own text'] |= _share('fewer', own_B < other_B)
  return rows


def _share(name: str, is_right_B: Bool[np.ndarray, 'B']) -> dict[str, float]:
  interval = detection.proportion_interval(int(is_right_B.sum()), len(is_right_B))
  return {
    name: float(is_right_B.mean()),
    f'{name}_low': interval.low,
    f'{name}_high': interval.high,
  }

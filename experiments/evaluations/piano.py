"""Evaluates piano continuations (AudioLM, section IV-I): whether they keep key, rhythm and level.

Prompts are beginnings of held-out rendered pieces (`data.music`, setting 'piano'), whose keys and
notes are known.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from audiolm_jax.data.arrangements import ATTRIBUTES, SCALES
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import music as music_metrics
from audiolm_jax.pretrained import basic_pitch

from .. import corpora, sources, workspace
from ..recipe import Recipe
from .continuation import ORIGINAL, continuations
from .music_prompts import held_out, others

TRITONE = 'original, a tritone away'
OTHER_PROMPT = ", held to another clip's prompt"
_TRITONE = 6  # semitones, the farthest key

Transcribe = Callable[[np.ndarray, int], np.ndarray]


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns how well continuations of piano agree with their prompts in key, rhythm and level.

  The row "a tritone away" compares the true continuations with key and pitch classes of the prompt,
  moved by six semitones; the rows "another clip's prompt" compare continuations with a prompt of
  another clip. Both are floors, the true continuations are the ceiling.

  notes_in_key: share of the notes of a continuation, heard by Basic Pitch, in the key of its prompt
    by the score, mean over clips; in_key: the same of the energy of pitch classes, which needs no
    package. Even noise has 7/12. low, high: mean plus and minus 1.96 standard errors.
  pitch_distance: total variation of pitch classes of prompt and continuation, mean.
  onset_change: difference of the onsets per second, mean.
  level_change: difference of the levels in dB, mean.

  Part `codec`: note F1 (onsets within 50 ms) of Basic Pitch on held-out clips before and after the
  codec, held to the score.
  """
  if reason := lacking(recipe):
    return {'rows': {}, 'left_out': {'piano continuations': reason}}
  settings = recipe.evaluation
  rate = workspace.load_stage(workdir, 'soundstream').config.sample_rate
  examples = held_out(recipe, workdir, rate)
  if len(examples) < 2:
    reason = 'there is no other clip for the control: hold out more'
    return {'rows': {}, 'left_out': {'piano continuations': reason}}
  start, end = (
    round(s * rate) for s in (settings.prompt_seconds, settings.prompt_seconds + settings.seconds)
  )
  originals = [example['waveform'][:end] for example in examples]
  coded = [e['waveform'][:end] for e in sources.reconstructions(examples, workdir)]
  waves = {ORIGINAL: coded}
  waves |= continuations(recipe, workdir, [wave_T[:start] for wave_T in originals], end)
  left_out, transcribe = {}, None
  try:
    transcribe = basic_pitch.transcriber()
  except UserError as error:
    left_out['notes'] = str(error)
  keys = [(int(e['tonic']), ATTRIBUTES['mode'][int(e['mode'])]) for e in examples]
  own_B = np.arange(len(examples))
  other_B = others(len(examples), settings.seed)
  prompts = [wave_T[:start] for wave_T in coded]
  rows = {}
  for name, clips in waves.items():
    new = [wave_T[start:] for wave_T in clips]
    notes = None if transcribe is None else [transcribe(wave_T, rate) for wave_T in new]
    hold = lambda asked_B, shift=0: kept(prompts, new, notes, keys, asked_B, rate, shift)
    rows[name] = hold(own_B)
    if name == ORIGINAL:
      rows[TRITONE] = hold(own_B, _TRITONE)
    rows[name + OTHER_PROMPT] = hold(other_B)
  parts = {}
  if transcribe is not None:
    scores = [notes_before(example['notes'], end / rate) for example in examples]
    parts['codec'] = {
      'rows': {
        'before the codec': note_scores(transcribe, originals, scores, rate),
        'through the codec': note_scores(transcribe, coded, scores, rate),
      }
    }
  return {
    'rows': rows,
    **parts,
    'prompts': len(examples),
    'prompt_seconds': settings.prompt_seconds,
    'seconds': settings.seconds,
    'left_out': left_out,
  }


def lacking(recipe: Recipe) -> str:
  """Returns why the suite does not apply to a recipe; '' if it does."""
  corpus = recipe.corpus
  if not isinstance(corpus, corpora.Music) or corpus.config.setting != 'piano':
    return "the corpus is no rendered piano (data.music, setting 'piano'), whose keys are known"
  if 'speaker' in recipe.stages:
    return 'the recipe has a stage speaker, whose clips are prompts'
  return ''


def kept(
  prompts: Sequence[np.ndarray],
  new: Sequence[np.ndarray],
  notes: Sequence[np.ndarray] | None,
  keys: Sequence[tuple[int, str]],
  asked_B: Int[np.ndarray, 'B'],
  sample_rate: int,
  shift: int = 0,
) -> dict[str, float | int]:
  """Returns how well continuations agree with prompts.

  Args:
    prompts: waveforms [T] of the prompts.
    new: waveforms [T] of the continuations, without their prompts.
    notes: notes [N, 4] that are heard in the continuations; None: not known.
    keys: tonic and mode of each prompt.
    asked_B: number of the prompt that each continuation is compared with.
    sample_rate: Hz.
    shift: semitones by which the continuations are moved.
  """
  pitch = lambda waves: np.stack(
    [music_metrics.heard_pitch_classes(wave_T, sample_rate) for wave_T in waves]
  )
  rates = lambda waves: np.array(
    [music_metrics.heard_onset_rate(wave_T, sample_rate) for wave_T in waves]
  )
  asked, moved = [prompts[b] for b in asked_B], np.roll(pitch(new), shift, axis=1)
  asked_keys = [keys[b] for b in asked_B]
  row = {}
  if notes is not None:
    shares = [
      music_metrics.share_in_key(notes_N4 + [0, 0, shift, 0], *key)
      for notes_N4, key in zip(notes, asked_keys, strict=True)
      if len(notes_N4)
    ]
    row |= _mean('notes_in_key', shares) | {'clips_with_notes': len(shares)}
  scales = [(np.array(SCALES[mode]) + tonic) % 12 for tonic, mode in asked_keys]
  row |= _mean('in_key', [share_12[scale].sum() for share_12, scale in zip(moved, scales)])
  pairs = zip(pitch(asked), moved, strict=True)
  distances = [music_metrics.histogram_distance(*pair) for pair in pairs]
  return row | {
    'pitch_distance': float(np.mean(distances)),
    'onset_change': float(np.abs(rates(new) - rates(asked)).mean()),
    'level_change': float(np.abs(levels(new) - levels(asked)).mean()),
  }


def levels(waves: Sequence[np.ndarray]) -> Float[np.ndarray, 'B']:
  """Returns the root mean squares in dB, at least -100."""
  squares = np.array([np.mean(np.square(wave_T, dtype=np.float64)) for wave_T in waves])
  return 10 * np.log10(np.maximum(squares, 1e-10))


def notes_before(notes_N4: Float[np.ndarray, 'N 4'], seconds: float) -> Float[np.ndarray, '_ 4']:
  """Returns the notes that begin before a time, cut there."""
  notes_N4 = np.array(notes_N4, np.float64)
  notes_N4 = notes_N4[notes_N4[:, 0] < seconds]
  notes_N4[:, 1] = np.minimum(notes_N4[:, 1], seconds)
  return notes_N4


def note_scores(
  transcribe: Transcribe,
  waves: Sequence[np.ndarray],
  scores: Sequence[np.ndarray],
  sample_rate: int,
) -> Mapping[str, float]:
  """Returns the mean note F1 of clips, with its interval, and the notes heard per note played."""
  heard = [transcribe(wave_T, sample_rate) for wave_T in waves]
  pairs = list(zip(scores, heard, strict=True))
  found = _mean('note_f1', [music_metrics.note_f1(*pair) for pair in pairs])
  return found | {'heard_per_note': sum(map(len, heard)) / sum(map(len, scores))}


def _mean(name: str, values: Sequence[float]) -> dict[str, float | None]:
  """Returns the mean of values of clips, with 1.96 standard errors; None for fewer than two."""
  if len(values) < 2:
    return dict.fromkeys((name, f'{name}_low', f'{name}_high'))
  mean = float(np.mean(values))
  error = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
  return {name: mean, f'{name}_low': mean - error, f'{name}_high': mean + error}

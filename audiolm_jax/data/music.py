"""Renders a corpus of tunes, with texts and attributes or for piano; nothing is downloaded.

The tunes are those of the package music21 (Ryan's, O'Neill's and Aird's collections in ABC, Bach's
chorales), which is read, not imported. The package midirenderer plays them with a sound font, by
default TimGM6mb (GPL-2) of the package pretty_midi. All are in the extra `music`. Clips are bitwise
reproducible, independent of one another, and made when they are first read.

- Setting 'captioned': a tune for one of six instruments, with an even accompaniment that makes the
  tempo audible. Attributes are balanced and independent of the tune (`data.arrangements`).
- Setting 'piano': Bach's chorales, and tunes for two hands.
- Setting 'melody': two recordings of each clip of a tune by different instruments, for
  `stages.melody`.

Tunes of the split 'test' are not in 'train', nor are tunes of equal title or beginning. The split
'pairs' has the held-out tunes with those pairs of attributes that the others lack
(`arrangements.HELD_OUT_PAIRS`).
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from audiolm_jax import audio, checks, files
from audiolm_jax.data import (
  abc_notation,
  arrangements,
  descriptions,
  folders,
  musicxml,
  rendering,
  scores,
  texts,
)
from audiolm_jax.data.example import Example
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import extras

SETTINGS = ('captioned', 'piano', 'melody')
SPLITS = ('train', 'test', 'pairs')
_FORMAT = 1  # increment if the clips of a config change, to invalidate caches of older versions
# Folders of music21's corpus.
_FOLDERS = {'tunes': ('ryansMammoth', 'oneills1850', 'airdsAirs'), 'chorales': ('bach',)}
_BEGINNING = 16  # notes; tunes with equal intervals up to here count as one
_MAX_LIST_BYTES = 2**30  # of a stored list of clips; 1.5 KB per clip of 5 s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures the corpus.

  Raises:
    UserError: if a field is illegal.
  """

  setting: str = 'captioned'
  train_clips: int = 2400
  test_clips: int = 240
  pairs_clips: int = 240
  clip_seconds: float = 5.0
  sample_rate: int = 16_000  # Hz
  num_texts: int = 4  # per clip
  text_bytes: int = 96  # length of a row of texts
  held_out: float = 0.1  # share of the tunes
  # A sound font (SF2); '': that of the package pretty_midi. Another one gives a held-out timbre.
  font: str = ''
  # A folder with ABC files and, for 'piano', chorales in MusicXML; '': those of music21.
  scores: str = ''
  seed: int = 0

  def __post_init__(self):
    checks.fields(
      self,
      setting=checks.one_of(*SETTINGS),
      train_clips=checks.WHOLE,
      test_clips=checks.WHOLE,
      pairs_clips=checks.WHOLE,
      clip_seconds=checks.CLIP_SECONDS,
      sample_rate=checks.WHOLE,
      num_texts=checks.WHOLE,
      text_bytes=checks.whole(descriptions.LONGEST),
      held_out=checks.BETWEEN,
      font=checks.TEXT,
      scores=checks.TEXT,
      seed=checks.SEED,
    )


class Examples:
  """Random access source of clips (see `data.example`).

  All examples have 'waveform', 'notes' and 'tune', and without the setting 'melody' 'tonic' and
  'mode'. Captioned ones have the other labels of `arrangements.ATTRIBUTES`, 'texts', and in
  held-out splits 'unseen_texts'; piano clips have 'setting' (of `arrangements.SETTINGS`), melodies
  have 'cover', another recording. Audio is stored in `folder`, unless it is None.
  """

  def __init__(self, config: Config, clips: list[dict], font: str, folder: str | None):
    self.sample_rate = config.sample_rate
    self._config, self._clips, self._font, self._folder = config, clips, font, folder

  def __len__(self) -> int:
    return len(self._clips)

  def inventory(self) -> list[str]:
    """Returns one line per clip: its tune and labels."""
    return [f'{clip["tune"]}\t{n}\t{clip["labels"]}' for n, clip in enumerate(self._clips)]

  def __getitem__(self, i: int) -> Example:
    i = range(len(self))[i]
    clip = self._clips[i]
    encode = lambda written: texts.encode(written, self._config.text_bytes)
    return {
      'waveform': self._sound(i, '', clip['notes'], clip['program']),
      **({'cover': self._sound(i, '_cover', *clip['cover'])} if 'cover' in clip else {}),
      'notes': np.array(clip['notes'], np.float32),
      'tune': clip['tune'],
      **{name: np.int32(label) for name, label in clip['labels'].items()},
      **{name: encode(clip[name]) for name in ('texts', 'unseen_texts') if name in clip},
    }

  def _sound(self, i: int, name: str, notes: list, program: int) -> np.ndarray:
    path = None if self._folder is None else os.path.join(self._folder, f'{i:06d}{name}.flac')
    if path is not None and os.path.exists(path):
      try:
        return audio.load(path, self.sample_rate)
      except UserError as error:
        raise UserError(f'{error}. Delete {path} to render it again') from error
    seconds = self._config.clip_seconds
    wave_T = rendering.render(np.array(notes), program, seconds, self.sample_rate, self._font)
    if path is not None:
      audio.save(path, wave_T, self.sample_rate, overwrite=True)
    return wave_T


def examples(config: Config, split: str, *, cache_dir: str | os.PathLike | None = None) -> Examples:
  """Returns the clips of a split.

  Args:
    config: config of the corpus.
    split: 'train', 'test' or 'pairs'.
    cache_dir: folder for the list of clips and their audio, which is written when first read; None
      keeps no file.

  Raises:
    UserError: if the split is unknown, a package of the extra `music` or a file is missing, or a
      stored file is damaged.
  """
  known = SPLITS if config.setting == 'captioned' else SPLITS[:2]
  if split not in known:
    listed = f'{", ".join(known[:-1])} and {known[-1]}'
    raise UserError(f'split is {split!r}; the setting {config.setting!r} has {listed}')
  font = rendering.font_path(config.font)
  if cache_dir is None:
    return Examples(config, _clips(config, split), font, None)
  key = [_FORMAT, dataclasses.asdict(config), split, files.sha256(font)]
  digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
  folder = os.path.join(os.path.abspath(cache_dir), f'music-{split}-{digest}')
  manifest = os.path.join(folder, 'clips.json')
  if not os.path.exists(manifest):
    files.write_text(manifest, json.dumps({'clips': _clips(config, split)}))
  remedy = f'delete {folder} to render it again'
  clips = files.read_json(manifest, remedy, max_bytes=_MAX_LIST_BYTES).get('clips')
  if not isinstance(clips, list):
    raise UserError(f'{manifest} has no list of clips: {remedy}')
  return Examples(config, clips, font, folder)


def _clips(config: Config, split: str) -> list[dict[str, Any]]:
  """Returns {'tune', 'notes', 'program', 'labels'} and the texts of each clip of a split."""
  count = getattr(config, f'{split}_clips')
  if config.setting != 'captioned':
    make = _piano_clip if config.setting == 'piano' else _melody_clip
    return [make(config, split, i) for i in range(count)]
  random = np.random.default_rng([config.seed, 1, SPLITS.index(split)])
  wanted = combinations(held_out=split == 'pairs')
  orders = [random.permutation(len(wanted)) for _ in range(-(-count // len(wanted)))]
  chosen = [wanted[n] for n in np.concatenate(orders)[:count]]
  return [_captioned_clip(config, split, i, one) for i, one in enumerate(chosen)]


def combinations(held_out: bool) -> list[dict[str, str]]:
  """Returns all combinations of attributes with a held-out pair, or all without one.

  Args:
    held_out: whether to return those with a held-out pair.
  """
  all_of_them = [
    dict(zip(arrangements.ATTRIBUTES, values))
    for values in itertools.product(*arrangements.ATTRIBUTES.values())
  ]
  has_pair = lambda one: any(set(pair) <= set(one.items()) for pair in arrangements.HELD_OUT_PAIRS)
  return [one for one in all_of_them if has_pair(one) == held_out]


def _captioned_clip(config: Config, split: str, i: int, attributes: dict[str, str]) -> dict:
  random = np.random.default_rng([config.seed, 2, SPLITS.index(split), i])
  tune = _drawn(config, 'tunes', split, random)
  notes_N4, tonic = arrangements.captioned(tune, attributes, config.clip_seconds, random)
  labels = {
    name: values.index(attributes[name]) for name, values in arrangements.ATTRIBUTES.items()
  }
  described = functools.partial(descriptions.describe, attributes, config.num_texts, random)
  return {
    'tune': tune.name,
    'notes': np.round(notes_N4, 4).tolist(),
    'program': arrangements.PROGRAMS[attributes['instrument']],
    'labels': {**labels, 'tonic': tonic},
    'texts': described(),
    **({} if split == 'train' else {'unseen_texts': described(unseen=True)}),
  }


def _piano_clip(config: Config, split: str, i: int) -> dict:
  random = np.random.default_rng([config.seed, 3, SPLITS.index(split), i])
  number = i % len(arrangements.SETTINGS)
  setting = arrangements.SETTINGS[number]
  tune = _drawn(config, 'chorales' if setting == 'chorale' else 'tunes', split, random)
  notes_N4, tonic, mode = arrangements.piano(tune, setting, config.clip_seconds, random)
  modes = arrangements.ATTRIBUTES['mode']
  return {
    'tune': tune.name,
    'notes': np.round(notes_N4, 4).tolist(),
    'program': arrangements.PROGRAMS['piano'],
    'labels': {'setting': number, 'mode': modes.index(mode), 'tonic': tonic},
  }


def _melody_clip(config: Config, split: str, i: int) -> dict:
  random = np.random.default_rng([config.seed, 4, SPLITS.index(split), i])
  tune = _drawn(config, 'tunes', split, random)
  one_N4, other_N4 = arrangements.covers(tune, config.clip_seconds, random)
  first, second = random.permutation(list(arrangements.PROGRAMS.values()))[:2].tolist()
  return {
    'tune': tune.name,
    'notes': np.round(one_N4, 4).tolist(),
    'program': first,
    'cover': [np.round(other_N4, 4).tolist(), second],
    'labels': {},
  }


def _drawn(config: Config, kind: str, split: str, random: np.random.Generator) -> scores.Tune:
  known = _tunes(config.scores, kind, split != 'train', config.held_out)
  return known[int(random.integers(len(known)))]


@functools.lru_cache(maxsize=16)
def _tunes(folder: str, kind: str, is_held_out: bool, share: float) -> tuple[scores.Tune, ...]:
  """Returns the tunes or chorales of `folder` ('': those of music21), held-out ones or others."""
  read = {'tunes': abc_notation.tunes, 'chorales': musicxml.chorales}[kind]
  if folder:
    return split_tunes(read(folder), is_held_out, share)
  corpus = extras.folder('music21', 'music21', extra='music') / 'corpus'
  found = [tune for name in _FOLDERS[kind] for tune in read(corpus / name)]
  return split_tunes(found, is_held_out, share)


def split_tunes(
  tunes: Sequence[scores.Tune], is_held_out: bool, share: float
) -> tuple[scores.Tune, ...]:
  """Returns the held-out tunes, by the checksums of their titles, or those to train on.

  Collections share tunes under several titles. Tunes that begin as a held-out one are therefore in
  neither part.

  Args:
    tunes: all tunes.
    is_held_out: whether to return the held-out ones.
    share: of the titles that are held out, in [0, 1].

  Raises:
    UserError: if no tune is left.
  """
  test = [tune for tune in tunes if folders.is_held_out(tune.title, share)]
  titles, beginnings = {tune.title for tune in test}, {_beginning(tune) for tune in test}
  train = [
    tune for tune in tunes if tune.title not in titles and _beginning(tune) not in beginnings
  ]
  kept = tuple(test if is_held_out else train)
  if not kept:
    raise UserError(
      f'none of {len(tunes)} tunes is {"held out" if is_held_out else "left to train on"} with '
      f'held_out={share}: change --set corpus.config.held_out, or give more scores'
    )
  return kept


def _beginning(tune: scores.Tune) -> tuple[int, ...]:
  return tuple(np.diff(tune.voices[0][: _BEGINNING + 1, 2]).astype(int).tolist())

"""Prepares human speech from Debian packages (`data.debian`) as 16 kHz FLAC of equal loudness.

  FOLDER/train, test, labelled/VOICE/*.flac
  FOLDER/utterances.json           {'voices': [...],
                                    'utterances': [{'split', 'file', 'voice', 'text', 'phones'}]}
  FOLDER/labelled/labelled.item    phones in context, as Libri-Light's (`evaluate --data`)

Splits are fixed. 'test' contains all voices of HELD_OUT_LANGUAGES, so that a person who speaks in
two packages is in one split only. 'labelled' contains a tenth of the recordings with phone labels;
'train' contains other recordings of their voice.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from audiolm_jax import audio, files
from audiolm_jax.data import debian, g722, synthesized, zerospeech
from audiolm_jax.data.utterances import Utterance
from audiolm_jax.errors import UserError

SAMPLE_RATE = 16_000  # Hz
SPLITS = ('train', 'test', 'labelled')
HELD_OUT_LANGUAGES = ('da', 'de', 'hu', 'it', 'lt')
FIRST_SPEAKER = 1_000_000  # number of the first voice, above LibriSpeech's speakers
_MANIFEST = 'utterances.json'
_FORMAT = 1  # increment if preparation changes, to invalidate prepared folders
_JOINED_SECONDS = 6.0  # clips of one voice are joined until they have this length
_MARGIN_SECONDS = 0.15  # kept before and after the speech in a clip that is joined
_FADE_SECONDS = 0.01
_WINDOW = 320  # samples per window of the speech detector
_SILENCE = 0.03  # threshold relative to the amplitude of loud windows
_LEAST_AMPLITUDE, _LEAST_SECONDS = 0.003, 0.2  # other clips are excluded


def split_of(clip: debian.Clip) -> str:
  """Returns the split of a clip, which depends on its language or, with phone labels, its name."""
  if clip.labels is not None and pathlib.Path(clip.path).stem.endswith('0'):
    return 'labelled'
  return 'test' if clip.language in HELD_OUT_LANGUAGES else 'train'


def prepared(clips: Sequence[debian.Clip], cache_dir: str | os.PathLike) -> pathlib.Path:
  """Returns the folder of the prepared corpus below `cache_dir`; the first call prepares it.

  Preparation takes minutes. The folder name contains a checksum of the files' names and sizes.
  Silent, short and unreadable clips are excluded and listed in FOLDER/left_out.txt.

  Raises:
    UserError: if no clip remains.
  """
  known = [
    [os.path.basename(clip.path), clip.voice, clip.text, os.path.getsize(clip.path)]
    for clip in clips
  ]
  key = hashlib.sha256(json.dumps([_FORMAT, known]).encode()).hexdigest()[:16]
  folder = pathlib.Path(cache_dir) / f'speech-{key}'
  if not (folder / _MANIFEST).is_file():  # written last: after an interruption, it is missing
    _prepare(clips, folder)
  return folder


def utterances(folder: str | os.PathLike, split: str) -> tuple[list[Utterance], tuple[str, ...]]:
  """Returns the utterances of a split of a prepared folder, and the phone names of all splits.

  Voices are numbered from FIRST_SPEAKER in sorted order.

  Raises:
    UserError: if the split is unknown.
  """
  if split not in SPLITS:
    raise UserError(f'split is {split!r}; there are {", ".join(SPLITS)}')
  folder = pathlib.Path(folder)
  path = folder / _MANIFEST
  stored = files.read_json(path, f'delete {path}, then the corpus is prepared again')
  number = {voice: FIRST_SPEAKER + index for index, voice in enumerate(stored['voices'])}
  names = sorted({phone for one in stored['utterances'] for _, phone in one['phones']})
  return [
    Utterance(
      str(folder / one['file']),
      number[one['voice']],
      one['text'],
      [tuple(pair) for pair in one['phones']],
    )
    for one in stored['utterances']
    if one['split'] == split
  ], tuple(names)


def _prepare(clips: Sequence[debian.Clip], folder: pathlib.Path):
  left_out: list[str] = []
  made, counts = [], {}
  for split, clip, wave_T, text in _joined(clips, left_out):
    place = folder / split / clip.voice
    place.mkdir(parents=True, exist_ok=True)
    counts[place] = counts.get(place, 0) + 1
    name = pathlib.Path(clip.path).stem if clip.labels else f'{clip.voice}-{counts[place] - 1:04d}'
    audio.save(place / f'{name}.flac', synthesized.level(wave_T), SAMPLE_RATE, overwrite=True)
    phones = debian.read_labels(clip.labels) if clip.labels else []
    file = f'{split}/{clip.voice}/{name}.flac'
    made.append({'split': split, 'file': file, 'voice': clip.voice, 'text': text, 'phones': phones})
  if not made:
    raise UserError(f'none of {len(clips)} clips can be used; the first: {left_out[:3]}')
  voices = sorted({clip.voice for clip in clips})
  content = json.dumps({'voices': voices, 'utterances': made}, ensure_ascii=False)
  files.write_text(folder / 'left_out.txt', ''.join(f'{line}\n' for line in left_out))
  if items := [item for one in made if one['split'] == 'labelled' for item in _items(one)]:
    zerospeech.write_items(folder / 'labelled/labelled.item', items)
  files.write_text(folder / _MANIFEST, content)


def _joined(
  clips: Iterable[debian.Clip], left_out: list[str]
) -> Iterator[tuple[str, debian.Clip, np.ndarray, str | None]]:
  """Yields (split, first clip, waveform, text) of labelled clips, and of joined other clips."""
  waiting: dict[tuple[str, str], list[tuple[debian.Clip, np.ndarray]]] = {}
  for clip in clips:
    try:
      wave_T = _load(clip.path)
    except (ValueError, OSError) as error:
      left_out.append(f'{clip.path}: {error}')
      continue
    split = split_of(clip)
    if clip.labels is not None:
      yield split, clip, wave_T, clip.text
      continue
    spoken_T = trimmed(wave_T)
    if spoken_T is None:
      left_out.append(f'{clip.path}: silent, or less than {_LEAST_SECONDS} s')
      continue
    parts = waiting.setdefault((split, clip.voice), [])
    parts.append((clip, spoken_T))
    if sum(len(part_T) for _, part_T in parts) >= _JOINED_SECONDS * SAMPLE_RATE:
      yield split, *_join(parts)
      parts.clear()
  for (split, _), parts in waiting.items():
    if parts:
      yield split, *_join(parts)


def _load(path: str) -> np.ndarray:
  return g722.load(path) if path.endswith('.g722') else audio.load(path, SAMPLE_RATE)


def _join(
  parts: list[tuple[debian.Clip, np.ndarray]],
) -> tuple[debian.Clip, np.ndarray, str | None]:
  texts = [clip.text for clip, _ in parts]
  text = None if None in texts else ' '.join(texts)
  return parts[0][0], np.concatenate([part_T for _, part_T in parts]), text


def trimmed(wave_T: np.ndarray) -> np.ndarray | None:
  """Returns a 16 kHz clip trimmed to its speech with margins of 0.15 s, faded at both ends.

  Returns None if there is no speech. Peaks are limited to 1, because Vorbis may decode clipped
  recordings to larger values.
  """
  num_windows = len(wave_T) // _WINDOW
  if len(wave_T) < _LEAST_SECONDS * SAMPLE_RATE:
    return None
  amplitude_W = np.sqrt(
    np.mean(wave_T[: num_windows * _WINDOW].reshape(num_windows, _WINDOW) ** 2, axis=1)
  )
  loud = np.percentile(amplitude_W, 95)
  if loud < _LEAST_AMPLITUDE:
    return None
  spoken = np.flatnonzero(amplitude_W > _SILENCE * loud)
  margin = round(_MARGIN_SECONDS * SAMPLE_RATE)
  kept_T = wave_T[max(0, spoken[0] * _WINDOW - margin) : (spoken[-1] + 1) * _WINDOW + margin]
  if len(kept_T) < _LEAST_SECONDS * SAMPLE_RATE:
    return None
  fade_N = np.linspace(0, 1, round(_FADE_SECONDS * SAMPLE_RATE), dtype=np.float32)
  gain_T = np.ones(len(kept_T), np.float32)
  gain_T[: len(fade_N)], gain_T[len(gain_T) - len(fade_N) :] = fade_N, fade_N[::-1]
  return kept_T * gain_T / max(1.0, np.abs(kept_T).max())


def _items(one: dict) -> Iterator[zerospeech.Item]:
  """Yields the phones of an utterance in context, without pauses, as Libri-Light's items."""
  ends = [0.0, *(end for end, _ in one['phones'])]
  names = [phone for _, phone in one['phones']]
  for index in range(1, len(names) - 1):
    if 'pau' not in names[index - 1 : index + 2] and ends[index] < ends[index + 1]:
      yield zerospeech.Item(
        pathlib.Path(one['file']).stem,
        ends[index],
        ends[index + 1],
        names[index],
        names[index - 1],
        names[index + 1],
        one['voice'],
      )

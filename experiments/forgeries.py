"""What `experiments.forge` leaves for the detector: pairs of an original and a continuation of its
beginning.

Records 2 n and 2 n + 1 of a split are a pair: the same utterance through the codec, as it was and
as the models go on. Each holds 'waveform' (16 bits, as files on disk have), 'start' (the sample at
which the prompt, alike in both, is over), 'label' (stages.detector) and 'speaker'.
"""

import pathlib
from typing import Any

import numpy as np

from audiolm_jax.stages import detector

from . import workspace

SPLITS = ('train', 'validation', 'test')
FULL_SCALE = 32767


def load(workdir: pathlib.Path, split: str):
  """Returns the records of a split; ValueError naming the command that makes them."""
  return workspace.token_source(workdir, split, folder='forgeries', program='forge')


def record(wave_T: np.ndarray, start: int, label: int, speaker: int) -> dict[str, Any]:
  samples_T = np.round(np.clip(wave_T, -1, 1) * FULL_SCALE).astype(np.int16)
  return {'waveform': samples_T, 'start': start, 'label': label, 'speaker': speaker}


def whole(found: dict[str, Any]) -> np.ndarray:
  """Returns the waveform of a record, prompt and all, as float32."""
  return found['waveform'].astype(np.float32) / FULL_SCALE


class Clips:
  """What follows the prompt, as float32 waveforms with labels.

  Of the originals alone, labelled by lot (half and half), where `by_lot`.
  """

  def __init__(self, records, *, by_lot: bool = False, seed: int = 0):
    self._records, self._labels = records, None
    if by_lot:
      self._labels = np.random.default_rng(seed).permutation(len(records) // 2) % 2

  @property
  def fingerprints(self) -> dict[str, str]:
    return self._records.metadata['fingerprints']

  def __len__(self) -> int:
    return len(self._records) if self._labels is None else len(self._labels)

  def __getitem__(self, index: int) -> dict[str, Any] | None:
    found = self._records[index if self._labels is None else 2 * index + detector.ORIGINAL]
    if found is None:
      return None
    label = found['label'] if self._labels is None else np.int32(self._labels[index])
    return {
      'waveform': whole(found)[int(found['start']) :],
      'label': label,
      'speaker': found['speaker'],
    }

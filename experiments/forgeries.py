"""Reads and writes the detector's clips, which `experiments.forge` makes.

Records 2 n and 2 n + 1 of a split are a pair from one utterance: the original, and a continuation
of its prompt, both decoded by the codec. A record holds 'waveform' (int16, as audio files), 'start'
(the sample at which the prompt ends), 'label' (stages.detector) and 'speaker'.
"""

import pathlib
from typing import Any

import numpy as np

from audiolm_jax.stages import detector

from . import workspace

SPLITS = ('train', 'validation', 'test')
FULL_SCALE = 32767


def load(workdir: pathlib.Path, split: str):
  """Returns the records of a split.

  Raises:
    UserError: naming the command that makes them, if they are missing.
  """
  return workspace.token_source(workdir, split, folder='forgeries', program='forge')


def record(wave_T: np.ndarray, start: int, label: int, speaker: int) -> dict[str, Any]:
  samples_T = np.round(np.clip(wave_T, -1, 1) * FULL_SCALE).astype(np.int16)
  return {'waveform': samples_T, 'start': start, 'label': label, 'speaker': speaker}


def whole(found: dict[str, Any]) -> np.ndarray:
  """Returns the waveform of a record, including its prompt, as float32."""
  return found['waveform'].astype(np.float32) / FULL_SCALE


class Clips:
  """Clips without their prompts: float32 waveforms with labels.

  Args:
    records: records of a split.
    by_lot: whether to use originals only, and to give a random half the label of continuations.
    seed: of the random labels.
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

"""Evaluates the detector of generated speech, and its control, on held-out voices.

Clips are those of `experiments.detector_clips`, in which originals have passed through the codec,
too. Also fits the calibration for `experiments.detect` on validation voices, and tests it on
held-out ones.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from audiolm_jax import storage
from audiolm_jax.arrays_file import fingerprint
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import detection
from audiolm_jax.stages import detector
from audiolm_jax.stages.base import Variables

from .. import inputs, workspace
from ..cli import command_line
from ..recipe import Recipe
from . import judges


def measure(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns the detector's accuracy per second and per clip, with ROC and calibrations.

  low and high are Wilson's 95 % interval of the accuracy, in which a clip is one trial. There are
  no rows without a trained detector.
  """
  del recipe
  rows, curves, facts = {}, {}, {}
  for name, title in (('detector', 'detector'), ('detector_control', 'control: random labels')):
    if not (workdir / name).is_dir():
      continue
    config, variables, metadata = workspace.load_stage(workdir, name)
    validation, test = (
      inputs.LabelledClips(
        inputs.load_clips(workdir, split), random_labels=name == 'detector_control', seed=seed
      )
      for seed, split in enumerate(('validation', 'test'), 1)
    )
    check_same_models(workdir, name, metadata['fingerprints'], test.fingerprints)
    known, unseen = (scored(config, variables, clips) for clips in (validation, test))
    for unit in ('second', 'clip'):
      calibration = detection.fit_calibration(*known[unit])
      rows[f'{title}, {unit}'] = row(*unseen[unit], calibration, num_clips=len(test))
      if name == 'detector':
        curves[f'by the {unit}'] = detection.roc(*unseen[unit])
        facts[f'calibration_{unit}'] = calibration._asdict()
    if name == 'detector':
      facts['detector'] = fingerprint(variables.params)
  if not curves:
    command = f'python -m experiments.train --stage=detector --workdir={workdir}'
    return {'rows': rows, 'left_out': {'detector': f'it is not trained: {command}'}}
  from . import pictures  # needs matplotlib, of the extra `plot`

  path = workdir / 'evaluation' / 'detection_roc.png'
  path.parent.mkdir(parents=True, exist_ok=True)
  pictures.save_roc(path, curves)
  return {'rows': rows, 'chance': 0.5, 'roc': path.name, **facts}


def scored(
  config: detector.Config, variables: Variables, clips
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns (log odds, labels) of each 'second' and each 'clip' (means over its seconds)."""
  examples = [
    example for example in (clips[index] for index in range(len(clips))) if example is not None
  ]
  found = log_odds(config, variables, [example['waveform'] for example in examples])
  label_N = np.array([int(example['label']) for example in examples])
  seconds_N = np.concatenate(found), np.repeat(label_N, [len(seconds) for seconds in found])
  return {'second': seconds_N, 'clip': (np.array([seconds.mean() for seconds in found]), label_N)}


def row(
  log_odds_N: np.ndarray, label_N: np.ndarray, calibration: detection.Calibration, num_clips: int
) -> dict[str, float | int]:
  accuracy = detection.accuracy(log_odds_N, label_N)
  interval = detection.proportion_interval(round(accuracy * num_clips), num_clips)
  probability_N = detection.probability(calibration, log_odds_N)
  return {
    'accuracy': accuracy,
    'low': interval.low,
    'high': interval.high,
    'equal_error_rate': detection.equal_error_rate(log_odds_N, label_N),
    'area_under_curve': detection.area_under_curve(log_odds_N, label_N),
    'calibration_error': detection.calibration_error(probability_N, label_N),
    'scored': len(label_N),
  }


def log_odds(
  config: detector.Config, variables: Variables, waves: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """Returns the log odds [N] of the seconds (the detector's crops) of each waveform.

  The last crop ends with the waveform, and overlaps the one before.

  Raises:
    UserError: if a waveform is shorter than a crop.
  """
  length = config.crop_length
  if short := [len(wave_T) for wave_T in waves if len(wave_T) < length]:
    raise UserError(
      f'a clip has {short[0]} samples, the detector needs {length}: give a longer one'
    )
  starts = [[*range(0, len(wave_T) - length, length), len(wave_T) - length] for wave_T in waves]
  crops = [wave_T[start : start + length] for wave_T, own in zip(waves, starts) for start in own]
  scores_N = judges.in_buckets(_score, config, variables, np.stack(crops)).astype(np.float64)
  return np.split(scores_N, np.cumsum([len(own) for own in starts])[:-1])


def load_calibrations(
  workdir: pathlib.Path, variables: Variables
) -> dict[str, detection.Calibration]:
  """Returns the calibrations of the detector by 'second' and 'clip'.

  Raises:
    UserError: naming the command that fits them, if they are missing or of another detector.
  """
  path = workdir / 'evaluation' / 'detection.json'
  again = f'run `{command_line.command("evaluate", workdir, "--suite=detection")}` first'
  if not path.is_file():
    raise UserError(f'{path}, the calibration of the detector, does not exist: {again}')
  found = storage.read_json(path, again)
  if found.get('detector') is None:
    raise UserError(f'{path} was written without a detector: {again}')
  if found['detector'] != fingerprint(variables.params):
    raise UserError(
      f'{path} was measured with another detector than that in {workdir}/detector: {again}'
    )
  try:
    return {
      unit: detection.Calibration(**found[f'calibration_{unit}']) for unit in ('second', 'clip')
    }
  except (KeyError, TypeError) as error:
    raise UserError(f'{path} has no calibration ({error!r}): {again}') from error


def check_same_models(workdir: pathlib.Path, name: str, own: dict[str, Any], clips: dict[str, Any]):
  """Checks that a detector was trained on clips of the same models as the test clips.

  Raises:
    UserError: if not.
  """
  if own != clips:
    raise UserError(
      f'{workdir}/{name} was trained on clips of {own}, {inputs.clip_folder(workdir)} has those '
      f'of {clips}: train it again'
    )


@functools.partial(jax.jit, static_argnums=0)
def _score(config, variables, wave_BT):
  return detector.log_odds(config, variables, wave_BT)

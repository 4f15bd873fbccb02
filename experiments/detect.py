"""Says of audio files how probable it is that the models of a workdir made them.

  python -m experiments.detect voice.wav other.flac --workdir=runs/tiny
  python -m experiments.detect voice.wav --workdir=runs/tiny --output=scores.json

Needs a trained detector and its calibration:

  python -m experiments.forge --workdir=runs/tiny
  python -m experiments.train --stage=detector --workdir=runs/tiny
  python -m experiments.evaluate --suite=detection --workdir=runs/tiny

A probability is one where originals and generated files are equally frequent, and says something of
the continuations
that this detector has learned from: those of these models, of this kind of recordings. Files go
through the codec first, as the originals in training did; --as_is scores them as they are, which is
right for originals that come out of the codec.
"""

import json
import pathlib

import numpy as np

from audiolm_jax import audio, files
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import detection as detection_metrics

from . import command_line, sources, workspace
from .evaluations import detection


def main():
  parser = workspace.parser(__doc__, recipe=False)
  parser.add_argument('files', nargs='+', type=command_line.path, metavar='FILE')
  parser.add_argument(
    '--as_is', action='store_true', help='do not pass the files through the codec first'
  )
  parser.add_argument(
    '--output', type=command_line.path, metavar='FILE', help='write the scores as JSON, too'
  )
  args = parser.parse_args()
  if args.output is not None:
    command_line.prove_files([args.output], '--output')
  config, variables, _ = workspace.load_stage(args.workdir, 'detector')
  calibrations = detection.load_calibrations(args.workdir, variables)
  waves = [load(path, config) for path in args.files]
  if not args.as_is:
    examples = sources.reconstructions([{'waveform': wave_T} for wave_T in waves], args.workdir)
    waves = [example['waveform'] for example in examples]
  results = {}
  for path, seconds_N in zip(args.files, detection.log_odds(config, variables, waves), strict=True):
    results[str(path)] = {
      'generated': float(
        detection_metrics.probability(calibrations['clip'], seconds_N.mean(keepdims=True))[0]
      ),
      'seconds': detection_metrics.probability(calibrations['second'], seconds_N).tolist(),
    }
  shown = {files.printable(name): result for name, result in results.items()}
  width = max(map(len, shown))
  print(f'{"file":<{width}}  p(generated)   by the second')
  for name, result in shown.items():
    print(
      f'{name:<{width}}  {result["generated"]:12.3f}   '
      + ' '.join(f'{p:.2f}' for p in result['seconds'])
    )
  if args.output is not None:
    files.write_text(args.output, json.dumps({'as_is': args.as_is, 'files': results}, indent=1))
    print(f'written to {args.output}')


def load(path: pathlib.Path, config) -> np.ndarray:
  """Returns a file at the detector's rate; ValueError where it cannot be read, is too short, or is
  silent.
  """
  wave_T = audio.load(path, config.sample_rate)
  if len(wave_T) < config.crop_length:
    raise UserError(
      f'{path} has {len(wave_T)} samples at {config.sample_rate} Hz, the detector hears {config.crop_length} at a '
      'time: give a longer file'
    )
  if not np.any(wave_T):
    raise UserError(f'{path} is silent: there is nothing to hear in it')
  return wave_T


if __name__ == '__main__':
  workspace.run(main)

"""Continues voices by released models, within a minute on two CPU cores.

  python -m experiments.demo
  python -m experiments.demo --prompt=my.wav

Continues the release's example prompts, by speakers that no model was trained on, and your own
recordings. Writes into OUTPUT, for each prompt: NAME_prompt.wav (its first PROMPT_SECONDS, through
the codec), NAME_autoregressive.wav and NAME_soundstorm.wav (the prompt and its continuation, by
each acoustic path that the release has). Also spectrograms.png (with matplotlib) and report.json:
seconds of computing and of audio, and estimates of quality (with the extra `eval`).
"""

import importlib.util
import json
import pathlib
import time

import jax
import numpy as np

from audiolm_jax import audio, chain, files, generation, release
from audiolm_jax.errors import UserError, install

from .cli import command_line, compilation_cache
from .evaluations import external_judges

PROMPT_SECONDS = 3.0


def main():
  started = time.time()
  args = _parser().parse_args()
  command_line.check_folder(args.output, '--output')
  compilation_cache.keep_for_user()
  folder = release.fetch(args.release, revision=args.revision)
  models = release.from_pretrained(folder)
  rate = models.tokenizer.sample_rate
  sources = args.prompts + sorted((folder / 'examples').glob('*.flac'))
  if not sources:
    raise UserError(f'{folder} has no examples: give a recording, --prompt=FILE')
  prompts = {path.stem: _beginning(path, rate) for path in sources}
  if len(prompts) < len(sources):
    raise UserError(f'prompts share a name: {", ".join(path.stem for path in sources)}; rename one')
  prompt_BT, num_samples_B = audio.stacked(list(prompts.values()))
  report = {'release': str(args.release), 'seed': args.seed, 'paths': {}}
  args.output.mkdir(parents=True, exist_ok=True)
  heard = np.asarray(models.tokenizer.codec.reconstruct(prompt_BT))
  for name, wave_T, length in zip(prompts, heard, num_samples_B):
    audio.save(args.output / f'{name}_prompt.wav', wave_T[:length], rate, overwrite=True)
  waves = {}
  for acoustic in reversed(chain.ACOUSTIC):  # the faster one first
    if chain.acoustic_model(models, acoustic) is None:
      continue
    begun = time.time()
    result = generation.continue_audio(
      models,
      jax.random.key(args.seed),
      prompt_BT,
      num_samples_B,
      seconds=args.seconds,
      acoustic=acoustic,
    )
    ends_B = result.num_frames_B * models.tokenizer.codec.hop_length
    waves[acoustic] = [row_T[:end] for row_T, end in zip(result.wave_BT, ends_B)]
    for name, wave_T in zip(prompts, waves[acoustic]):
      path = args.output / f'{name}_{acoustic}.wav'
      audio.save(path, wave_T, rate, overwrite=True)
      print(f'{time.time() - started:5.0f} s  {files.printable(path)}', flush=True)
    report['paths'][acoustic] = {
      'seconds_of_computing': time.time() - begun,
      'seconds_of_new_audio': args.seconds * len(prompts),
    }
  for acoustic, clips in waves.items():  # after all sounds are written, because it takes seconds
    new = [wave_T[length:] for wave_T, length in zip(clips, num_samples_B, strict=True)]
    report['paths'][acoustic] |= external_judges.naturalnesses(new, rate)
  finish(args.output, report | {'seconds': time.time() - started}, prompts, waves, rate)


def _parser():
  parser = command_line.Parser(
    description=command_line.as_typed(__doc__), formatter_class=command_line.Formatter
  )
  parser.add_argument(
    '--release',
    default=release.PACKAGED,
    metavar='NAME',
    help=f'{release.PACKAGED} (part of the package), a folder, or a repository of the Hugging Face '
    'hub',
  )
  parser.add_argument('--revision', help='of the repository')
  parser.add_argument(
    '--prompt',
    action='append',
    default=[],
    type=command_line.path,
    metavar='FILE',
    dest='prompts',
    help='continue this recording, too; may be repeated',
  )
  parser.add_argument('--seconds', type=command_line.SECONDS, default=5.0, help='of new audio (5)')
  parser.add_argument(
    '--output', type=command_line.path, default=pathlib.Path('runs/demo'), help='(runs/demo)'
  )
  parser.add_argument('--seed', type=command_line.SEED, default=0, help='(0)')
  return parser


def _beginning(path: pathlib.Path, sample_rate: int) -> np.ndarray:
  """Returns the first PROMPT_SECONDS of a recording."""
  wave_T = audio.load(path, sample_rate)[: round(PROMPT_SECONDS * sample_rate)]
  if len(wave_T) < sample_rate:
    raise UserError(f'{path} lasts {len(wave_T) / sample_rate:.2f} s: give {PROMPT_SECONDS:g} s')
  return wave_T


def finish(output: pathlib.Path, report: dict, prompts: dict, waves: dict, sample_rate: int):
  """Writes spectrograms.png, where matplotlib is installed, and report.json; prints a summary."""
  if importlib.util.find_spec('matplotlib') is None:
    print(f'spectrograms.png is not drawn, which needs matplotlib: {install("plot")}')
  else:
    from .evaluations import pictures  # matplotlib, an extra

    shown = {
      f'{name}, {acoustic}': wave_T
      for acoustic, clips in waves.items()
      for name, wave_T in zip(prompts, clips)
    }
    ends = {title: len(prompts[title.split(', ')[0]]) / sample_rate for title in shown}
    pictures.save_spectrograms(output / 'spectrograms.png', shown, sample_rate, marks=ends)
  files.write_text(output / 'report.json', json.dumps(report, indent=1))
  for acoustic, row in report['paths'].items():
    numbers = ', '.join(f'{name} {value:.4g}' for name, value in row.items())
    print(f'{acoustic}: {numbers}')
  print(f'{report["seconds"]:.0f} s. Written to {output}')


if __name__ == '__main__':
  command_line.run(main)

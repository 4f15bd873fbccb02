"""Trains all stages of a recipe, continues a held-out voice, and evaluates everything.

  python -m experiments.full_run
  python -m experiments.full_run --prompt=my.wav

Writes into WORKDIR:

  prompt.wav
  continuation.wav                  by the coarse and fine language models
  continuation_soundstorm.wav       by SoundStorm, from the same semantic tokens
  reconstruction.wav                by the codec alone
  spectrograms.png, curves.png
  report.json

A killed run is resumed by the same command.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import time

import numpy as np

from audiolm_jax import audio, files
from audiolm_jax.errors import UserError

from . import evaluations, inputs, sources, workspace
from . import recipe as recipe_lib
from .cli import command_line, parallel


def main():
  parser = command_line.parser(__doc__)
  parser.add_argument(
    '--prompt', type=command_line.path, help='recording to continue (a held-out one of the corpus)'
  )
  args = parser.parse_args()
  if importlib.util.find_spec('matplotlib') is None:
    raise UserError(
      'full_run draws pictures with matplotlib, which is not installed: '
      "pip install 'matplotlib>=3.10'"
    )
  recipe = workspace.recipe_of(args)
  common = [
    f'--recipe={args.recipe}',
    f'--workdir={args.workdir}',
    *(f'--set={o}' for o in args.overrides),
  ]
  started = time.time()
  workspace.require_imports(recipe, args.workdir)
  codec = (
    workspace.load_codec(args.workdir)
    if 'soundstream' in recipe.imports
    else recipe.stages['soundstream'].model
  )
  rate = codec.sample_rate
  # Programs inherit this, and reuse what others, or an earlier run, compiled.
  os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', str(args.workdir.absolute() / 'compilation_cache')
  )
  # Reports an unreadable recording before the training, not after it.
  if args.prompt is not None:
    own_T = audio.load(args.prompt, rate)
  train_and_evaluate(recipe, args.workdir, common)
  whole_T = held_out_utterance(recipe, args.workdir, rate) if args.prompt is None else own_T
  prompt_T = whole_T[: round(recipe.evaluation.prompt_seconds * rate)]
  audio.save(args.workdir / 'prompt.wav', prompt_T, rate, overwrite=True)
  continuations = continue_prompt(recipe, args.workdir, common)
  [reconstruction] = sources.reconstructions([{'waveform': whole_T}], args.workdir)
  audio.save(args.workdir / 'reconstruction.wav', reconstruction['waveform'], rate, overwrite=True)
  draw(args.workdir, recipe, whole_T, prompt_T, reconstruction['waveform'], continuations, rate)
  finish(args.workdir, started, continuations)


def draw(
  workdir: pathlib.Path, recipe, whole_T, prompt_T, reconstruction_T, continuations, rate: int
):
  """Writes spectrograms.png and curves.png."""
  from .evaluations import pictures  # needs matplotlib, of the extra `plot`

  waves = {'original': whole_T, 'codec reconstruction': reconstruction_T}
  waves |= {
    f'{title}, from the line on': audio.load(path, rate) for title, path in continuations.items()
  }
  longest = max(len(wave_T) for wave_T in waves.values())
  marks = {title: len(prompt_T) / rate for title in waves if title.endswith('from the line on')}
  waves = {name: np.pad(wave_T, (0, longest - len(wave_T))) for name, wave_T in waves.items()}
  pictures.save_spectrograms(workdir / 'spectrograms.png', waves, rate, marks=marks)
  pictures.save_training_curves(
    workdir / 'curves.png',
    {
      name: workdir / name / 'metrics.jsonl' for name in recipe.trained if (workdir / name).is_dir()
    },
  )


def train_and_evaluate(recipe: recipe_lib.Recipe, workdir: pathlib.Path, common: list[str]):
  """Trains, encodes and evaluates; runs independent programs in parallel, two at a time."""
  readers = lambda *kinds: [
    name for name, stage in recipe.trained.items() if isinstance(stage.data, kinds)
  ]
  train = lambda names: [('train', f'--stage={name}', *common) for name in names]
  evaluate = lambda *names: [
    ('evaluate', f'--suite={name}', *common)
    for name in names
    if not evaluations.path(workdir, name).is_file()
  ]
  parallel.run(train(readers(inputs.Audio)))
  parallel.run([('encode', *common)])
  # Longest first, so that the shorter ones run one by one on the other half of the cores.
  rest = readers(inputs.Tokens, inputs.HeldOutVoices, inputs.SpokenNumbers)
  rest.sort(key=lambda name: -recipe.stages[name].train.num_steps)
  parallel.run(train(rest) + evaluate('codec', 'tokens'))
  parallel.run(evaluate('continuation', 'acoustic', 'language', 'soundstorm'))


def continue_prompt(
  recipe: recipe_lib.Recipe, workdir: pathlib.Path, common: list[str]
) -> dict[str, pathlib.Path]:
  """Continues WORKDIR/prompt.wav by each acoustic path of the recipe; returns files by title."""
  paths = {'continuation': ('autoregressive', workdir / 'continuation.wav')}
  if 'soundstorm' in recipe.stages:
    paths['SoundStorm continuation'] = ('soundstorm', workdir / 'continuation_soundstorm.wav')
  for acoustic, path in paths.values():
    parallel.run(
      [
        (
          'generate',
          *common,
          f'--acoustic={acoustic}',
          f'--prompt={workdir / "prompt.wav"}',
          f'--seconds={recipe.evaluation.seconds}',
          f'--output={workdir}',
          '--overwrite',
        )
      ]
    )
    os.replace(workdir / 'prompt_continuation.wav', path)
  return {title: path for title, (_, path) in paths.items()}


def held_out_utterance(recipe: recipe_lib.Recipe, workdir: pathlib.Path, rate: int) -> np.ndarray:
  """Returns the first held-out prompt with its true continuation, at `rate` Hz.

  Raises:
    UserError: if no held-out utterance is long enough.
  """
  evaluation = dataclasses.replace(recipe.evaluation, num_prompts=1)
  [example] = sources.prompts(dataclasses.replace(recipe, evaluation=evaluation), workdir, rate)
  return example['waveform']


def finish(workdir: pathlib.Path, started: float, continuations: dict[str, pathlib.Path]):
  """Writes report.json, and prints the tables and the names of the files."""
  report = evaluations.load(workdir)
  seconds = round(time.time() - started)
  files.write_text(
    workdir / 'report.json', json.dumps({**report, 'seconds_of_this_run': seconds}, indent=1)
  )
  print(command_line.printable_lines(evaluations.table(report)))
  names = ['prompt.wav', *(path.name for path in continuations.values()), 'reconstruction.wav']
  print(f'\n{seconds} s. In {workdir}: {", ".join(names)},')
  print('spectrograms.png, curves.png, report.json')


if __name__ == '__main__':
  command_line.run(main)

"""Trains every stage of a recipe, continues a voice that none of them has heard, and measures all
of it.

  python -m experiments.full_run
  python -m experiments.full_run --prompt=my.wav

Writes into WORKDIR: prompt.wav; continuation.wav (by the coarse and fine language models) and
continuation_soundstorm.wav (SoundStorm in their place, the same semantic tokens);
reconstruction.wav (the codec alone), spectrograms.png, curves.png and report.json. Killed and
started again, it goes on where it was.
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

from . import command_line, evaluations, inputs, programs, sources, workspace
from . import recipe as recipe_lib


def main():
  parser = workspace.parser(__doc__)
  parser.add_argument(
    '--prompt', type=command_line.path, help='continue this recording, not one of the corpus'
  )
  args = parser.parse_args()
  if importlib.util.find_spec('matplotlib') is None:
    raise UserError(
      "full_run draws pictures, by matplotlib, which is not installed: pip install 'matplotlib>=3.10'"
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
  # Inherited by the programs: what one has compiled, another (or the next start) need not compile
  # again.
  os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', str(args.workdir.absolute() / 'compilation_cache')
  )
  # a recording that cannot be read is said now, not in a quarter of an hour
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
  from . import pictures  # matplotlib, which only the extra `plot` installs

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
  """Trains, encodes and measures; what does not need one another runs side by side, each on a share
  of the cores.
  """
  readers = lambda *kinds: [
    name for name, stage in recipe.trained.items() if isinstance(stage.data, kinds)
  ]
  train = lambda names: [('train', f'--stage={name}', *common) for name in names]
  evaluate = lambda *names: [
    ('evaluate', f'--suite={name}', *common)
    for name in names
    if not evaluations.path(workdir, name).is_file()
  ]
  programs.run(train(readers(inputs.Audio)))
  programs.run([('encode', *common)])
  # The longest first; the others share the other half of the cores.
  rest = readers(inputs.Tokens, inputs.HeldOutVoices, inputs.SpokenNumbers)
  rest.sort(key=lambda name: -recipe.stages[name].train.num_steps)
  programs.run(train(rest) + evaluate('codec', 'tokens'))
  programs.run(evaluate('continuation', 'acoustic', 'language', 'soundstorm'))


def continue_prompt(
  recipe: recipe_lib.Recipe, workdir: pathlib.Path, common: list[str]
) -> dict[str, pathlib.Path]:
  """Continues WORKDIR/prompt.wav by every acoustic path that the recipe has; returns the files by
  title.
  """
  paths = {'continuation': ('autoregressive', workdir / 'continuation.wav')}
  if 'soundstorm' in recipe.stages:
    paths['SoundStorm continuation'] = ('soundstorm', workdir / 'continuation_soundstorm.wav')
  for acoustic, path in paths.values():
    programs.run(
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
  """Returns the first held-out prompt of the evaluation, its true continuation included, at `rate`.

  Raises ValueError where no held-out utterance is long enough.
  """
  evaluation = dataclasses.replace(recipe.evaluation, num_prompts=1)
  [example] = sources.prompts(dataclasses.replace(recipe, evaluation=evaluation), workdir, rate)
  return example['waveform']


def finish(workdir: pathlib.Path, started: float, continuations: dict[str, pathlib.Path]):
  """Writes report.json, prints the table and where things are."""
  report = evaluations.load(workdir)
  seconds = round(time.time() - started)
  files.write_text(
    workdir / 'report.json', json.dumps({**report, 'seconds_of_this_run': seconds}, indent=1)
  )
  print(workspace.printable_lines(evaluations.table(report)))
  names = ['prompt.wav', *(path.name for path in continuations.values()), 'reconstruction.wav']
  print(f'\n{seconds} s. In {workdir}: {", ".join(names)},')
  print('spectrograms.png, curves.png, report.json')


if __name__ == '__main__':
  workspace.run(main)

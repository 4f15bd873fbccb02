"""Generates audio with the models of a workdir.

  python -m experiments.generate --prompt=voice.wav --seconds=7 --output=out/      continues it
  python -m experiments.generate --mode=acoustic --prompt=voice.wav --output=out/  repeats its words
  python -m experiments.generate --mode=unconditional --seconds=10 --output=out/
  python -m experiments.generate --acoustic=soundstorm --prompt=voice.wav --output=out/

Several --prompt flags make one batch. SoundStorm replaces the coarse and fine stages. Temperatures
and filters are fields of the recipe, such as --set sampling.semantic.temperature=0.6,
--set sampling.coarse.top_k=50, --set sampling.soundstorm.iterations=(8,1).
"""

import argparse
import pathlib
import sys

import jax
import numpy as np

from audiolm_jax import audio, files, generation
from audiolm_jax.codec import Codec
from audiolm_jax.errors import UserError

from . import command_line, workspace
from . import recipe as recipe_lib

MODES = ('continuation', 'acoustic', 'unconditional')


def main():
  args = _parser().parse_args()
  recipe = workspace.recipe_of(args, writes=False)
  targets = check(args)
  models = workspace.load_models(args.workdir)
  say_missing_levels(args, recipe, models)
  codec = models.tokenizer.codec
  prompts = [load_prompt(path, codec) for path in args.prompts]
  waves = generate(args, recipe, models, prompts)
  args.output.mkdir(parents=True, exist_ok=True)
  for path, wave_T in zip(targets, waves, strict=True):
    audio.save(path, wave_T, codec.sample_rate, overwrite=args.overwrite)
    print(files.printable(path))


def _parser() -> argparse.ArgumentParser:
  parser = workspace.parser(__doc__)
  parser.add_argument(
    '--mode', default='continuation', help=f'one of: {", ".join(MODES)} (continuation)'
  )
  parser.add_argument(
    '--acoustic',
    default='autoregressive',
    help=f'one of: {", ".join(generation.ACOUSTIC)} (autoregressive)',
  )
  parser.add_argument(
    '--prompt', action='append', default=[], type=command_line.path, metavar='FILE', dest='prompts'
  )
  parser.add_argument('--seconds', type=command_line.SECONDS, default=7.0, help='of new audio (7)')
  parser.add_argument(
    '--count', type=command_line.COUNT, default=1, help='number of unconditional clips (1)'
  )
  parser.add_argument('--output', type=command_line.path, required=True, metavar='FOLDER')
  parser.add_argument('--overwrite', action='store_true', help='replace existing files')
  parser.add_argument('--seed', type=command_line.SEED, default=0, help='of sampling (0)')
  return parser


def check(args: argparse.Namespace) -> list[pathlib.Path]:
  """Returns the files to write, one per row.

  Raises:
    UserError: for wrong flags, missing prompts, or existing files.
  """
  if args.mode not in MODES:
    raise UserError(f'--mode={args.mode}: choose one of {", ".join(MODES)}')
  if args.acoustic not in generation.ACOUSTIC:
    raise UserError(f'--acoustic={args.acoustic}: choose one of {", ".join(generation.ACOUSTIC)}')
  if (args.mode == 'unconditional') == bool(args.prompts):
    raise UserError(
      'continuation and acoustic need at least one --prompt=FILE; unconditional takes none'
    )
  if missing := [str(path) for path in args.prompts if not path.is_file()]:
    raise UserError(f'--prompt: no such file: {", ".join(missing)}')
  stems = [path.stem for path in args.prompts] or [f'{index:03d}' for index in range(args.count)]
  if len(set(stems)) < len(stems):
    raise UserError(
      f'prompts share a name, so their outputs would too: {sorted(stems)}; rename one'
    )
  targets = [args.output / f'{stem}_{args.mode}.wav' for stem in stems]
  command_line.prove_files(targets, '--output', overwrite=args.overwrite)
  return targets


def load_prompt(path: pathlib.Path, codec: Codec) -> np.ndarray:
  """Returns a prompt [T] at the codec's rate.

  Raises:
    UserError: if it is shorter than a codec frame.
  """
  prompt_T = audio.load(path, codec.sample_rate)
  if len(prompt_T) < codec.hop_length:
    raise UserError(
      f'{path} has {len(prompt_T)} samples at {codec.sample_rate} Hz, less than one codec '
      f'frame of {codec.hop_length}: give about 3 seconds'
    )
  return prompt_T


def say_missing_levels(
  args: argparse.Namespace, recipe: recipe_lib.Recipe, models: generation.Models
):
  """Warns on stderr if only coarse levels are made, because the fine stage is not trained."""
  if (
    args.acoustic == 'autoregressive'
    and models.coarse is not None
    and models.fine is None
    and 'fine' in recipe.stages
  ):
    made, total = generation.num_levels(models), models.tokenizer.codec.num_quantizers
    remedy = command_line.how_to_make('fine', args.workdir)
    print(
      f'the fine stage is missing: {made} of {total} levels are made, which sounds coarse; '
      f'for all levels, {remedy}',
      file=sys.stderr,
    )


def generate(
  args, recipe: recipe_lib.Recipe, models: generation.Models, prompts: list[np.ndarray]
) -> list[np.ndarray]:
  """Returns one waveform [T] per prompt, or `--count` waveforms without prompts."""
  key = jax.random.key(args.seed)
  codec = models.tokenizer.codec
  options = dict(
    sampling=recipe.sampling, carry_seconds=recipe.evaluation.carry_seconds, acoustic=args.acoustic
  )
  if args.mode == 'unconditional':
    result = generation.generate_unconditional(models, key, args.count, args.seconds, **options)
    return list(np.asarray(result.wave_BT))
  prompt_BT, num_samples_B = audio.stacked(prompts)
  new = 0
  if args.mode == 'continuation':
    result = generation.continue_audio(
      models, key, prompt_BT, num_samples_B, seconds=args.seconds, **options
    )
    new = round(args.seconds * codec.sample_rate)
  else:
    semantic_BS, _ = models.tokenizer.encode(prompt_BT, num_samples_B)
    result = generation.generate_acoustics(models, key, semantic_BS, **options)
  # Rows end with their last whole frame, before the padding, and at the requested length.
  ends_B = np.minimum(result.num_frames_B * codec.hop_length, num_samples_B + new)
  return [np.asarray(row_T)[:end] for row_T, end in zip(result.wave_BT, ends_B, strict=True)]


if __name__ == '__main__':
  workspace.run(main)

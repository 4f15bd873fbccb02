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

from audiolm_jax.errors import UserError

from . import command_line

MODES = ('continuation', 'acoustic', 'unconditional')
ACOUSTIC = ('autoregressive', 'soundstorm')  # those of audiolm_jax.generation, which imports jax


def main():
  args = _parser().parse_args()
  targets = check(args)
  from . import clips  # imports jax, which takes seconds: errors and --help need not wait for it

  clips.make(args, targets)


def _parser() -> argparse.ArgumentParser:
  parser = command_line.parser(__doc__, buckets=True)
  parser.add_argument(
    '--mode', default='continuation', help=f'one of: {", ".join(MODES)} (continuation)'
  )
  parser.add_argument(
    '--acoustic', default='autoregressive', help=f'one of: {", ".join(ACOUSTIC)} (autoregressive)'
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
  if args.acoustic not in ACOUSTIC:
    raise UserError(f'--acoustic={args.acoustic}: choose one of {", ".join(ACOUSTIC)}')
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


if __name__ == '__main__':
  command_line.run(main)

"""Generates audio with the models of a workdir.

  python -m experiments.generate --prompt=voice.wav --seconds=7 --output=out/      continues it
  python -m experiments.generate --release=speech --prompt=voice.wav --output=out/  as released
  python -m experiments.generate --mode=acoustic --prompt=voice.wav --output=out/  repeats its words
  python -m experiments.generate --mode=unconditional --seconds=10 --output=out/
  python -m experiments.generate --acoustic=soundstorm --prompt=voice.wav --output=out/
  python -m experiments.generate --text="slow piano" --text="fast flute" --seconds=30 --output=out/
  python -m experiments.generate --text-file=story.txt --seconds=60 --output=out/
  python -m experiments.generate --text="fast flute" --melody=hum.wav --output=out/

Several --prompt or --text flags make one batch. SoundStorm replaces the coarse and fine stages.
Texts need the models of a recipe for music. A text file is a story, one text per line: every
--story_seconds the next text begins. A melody is hummed, sung or played alone. Temperatures and
filters are fields of the recipe, such as
--set sampling.semantic.temperature=0.6, --set sampling.coarse.top_k=50,
--set sampling.soundstorm.iterations=(8,1).
"""

import argparse
import pathlib

from audiolm_jax import stories as story_checks
from audiolm_jax.errors import UserError

from .cli import command_line

MAX_TEXT_FILE_BYTES = 65_536
MODES = ('continuation', 'acoustic', 'unconditional')
ACOUSTIC = ('autoregressive', 'soundstorm')  # those of audiolm_jax.generation, which imports jax


def main():
  args = _parser().parse_args()
  stories = read_stories(args)
  targets = check(args, stories)
  command_line.check_models(args)
  from .cli import clips  # imports jax, which takes seconds: errors and --help need not wait for it

  clips.make(args, targets, stories)


def _parser() -> argparse.ArgumentParser:
  parser = command_line.parser(__doc__, buckets=True)
  command_line.add_release(parser)
  parser.add_argument(
    '--mode', default='continuation', help=f'one of: {", ".join(MODES)} (continuation)'
  )
  parser.add_argument(
    '--acoustic', default='autoregressive', help=f'one of: {", ".join(ACOUSTIC)} (autoregressive)'
  )
  parser.add_argument(
    '--prompt', action='append', default=[], type=command_line.path, metavar='FILE', dest='prompts'
  )
  parser.add_argument(
    '--text', action='append', default=[], metavar='TEXT', dest='texts', help='describes music'
  )
  parser.add_argument(
    '--text-file', type=command_line.path, metavar='FILE', help='texts of a story, one per line'
  )
  parser.add_argument(
    '--melody', type=command_line.path, metavar='FILE', help='recording of a melody, with --text'
  )
  parser.add_argument(
    '--story_seconds',
    type=command_line.SECONDS,
    default=story_checks.SEGMENT_SECONDS,
    help=f'of music for each text of a story ({story_checks.SEGMENT_SECONDS:g})',
  )
  parser.add_argument(
    '--candidates',
    type=command_line.COUNT,
    default=1,
    help='number of clips made for each text, of which the most similar to the text is kept (1)',
  )
  parser.add_argument(
    '--guidance',
    type=command_line.GUIDANCE,
    default=1.0,
    help='strength of the classifier-free guidance by texts; 1 is off (1)',
  )
  parser.add_argument('--seconds', type=command_line.SECONDS, default=7.0, help='of new audio (7)')
  parser.add_argument(
    '--count', type=command_line.COUNT, default=1, help='number of unconditional clips (1)'
  )
  parser.add_argument('--output', type=command_line.path, required=True, metavar='FOLDER')
  parser.add_argument('--overwrite', action='store_true', help='replace existing files')
  parser.add_argument('--seed', type=command_line.SEED, default=0, help='of sampling (0)')
  return parser


def read_stories(args: argparse.Namespace) -> list[list[str]]:
  """Returns the texts of each row of --text and --text-file; [] without these flags.

  Raises:
    UserError: for both flags at once, and files that are no texts.
  """
  if args.text_file is None:
    return [[text] for text in args.texts]
  if args.texts:
    raise UserError('--text and --text-file cannot be combined: put all texts into the file')
  return [_lines(args.text_file)]


def _lines(path: pathlib.Path) -> list[str]:
  if not path.is_file():
    raise UserError(f'--text-file: no such file: {path}')
  if (size := path.stat().st_size) > MAX_TEXT_FILE_BYTES:
    raise UserError(
      f'--text-file={path} has {size:,} bytes, at most {MAX_TEXT_FILE_BYTES:,} are read'
    )
  try:
    lines = path.read_bytes().decode().splitlines()
  except UnicodeDecodeError as error:
    raise UserError(f'--text-file={path} is not UTF-8 text ({error.reason}): save it so') from error
  if not (texts := [line.strip() for line in lines if line.strip()]):
    raise UserError(f'--text-file={path} has no text: write one per line')
  return texts


def check(args: argparse.Namespace, stories: list[list[str]]) -> list[pathlib.Path]:
  """Returns the files to write, one per row.

  Raises:
    UserError: for wrong flags, missing prompts, or existing files.
  """
  if args.mode not in MODES:
    raise UserError(f'--mode={args.mode}: choose one of {", ".join(MODES)}')
  if args.acoustic not in ACOUSTIC:
    raise UserError(f'--acoustic={args.acoustic}: choose one of {", ".join(ACOUSTIC)}')
  if stories:
    if args.prompts or args.mode != MODES[0] or args.count != 1:
      raise UserError('--text and --text-file take no --prompt, --mode and --count: leave them out')
    story_checks.check(stories, args.seconds, args.story_seconds)
  elif args.guidance != 1 or args.candidates != 1:
    raise UserError('--guidance and --candidates need texts: give --text or --text-file')
  elif args.melody is not None:
    raise UserError('--melody needs a text: give --text or --text-file')
  elif (args.mode == 'unconditional') == bool(args.prompts):
    raise UserError(
      'continuation and acoustic need at least one --prompt=FILE; unconditional takes none'
    )
  if args.melody is not None and not args.melody.is_file():
    raise UserError(f'--melody: no such file: {args.melody}')
  if missing := [str(path) for path in args.prompts if not path.is_file()]:
    raise UserError(f'--prompt: no such file: {", ".join(missing)}')
  count = len(stories) or args.count
  stems = [path.stem for path in args.prompts] or [f'{index:03d}' for index in range(count)]
  if len(set(stems)) < len(stems):
    raise UserError(
      f'prompts share a name, so their outputs would too: {sorted(stems)}; rename one'
    )
  kind = 'text' if stories else args.mode
  targets = [args.output / f'{stem}_{kind}.wav' for stem in stems]
  command_line.check_files(targets, '--output', overwrite=args.overwrite)
  return targets


if __name__ == '__main__':
  command_line.run(main)

r"""Converts a corpus into a TFDS data set with Apache Beam.

Many hosts read a few large files faster than millions of recordings.

  python -m experiments.prepare folder --root=recordings/ --output=data/
  python -m experiments.prepare librilight --root=/data/libri-light --output=/data/tfds \
    -- --direct_num_workers=8
  python -m experiments.prepare maestro --root=/data/maestro-v3.0.0 --output=/data/tfds

Flags after -- are those of Beam (--runner=DataflowRunner, ...). Train on the result with a recipe
whose corpus is `Tfds`. Needs the extra `beam`.
"""

import argparse
import os
import sys

from audiolm_jax.errors import UserError, install

from .cli import command_line


def main(arguments: list[str] | None = None):
  parser = command_line.Parser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    usage='%(prog)s [-h] --root ROOT --output OUTPUT [--num_shards N] CORPUS [-- BEAM_FLAGS ...]',
  )
  parser.add_argument('corpus', choices=('folder', 'librilight', 'maestro'))
  parser.add_argument('--root', type=command_line.path, required=True, help='folder of the audio')
  parser.add_argument(
    '--output', type=command_line.path, required=True, help='folder for the data set'
  )
  parser.add_argument('--num_shards', type=command_line.COUNT, help='shards per split (by size)')
  # Python 3.11's argparse accepts no list after flags, so Beam's flags are split off first.
  arguments = sys.argv[1:] if arguments is None else arguments
  cut = arguments.index('--') if '--' in arguments else len(arguments)
  args, beam_options = parser.parse_args(arguments[:cut]), arguments[cut + 1 :]
  if not args.root.is_dir():
    raise UserError(f'--root={args.root} is not a folder')
  command_line.check_folder(args.output, '--output')
  try:
    from audiolm_jax.data import builders
  except ImportError as error:
    raise UserError(f'{error}: {install("beam")}') from error
  kind = {
    'folder': builders.AudioFolder,
    'librilight': builders.LibriLight,
    'maestro': builders.Maestro,
  }[args.corpus]
  builder = kind(root=args.root.absolute(), data_dir=os.fspath(args.output))
  sizes = builders.prepare(builder, beam_options, num_shards=args.num_shards)
  print(
    f'{", ".join(f"{name}: {size} examples" for name, size in sizes.items())}; {builder.data_dir}'
  )


if __name__ == '__main__':
  command_line.run(main)

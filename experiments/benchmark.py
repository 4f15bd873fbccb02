"""Times what this project does beside what it is an alternative to, or has to keep up with, in one
run on one machine.

  python -m experiments.benchmark acoustic        AudioLM's coarse and fine stages, and SoundStorm in their place
  python -m experiments.benchmark codec           SoundStream beside EnCodec and DAC of `transformers`
  python -m experiments.benchmark input           what one core reads, beside what a TPU consumes
"""

import argparse

from . import command_line, workspace
from .benchmarks import acoustic, codec
from .benchmarks import input as input_benchmark

BENCHMARKS = {'acoustic': acoustic, 'codec': codec, 'input': input_benchmark}


def main():
  parser = command_line.Parser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  for name, benchmark in BENCHMARKS.items():
    benchmark.add_arguments(
      commands.add_parser(
        name,
        help=benchmark.__doc__.splitlines()[0],
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
      )
    )
  args = parser.parse_args()
  print(BENCHMARKS[args.command].run(args))


if __name__ == '__main__':
  workspace.run(main)

"""Compares the speed of parts of this project with alternatives, on one machine.

  python -m experiments.benchmark acoustic  coarse and fine language models, and SoundStorm
  python -m experiments.benchmark codec     SoundStream, and EnCodec and DAC of `transformers`
  python -m experiments.benchmark input     examples that a core reads, and that a TPU consumes
  python -m experiments.benchmark lm        train step of a language model, and of GPT-2
  python -m experiments.benchmark decode    decoding of language models, and of GPT-2
  python -m experiments.benchmark stream    first sound and gaps of streamed generation
  python -m experiments.benchmark gpu       all stages on this accelerator, in ten minutes

--help of each says what it measures.
"""

import argparse

from .benchmarks import acoustic, codec, decode, gpu, lm, stream
from .benchmarks import input as input_benchmark
from .cli import command_line

BENCHMARKS = {
  'acoustic': acoustic,
  'codec': codec,
  'input': input_benchmark,
  'lm': lm,
  'decode': decode,
  'stream': stream,
  'gpu': gpu,
}


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
  command_line.run(main)

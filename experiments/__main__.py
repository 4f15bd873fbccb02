"""Runs a program by name: `audiolm NAME` is `python -m experiments.NAME`, with the same flags."""

import importlib
import sys

from .cli import command_line

PROGRAMS = {
  'train': 'trains a stage of a recipe, or all stages',
  'encode': 'turns a corpus into token shards',
  'generate': 'continues prompts, or generates without one',
  'evaluate': 'measures a workdir on held-out voices and texts',
  'plot': 'draws the losses of a run',
  'codec': 'converts audio to .alm files and back',
  'pretrained': 'imports weights that others trained',
  'detector_clips': 'makes the training data of the detector',
  'detect': 'says whether audio was generated',
  'prepare': 'packs a corpus by Apache Beam',
  'compile': 'predicts memory and time on TPUs',
  'smoke': 'checks a machine of one chip in minutes',
  'benchmark': 'times models and input pipelines',
  'demo': 'continues voices by the released models',
  'demo_music': 'makes music from texts, and draws its spectrograms and notes',
  'serve': 'opens a web page that plays voices while they are generated',
  'export': 'makes a release of trained models',
  'full_run': 'trains all stages, continues a voice and evaluates',
}


def main(arguments: list[str] | None = None):
  """Runs the program that the first argument names, with the other arguments as its own."""
  name, *rest = (sys.argv[1:] if arguments is None else arguments) or ['--help']
  if name in ('--help', '-h'):
    print('usage: audiolm PROGRAM ...\n\nPrograms; each explains itself with --help:')
    print('\n'.join(f'  {program:16}{text}' for program, text in PROGRAMS.items()))
    return
  if name not in PROGRAMS:
    sys.exit(f'error: audiolm has no program {name!r}: choose one of {", ".join(PROGRAMS)}')
  sys.argv = [f'audiolm {name}', *rest]
  command_line.run(importlib.import_module(f'{__package__}.{name}').main)


if __name__ == '__main__':
  main()

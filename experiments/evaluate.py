"""Evaluates a trained workdir on held-out voices and texts, with baselines.

  python -m experiments.evaluate --workdir=runs/tiny
  python -m experiments.evaluate --suite=codec --lyra=lyra/
  python -m experiments.evaluate --suite=tokens --data=zerospeech2021/ --subset=dev
  python -m experiments.evaluate --suite=acoustic --recognizer=wav2vec2-base-960h/
  python -m experiments.evaluate --listening                      writes a listening test (web page)
  python -m experiments.evaluate --listening_results=answers.csv  evaluates its answers

Writes WORKDIR/evaluation/SUITE.json and pictures, and prints tables of all suites evaluated so far,
with the papers' numbers below ours. ABX, sWUGGY and sBLIMP use a synthesized twin of
ZeroSpeech 2021, unless --data names the original or a folder with Libri-Light's .item files and
LibriSpeech.
"""

import dataclasses
import importlib.util
import json
import pathlib

from audiolm_jax import storage
from audiolm_jax.errors import UserError, install
from audiolm_jax.pretrained import ctc

from . import evaluations, sources, workspace
from . import recipe as recipe_lib
from .cli import command_line
from .evaluations import listening, lyra, paper


def main():
  parser = command_line.parser(__doc__, buckets=True)
  parser.add_argument(
    '--suite', default='all', help=f'all, or one of: {", ".join(evaluations.SUITES)} (all)'
  )
  parser.add_argument(
    '--data',
    type=command_line.path,
    metavar='FOLDER',
    help='of ZeroSpeech 2021, or of Libri-Light items and LibriSpeech (the synthesized twin)',
  )
  parser.add_argument(
    '--subset',
    default='dev',
    help='part of --data: dev or test, or of Libri-Light such as dev-clean (dev)',
  )
  parser.add_argument(
    '--recognizer',
    type=command_line.path,
    metavar='FOLDER',
    help='of a CTC model, to measure word error rates, too (none)',
  )
  parser.add_argument(
    '--lyra',
    type=command_line.path,
    metavar='FOLDER',
    help="of Lyra V2's TFLite models, to compare with the codec (none)",
  )
  parser.add_argument(
    '--listening',
    nargs='?',
    type=command_line.path,
    const=False,
    metavar='FOLDER',
    help='write a listening test instead (WORKDIR/listening)',
  )
  parser.add_argument(
    '--listening_results',
    action='append',
    default=[],
    type=command_line.path,
    metavar='FILE',
    help='answers that the page of the listening test saved as CSV; may be repeated',
  )
  args = parser.parse_args()
  # An evaluation on other clips, such as those of MusicCaps, leaves the corpus of the workdir.
  recipe = workspace.recipe_of(args, writes=False)
  if args.listening is not None or args.listening_results:
    listen(recipe, args)
    return
  if args.data:
    settings = dataclasses.replace(recipe.evaluation, data=str(args.data), subset=args.subset)
    recipe = dataclasses.replace(recipe, evaluation=settings)
    sources.benchmark(recipe, args.workdir)  # refuses a wrong folder before any computation
  if args.recognizer:
    ctc.from_folder(str(args.recognizer))  # refuses a folder without a recognizer
    settings = dataclasses.replace(recipe.evaluation, recognizer=str(args.recognizer))
    recipe = dataclasses.replace(recipe, evaluation=settings)
  if args.lyra:
    lyra.check(str(args.lyra))
    settings = dataclasses.replace(recipe.evaluation, lyra=str(args.lyra))
    recipe = dataclasses.replace(recipe, evaluation=settings)
  if args.suite not in ('all', *evaluations.SUITES):
    raise UserError(f'--suite={args.suite}: choose all, or one of {", ".join(evaluations.SUITES)}')
  names = list(evaluations.SUITES) if args.suite == 'all' else [args.suite]
  with workspace.progress(len(names), 'evaluate', 'suite') as bar:
    for name in names:
      result = evaluations.SUITES[name](recipe, args.workdir)
      storage.write_text(evaluations.path(args.workdir, name), json.dumps(result, indent=1))
      draw(result, evaluations.path(args.workdir, name).with_suffix('.png'))
      bar.update()
  print(command_line.printable_lines(evaluations.table(evaluations.load(args.workdir))))
  print(f'written to {args.workdir}/evaluation')


def draw(result: dict, path: pathlib.Path):
  """Draws the trade-off of tokens, if `result` has it; without matplotlib, prints a hint."""
  if 'trade_off' not in result:
    return
  if importlib.util.find_spec('matplotlib') is None:
    print(f'{path} is not drawn, because matplotlib is missing: {install("plot")}')
    return
  from .evaluations import pictures  # matplotlib is an extra

  pictures.save_token_comparison(
    path, result['trade_off']['rows'], paper.TABLES['tokens, trade_off'].rows
  )


def listen(recipe: recipe_lib.Recipe, args):
  """Writes a listening test, or evaluates its answers."""
  if args.listening is not None:
    if storage.in_bucket(args.workdir) and not args.listening:
      raise UserError('give a folder on a disk for the page: --listening=FOLDER')
    folder = args.listening or args.workdir / 'listening'
    command_line.check_folder(folder, '--listening')
    key = listening.build(args.workdir, folder, seed=recipe.evaluation.seed)
    print(
      f'{folder}/index.html: {len(key["clips"])} clips. '
      f'Keep {args.workdir / listening.KEY}: it is the key to the answers'
    )
  if args.listening_results:
    result = listening.analyse(args.workdir, args.listening_results)
    path = evaluations.path(args.workdir, 'listening')
    storage.write_text(path, json.dumps(result, indent=1))
    print(command_line.printable_lines(evaluations.table({'listening': result})))
    print(f'written to {path}')


if __name__ == '__main__':
  command_line.run(main)

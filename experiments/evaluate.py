"""Measures a trained workdir on held-out voices and texts, beside baselines.

  python -m experiments.evaluate --workdir=runs/tiny
  python -m experiments.evaluate --suite=codec --lyra=lyra/
  python -m experiments.evaluate --suite=tokens --data=zerospeech2021/ --subset=dev
  python -m experiments.evaluate --suite=acoustic --recognizer=wav2vec2-base-960h/
  python -m experiments.evaluate --listening                          a listening test, as a static web page
  python -m experiments.evaluate --listening_results=answers.csv      what its answers tell

Writes WORKDIR/evaluation/SUITE.json, and SUITE.png where a picture tells something, and prints a
table of all suites that are there, the papers' numbers below ours. ABX, sWUGGY and sBLIMP are
measured on a synthesized twin of ZeroSpeech 2021 unless --data names the real one (or a folder with
Libri-Light's .item files and LibriSpeech).
"""

import dataclasses
import importlib.util
import json
import pathlib

from audiolm_jax import files
from audiolm_jax.errors import UserError, install
from audiolm_jax.pretrained import ctc

from . import command_line, evaluations, sources, workspace
from . import recipe as recipe_lib
from .evaluations import listening, lyra, paper


def main():
  parser = workspace.parser(__doc__)
  parser.add_argument(
    '--suite', default='all', help=f'all, or one of: {", ".join(evaluations.SUITES)} (all)'
  )
  parser.add_argument(
    '--data',
    type=command_line.path,
    metavar='FOLDER',
    help='of ZeroSpeech 2021, or of Libri-Light (the twin)',
  )
  parser.add_argument(
    '--subset',
    default='dev',
    help='of --data: dev or test, or as dev-clean for item files alone (dev)',
  )
  parser.add_argument(
    '--recognizer',
    type=command_line.path,
    metavar='FOLDER',
    help='of a CTC model that judges words, too (none)',
  )
  parser.add_argument(
    '--lyra',
    type=command_line.path,
    metavar='FOLDER',
    help="of Lyra V2's TFLite models, measured beside the codec (none)",
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
    help='a CSV file that the page of the listening test saved; may be repeated',
  )
  args = parser.parse_args()
  recipe = workspace.recipe_of(args)
  if args.listening is not None or args.listening_results:
    listen(recipe, args)
    return
  if args.data:
    settings = dataclasses.replace(recipe.evaluation, data=str(args.data), subset=args.subset)
    recipe = dataclasses.replace(recipe, evaluation=settings)
    # a folder that is not there is said before anything is measured,
    sources.benchmark(recipe, args.workdir)
  if args.recognizer:
    ctc.from_folder(str(args.recognizer))  # nor one that is none
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
      files.write_text(evaluations.path(args.workdir, name), json.dumps(result, indent=1))
      draw(result, evaluations.path(args.workdir, name).with_suffix('.png'))
      bar.update()
  print(workspace.printable_lines(evaluations.table(evaluations.load(args.workdir))))
  print(f'written to {args.workdir}/evaluation')


def draw(result: dict, path: pathlib.Path):
  """Draws what a picture tells better than a table; without matplotlib says so."""
  if 'trade_off' not in result:
    return
  if importlib.util.find_spec('matplotlib') is None:
    print(f'{path} is not drawn, which needs matplotlib: {install("plot")}')
    return
  from . import pictures  # matplotlib is an extra

  pictures.save_trade_off(path, result['trade_off']['rows'], paper.TABLES['tokens, trade_off'].rows)


def listen(recipe: recipe_lib.Recipe, args):
  """Makes a listening test, or measures the answers to one."""
  if args.listening is not None:
    folder = args.listening or args.workdir / 'listening'
    command_line.prove_folder(folder, '--listening')
    key = listening.build(args.workdir, folder, seed=recipe.evaluation.seed)
    print(
      f'{folder}/index.html: {len(key["clips"])} clips. What they are is in {args.workdir / listening.KEY}: keep it'
    )
  if args.listening_results:
    result = listening.analyse(args.workdir, args.listening_results)
    path = evaluations.path(args.workdir, 'listening')
    files.write_text(path, json.dumps(result, indent=1))
    print(workspace.printable_lines(evaluations.table({'listening': result})))
    print(f'written to {path}')


if __name__ == '__main__':
  workspace.run(main)

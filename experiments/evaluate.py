"""Measures a trained workdir on held-out voices and texts, beside baselines.

  python -m experiments.evaluate --workdir=runs/tiny
  python -m experiments.evaluate --suite=codec
  python -m experiments.evaluate --listening                          a listening test, as a static web page
  python -m experiments.evaluate --listening_results=answers.csv      what its answers tell

Writes WORKDIR/evaluation/SUITE.json and prints a table of all suites that are there.
"""

import json
import pathlib

from experiments import evaluations, workspace
from experiments import recipe as recipe_lib
from experiments.evaluations import listening


def main():
  parser = workspace.parser(__doc__)
  parser.add_argument('--suite', default='all', help=f'all, or one of: {", ".join(evaluations.SUITES)} (all)')
  parser.add_argument(
      '--listening', nargs='?', const='', metavar='FOLDER', help='write a listening test instead (WORKDIR/listening)'
  )
  parser.add_argument(
      '--listening_results', action='append', default=[], type=pathlib.Path, metavar='FILE',
      help='a CSV file that the page of the listening test saved; may be repeated',
  )
  args = parser.parse_args()
  recipe = recipe_lib.load(args.recipe, args.overrides)
  if args.listening is not None or args.listening_results:
    listen(recipe, args)
    return
  if args.suite not in ('all', *evaluations.SUITES):
    raise ValueError(f'--suite={args.suite}: choose all, or one of {", ".join(evaluations.SUITES)}')
  names = list(evaluations.SUITES) if args.suite == 'all' else [args.suite]
  with workspace.progress(len(names), 'evaluate', 'suite') as bar:
    for name in names:
      result = evaluations.SUITES[name](recipe, args.workdir)
      workspace.write_text(evaluations.path(args.workdir, name), json.dumps(result, indent=1))
      bar.update()
  print(evaluations.table(evaluations.load(args.workdir)))
  print(f'written to {args.workdir}/evaluation')


def listen(recipe: recipe_lib.Recipe, args):
  """Makes a listening test, or measures the answers to one."""
  if args.listening is not None:
    folder = pathlib.Path(args.listening or args.workdir / 'listening')
    key = listening.build(args.workdir, folder, seed=recipe.evaluation.seed)
    print(f'{folder}/index.html: {len(key["clips"])} clips. What they are is in {args.workdir / listening.KEY}: keep it')
  if args.listening_results:
    result = listening.analyse(args.workdir, args.listening_results)
    path = evaluations.path(args.workdir, 'listening')
    workspace.write_text(path, json.dumps(result, indent=1))
    print(evaluations.table({'listening': result}))
    print(f'written to {path}')


if __name__ == '__main__':
  workspace.run(main)

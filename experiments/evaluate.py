"""Measures a trained workdir on held-out voices and texts, beside baselines.

  python -m experiments.evaluate --workdir=runs/tiny
  python -m experiments.evaluate --suite=codec

Writes WORKDIR/evaluation/SUITE.json and prints a table of all suites that are there.
"""

import json

from experiments import evaluations, workspace
from experiments import recipe as recipe_lib


def main():
  parser = workspace.parser(__doc__)
  parser.add_argument('--suite', default='all', help=f'all, or one of: {", ".join(evaluations.SUITES)} (all)')
  args = parser.parse_args()
  recipe = recipe_lib.load(args.recipe, args.overrides)
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


if __name__ == '__main__':
  workspace.run(main)

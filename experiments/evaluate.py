"""Measures a trained workdir on held-out voices and texts, beside baselines; writes evaluation.json and prints a table.

  python -m experiments.evaluate --workdir=runs/tiny
  python -m experiments.evaluate --suite=codec
"""

import json
import os

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
  path = args.workdir / 'evaluation.json'
  report = json.loads(path.read_text()) if path.is_file() else {}
  with workspace.progress(len(names), 'evaluate', 'suite') as bar:
    for name in names:
      report[name] = evaluations.SUITES[name](recipe, args.workdir)
      partial = path.with_suffix('.partial')
      partial.write_text(json.dumps(report, indent=1))
      os.replace(partial, path)
      bar.update()
  print(evaluations.table(report))
  print(f'written to {path}')


if __name__ == '__main__':
  workspace.run(main)

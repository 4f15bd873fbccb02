"""The evaluation suites, a file each: what a trained workdir reaches on held-out voices and texts, beside baselines.

A suite's `measure(recipe, workdir)` returns JSON: 'rows' by name, each with the same columns, and facts about them.
"""

import json
import pathlib

from experiments.evaluations import codec, continuation, language, tokens

SUITES = {
    'codec': codec.measure,
    'tokens': tokens.measure,
    'language': language.measure,
    'continuation': continuation.measure,
}


def path(workdir: pathlib.Path, suite: str) -> pathlib.Path:
  return workdir / 'evaluation' / f'{suite}.json'


def load(workdir: pathlib.Path) -> dict:
  """Returns the results that are there, by suite."""
  return {name: json.loads(path(workdir, name).read_text()) for name in SUITES if path(workdir, name).is_file()}


def table(report: dict) -> str:
  """Returns the report as plain text, one block a suite."""
  lines = []
  for suite, content in report.items():
    rows = content['rows']
    columns = list(next(iter(rows.values())))
    width = max(len(name) for name in rows) + 2
    facts = ', '.join(f'{name} {_cell(value)}' for name, value in content.items() if name not in ('rows', 'perplexity'))
    lines += [f'\n{suite} ({facts})' if facts else f'\n{suite}']
    lines += [' ' * width + ''.join(f'{column:>18}' for column in columns)]
    lines += [f'{name:<{width}}' + ''.join(f'{_cell(row[c]):>18}' for c in columns) for name, row in rows.items()]
    if 'perplexity' in content:
      lines += ['codebook perplexity by level: ' + ' '.join(f'{value:.0f}' for value in content['perplexity'])]
  return '\n'.join(lines)


def _cell(value) -> str:
  if value is None:
    return '-'
  if isinstance(value, (list, tuple)):
    return ' '.join(map(str, value)) or 'nothing'
  return f'{value:.3f}' if isinstance(value, float) else str(value)

"""The evaluation suites, a file each: what a trained workdir reaches on held-out voices and texts, beside baselines.

A suite's `measure(recipe, workdir)` returns JSON: 'rows' by name, each with the same columns, and facts about them.
"""

import json
import pathlib

from experiments.evaluations import acoustic, codec, continuation, detection, language, soundstorm, tokens

SUITES = {
    'codec': codec.measure,
    'tokens': tokens.measure,
    'language': language.measure,
    'soundstorm': soundstorm.measure,
    'acoustic': acoustic.measure,
    'continuation': continuation.measure,
    'detection': detection.measure,
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
    if not content['rows']:  # its stage was not trained
      continue
    facts = ', '.join(f'{name} {_cell(value)}' for name, value in content.items() if not isinstance(value, (dict, list)))
    lines += [f'\n{suite} ({facts})' if facts else f'\n{suite}', *_block(content['rows'])]
    if 'perplexity' in content:
      lines += ['codebook perplexity by level: ' + ' '.join(f'{value:.0f}' for value in content['perplexity'])]
    if over_time := content.get('similarity_over_time'):
      lines += ['similarity to the prompt', *_block({name: _seconds(values) for name, values in over_time.items()})]
  return '\n'.join(lines)


def _block(rows: dict) -> list[str]:
  """Returns a line of the columns' names, and one for each row; a row may have fewer columns than the longest."""
  columns = list(max(rows.values(), key=len))
  width = max(len(name) for name in rows) + 2
  cells = lambda row: ''.join(f'{_cell(row.get(column, "")):>18}' for column in columns)
  heading = ' ' * width + ''.join(f'{column:>18}' for column in columns)
  return [heading, *(f'{name:<{width}}{cells(row)}' for name, row in rows.items())]


def _seconds(values: list[float]) -> dict[str, float]:
  return {f'second {n}': value for n, value in enumerate(values, 1)}


def _cell(value) -> str:
  return f'{value:.3f}' if isinstance(value, float) else str(value)

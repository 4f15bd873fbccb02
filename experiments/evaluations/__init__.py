"""The evaluation suites, a file each: what a trained workdir reaches on held-out voices and texts,
beside baselines.

A suite's `measure(recipe, workdir)` returns JSON: 'rows' by name, each with the same columns, and
facts about them; a fact that has 'rows' of its own is a table too; 'left_out' names what was not
measured, with the reason. The papers' numbers for a table are in `paper`.
"""

import pathlib
from collections.abc import Iterator

from audiolm_jax import files
from audiolm_jax.errors import UserError

from . import acoustic, codec, continuation, detection, language, paper, soundstorm, tokens

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
  """Returns the results that are there, by suite; ValueError where one is damaged."""
  found = {}
  for name in SUITES:
    if path(workdir, name).is_file():
      found[name] = files.read_json(path(workdir, name), 'delete it and measure again')
      rows = found[name].get('rows')
      if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise UserError(f'{path(workdir, name)} holds no rows: delete it and measure again')
  return found


def table(report: dict) -> str:
  """Returns the report as plain text: a block for each suite and each of its parts, the paper's
  rows below ours.
  """
  lines = []
  for title, content in _parts(report):
    plain = {name: value for name, value in content.items() if not isinstance(value, (dict, list))}
    facts = ', '.join(f'{name} {_cell(value)}' for name, value in plain.items())
    known = paper.TABLES.get(title)
    theirs = {} if known is None else {f'paper: {name}': row for name, row in known.rows.items()}
    lines += [f'\n{title} ({facts})' if facts else f'\n{title}', *_block(content['rows'] | theirs)]
    if known is not None:
      lines += [f'paper: {known.source}']
    if 'perplexity' in content:
      lines += [
        'codebook perplexity by level: '
        + ' '.join(f'{value:.0f}' for value in content['perplexity'])
      ]
    if over_time := content.get('similarity_over_time'):
      lines += [
        'similarity to the prompt',
        *_block({name: _seconds(values) for name, values in over_time.items()}),
      ]
  left_out = [
    f'{suite}: {name} left out: {reason}'
    for suite, content in report.items()
    for name, reason in content.get('left_out', {}).items()
  ]
  return '\n'.join([*lines, *(['', *left_out] if left_out else [])])


def _parts(report: dict) -> Iterator[tuple[str, dict]]:
  """Yields (title, content) of every suite, then of what it holds that has rows of its own."""
  for suite, content in report.items():
    if content['rows']:  # else its stage was not trained
      yield suite, content
    yield from (
      (f'{suite}, {name}', part)
      for name, part in content.items()
      if isinstance(part, dict) and part.get('rows')
    )


def _block(rows: dict) -> list[str]:
  """Returns a line of the columns' names, and one for each row; a row may lack columns that another
  has.
  """
  columns = list(dict.fromkeys(column for row in rows.values() for column in row))
  names = [files.printable(name) for name in rows]
  width = max(map(len, names)) + 2
  cells = lambda row: ''.join(
    f'{_cell(row.get(column, "")):>{max(18, len(column) + 2)}}' for column in columns
  )
  heading = ' ' * width + cells({column: column for column in columns})
  return [heading, *(f'{name:<{width}}{cells(row)}' for name, row in zip(names, rows.values()))]


def _seconds(values: list[float]) -> dict[str, float]:
  return {f'second {n}': value for n, value in enumerate(values, 1)}


def _cell(value) -> str:
  if value is None:
    return '-'
  if isinstance(value, (list, tuple)):
    return ' '.join(map(str, value)) or 'nothing'
  return f'{value:.3f}' if isinstance(value, float) else str(value)

"""Evaluation suites, one file each, of a trained workdir on held-out voices and texts.

A suite's `measure(recipe, workdir)` returns JSON: 'rows' by name, with the columns of a table;
'left_out', the reasons for omitted measures by name; and facts about the rows, of which those with
'rows' are further tables. The papers' numbers for a table are in `paper`.
"""

import pathlib
from collections.abc import Iterator

from audiolm_jax import files, storage
from audiolm_jax.errors import UserError

from . import (
  acoustic,
  codec,
  continuation,
  detection,
  language,
  music,
  paper,
  piano,
  soundstorm,
  tokens,
)

SUITES = {
  'codec': codec.measure,
  'tokens': tokens.measure,
  'language': language.measure,
  'soundstorm': soundstorm.measure,
  'acoustic': acoustic.measure,
  'continuation': continuation.measure,
  'music': music.measure,
  'piano': piano.measure,
  'detection': detection.measure,
}


def path(workdir: pathlib.Path, suite: str) -> pathlib.Path:
  return workdir / 'evaluation' / f'{suite}.json'


def load(workdir: pathlib.Path) -> dict:
  """Returns the existing results by suite.

  Raises:
    UserError: if one is damaged.
  """
  found = {}
  for name in SUITES:
    if path(workdir, name).is_file():
      found[name] = storage.read_json(path(workdir, name), 'delete it and measure again')
      rows = found[name].get('rows')
      if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise UserError(f'{path(workdir, name)} has no rows: delete it and measure again')
  return found


def table(report: dict) -> str:
  """Returns results as text: one table per suite and part, with the paper's rows below ours."""
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
  """Yields (title, content) of each suite, followed by its parts that have rows."""
  for suite, content in report.items():
    if content['rows']:  # none if its stage is not trained
      yield suite, content
    yield from (
      (f'{suite}, {name}', part)
      for name, part in content.items()
      if isinstance(part, dict) and part.get('rows')
    )


def _block(rows: dict) -> list[str]:
  """Returns a line of column names and one line per row; rows may lack columns."""
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

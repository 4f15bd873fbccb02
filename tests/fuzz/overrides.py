"""Every field of every recipe, and the odd values that people give to `--set`."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from experiments import recipe as recipe_lib
from experiments.cli import recipe_pages

HUGE = '1' + 30 * '0'
VALUES = (
  *('0', '1', '2', '3', '-1', '7', '64', '1000', '2147483647', '2147483648', '4294967296', HUGE),
  *('0.5', '1.0', '-0.5', '1e-30', '1e30', '1e999', '-1e999', 'nan', 'inf', '-inf', '9' * 5_000),
  *(
    '',
    ' ',
    'None',
    'none',
    'True',
    'False',
    'true',
    'null',
    'abc',
    'é',
    '\udcff',
    '日本',
    '\x1b[31m',
  ),
  *(
    '()',
    '[]',
    '{}',
    '(1,)',
    '(2, 2)',
    '(4, 4, 4, 4)',
    '(-1, 2)',
    '(1, "a")',
    '(0.1, 0.9)',
    '(nan, 1)',
  ),
  *('"x"', "'x", '1j', '0x10', '1_000', '1,5', '1 2', '--workdir=/', 'float32', 'bfloat16', 'int8'),
  *(
    'gs://bucket/x',
    'file:/x',
    '../no',
    '/dev/zero',
    '~',
    'lambda: 0',
    '__import__("os")',
    '(' * 500,
  ),
  *(
    'semantic',
    'clusters',
    'relu',
    'phones',
    'a' * 10_000,
    'x\ny',
    '\0',
    '=',
    '1=2',
    '1e400',
    '-0.0',
  ),
)


def fields(node: Any, path: str = '') -> Iterator[tuple[str, Any, Any]]:
  """Yields (path, config, value) of every field of a recipe, those of configs within it, too."""
  if dataclasses.is_dataclass(node):
    names = [field.name for field in dataclasses.fields(node) if field.init]
    pairs = [(name, getattr(node, name)) for name in names]
  else:
    pairs = node.items() if isinstance(node, dict) else []
  for name, value in pairs:
    if name == 'stages':  # of a recipe, which are named without it
      yield from fields(value)
      continue
    yield f'{path}{name}', node, value
    yield from fields(value, f'{path}{name}.')


@functools.cache
def all_fields() -> list[tuple[str, str]]:
  """Returns (recipe, path) of every field of every recipe."""
  names = recipe_pages.names()
  return [(name, path) for name in names for path, *_ in fields(recipe_lib.load(name))]

"""300 cases of `--set`: every field of every recipe, with values of every kind."""

import ast
import dataclasses
import functools
import math
import types
import typing

import numpy as np
import pytest

from audiolm_jax.errors import UserError
from experiments import recipe as recipe_lib
from tests.fuzz import battery, overrides

NUM_CASES, VALUES_EACH = 300, 2
NAME = 'overrides'


@pytest.mark.parametrize('number', range(NUM_CASES), ids=lambda number: f'{number:04d}')
def test_an_override(number, outcome):
  rng = np.random.default_rng([battery.SEED, number])
  for name, path in overrides.all_fields()[number::NUM_CASES]:
    for text in rng.choice(np.array(overrides.VALUES, object), VALUES_EACH, replace=False):
      outcome(NAME, kind_of(name, path), check(name, path, text))


recipe_of = functools.cache(recipe_lib.load)


def kind_of(name: str, path: str) -> str:
  value = node_at(recipe_of(name), path)
  return 'config' if dataclasses.is_dataclass(value) else type(value).__name__


def node_at(node, path: str):
  names = path.split('.')
  for name in ['stages', *names] if names[0] in node.stages else names:
    node = node[name] if isinstance(node, dict) else getattr(node, name)
  return node


def check(name: str, path: str, text: str) -> str:
  """Returns what came of one override, after checking that it is right."""
  before = recipe_of(name)
  got = battery.attempt(recipe_lib.load, name, [f'{path}={text}'])
  if isinstance(got, Exception):
    assert type(got) is UserError and path.rpartition('.')[2] in str(got), f'{path}={text}: {got}'
    assert len(str(got)) < 400 + 3 * len(text) + 60 * len(path.split('.')), 'no message to read'
    return 'refused'
  removed = path in before.stages and path not in got.stages  # --set fine=None
  value = None if removed else node_at(got, path)
  assert is_meant(text, value), f'{path}={text}: {value!r}'
  assert removed or is_of_type(before, path, value), f'{path}={text}: {value!r} is of another type'
  leaves = [dict((p, v) for p, _, v in overrides.fields(recipe)) for recipe in (before, got)]
  others = [p for p in leaves[0] if not path.startswith(p) and not p.startswith(path)]
  assert [leaves[0][p] for p in others] == [leaves[1][p] for p in others], 'another field changed'
  stage = path.split('.')[0]
  if stage in got.trained:  # what a config lets pass, its stage can be made of, or says why not
    battery.attempt(got.stages[stage].model.make)
  return 'taken'


def is_meant(text: str, value) -> bool:
  """Returns whether a value is what the text says, as Python reads it."""
  if isinstance(value, str):
    return value in (text, text.strip('"\''))
  if value is None:
    return text in ('None', 'none')
  literal = ast.literal_eval(text)
  literal = tuple(literal) if isinstance(literal, list) else literal
  if isinstance(value, float) and type(literal) is int:
    literal = float(literal)
  numbers = [one for one in np.ravel(np.array(value, object)) if isinstance(one, float)]
  return literal == value and type(literal) is type(value) and all(map(math.isfinite, numbers))


def is_of_type(recipe, path: str, value) -> bool:
  """Returns whether the annotation of a field allows a value."""
  parent, _, name = path.rpartition('.')
  node = node_at(recipe, parent) if parent else recipe
  kind = type(node[name]) if isinstance(node, dict) else typing.get_type_hints(type(node))[name]
  options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
  kinds = tuple(
    option if option is None else typing.get_origin(option) or option for option in options
  )
  return typing.Any in kinds or isinstance(
    value, tuple(types.NoneType if k is None else k for k in kinds)
  )


def test_counts(counts):
  counter, expected = counts.get(NAME, {}), VALUES_EACH * len(overrides.all_fields())
  if sum(counter.values()) < expected:
    pytest.skip('not all cases were run, or one has failed')
  assert sum(counter.values()) == expected > 10_000
  assert all(
    sum(n for (_, got), n in counter.items() if got == one) > 700 for one in ('taken', 'refused')
  )

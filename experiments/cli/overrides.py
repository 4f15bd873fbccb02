"""Parses `--set path.to.field=value`: sets typed fields of nested frozen configs."""

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any

from audiolm_jax.errors import UserError


def applied(node: Any, settings: Sequence[tuple[Sequence[str], str, str]]) -> Any:
  """Returns a config with fields replaced.

  Each config is made once with all its changes, so that fields that depend on one another can be
  set in any order.

  Args:
    node: frozen dataclass, or a dict of them.
    settings: path of the field, text of the value, and the whole override for errors; later ones
      win.

  Raises:
    UserError: for an unknown field, a value of another type, or one that the config refuses.
  """
  known, below = fields(node), {}
  values = dict(node) if isinstance(node, dict) else {name: getattr(node, name) for name in known}
  for (name, *rest), text, override in settings:
    if name not in known:
      raise UserError(
        f'--set {override}: {type(node).__name__} has no field {name!r}{suggestion(name, known)}; '
        f'legal fields: {", ".join(known)}'
      )
    if not rest:
      values[name] = _parsed(known[name], text, override)
      below.pop(name, None)
    elif not fields(values[name]):
      raise UserError(
        f'--set {override}: {name!r} is {values[name]!r}, a plain value without fields'
      )
    else:
      below.setdefault(name, []).append((rest, text, override))
  values |= {name: applied(values[name], inner) for name, inner in below.items()}
  try:
    return values if isinstance(node, dict) else dataclasses.replace(node, **values)
  except ValueError as error:  # a config that checks itself
    raise UserError(
      f'--set {" --set ".join(override for *_, override in settings)}: {error}'
    ) from error


def fields(node: Any) -> dict[str, Any]:
  """Returns the fields of a config and their types; a config is a dataclass or a dict."""
  if isinstance(node, dict):
    return {key: type(value) for key, value in node.items()}
  if not dataclasses.is_dataclass(node):
    return {}
  hints = typing.get_type_hints(type(node))
  return {field.name: hints[field.name] for field in dataclasses.fields(node) if field.init}


def _parsed(kind: Any, text: str, override: str) -> Any:
  """Returns `text` as a value of the annotated type `kind`."""
  options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
  if str in options and text not in ('None', 'none'):
    return text
  try:
    value = ast.literal_eval(text)
  except (
    ValueError,
    SyntaxError,
    RecursionError,
    MemoryError,
  ):  # the last two: brackets within brackets
    value = text
  for option in options:
    converted = _converted(option, value)
    if converted is not _NO_MATCH:
      return converted
  wanted = ' or '.join(getattr(option, '__name__', str(option)) for option in options)
  raise UserError(f'--set {override}: {text!r} is not of type {wanted}')


_NO_MATCH = object()


def _converted(kind: Any, value: Any) -> Any:
  """Returns a literal as the type `kind`, or _NO_MATCH: ints become floats, lists tuples; nothing
  else changes.

  A float that is not finite (1e999) is no value of any field.
  """
  if kind is types.NoneType and value is None:
    return None
  if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
    return float(value) if abs(value) < 1e300 else _NO_MATCH
  if kind in (bool, int) and type(value) is kind:
    return value
  if (typing.get_origin(kind) or kind) is tuple and isinstance(value, (tuple, list)):
    kinds = typing.get_args(kind) or (Any, ...)
    kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
    if len(kinds) != len(value):
      return _NO_MATCH
    items = tuple(
      item if one is Any else _converted(one, item) for one, item in zip(kinds, value, strict=True)
    )
    return _NO_MATCH if any(item is _NO_MATCH for item in items) else items
  return value if kind is str and isinstance(value, str) else _NO_MATCH


def suggestion(name: str, known) -> str:
  close = difflib.get_close_matches(name, list(known), n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''

"""Checks user input before any compute: fields of configs, shapes and ids of arrays.

All checks raise UserError with the name, the value and the legal values. They do not read values of
traced arrays, which are unknown until compiled code runs.

numpy and jax are imported by the checks of arrays, because programs check their flags before these
slow imports.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

from audiolm_jax.errors import UserError

LARGEST = 2**31 - 1  # steps, sizes and ids are int32 on the device


class Legal(NamedTuple):
  """Defines legal values by a text, which follows 'must be', and by a predicate."""

  text: str
  holds: Callable[[Any], bool]


def whole(low: int = 1, high: int = LARGEST) -> Legal:
  """Returns the rule of whole numbers from `low` to `high`, excluding booleans and floats."""
  text = f'of at least {low}' if high == LARGEST else f'from {low} to {high}'
  is_whole = lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool)
  inside = lambda value: is_whole(value) and low <= value <= high
  return Legal(f'a whole number {text}', inside)


def _number(text: str, inside: Callable[[float], bool]) -> Legal:
  is_number = lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool)
  # The bounds also exclude integers beyond the range of floats.
  is_finite = lambda value: -1e308 < value < 1e308
  return Legal(text, lambda value: is_number(value) and is_finite(value) and inside(value))


WHOLE = whole()
SEED = whole(0, 2**32 - 1)  # accepted by Grain, numpy and scikit-learn
NUMBER = _number('a finite number', lambda value: True)
POSITIVE = _number('a finite number above 0', lambda value: value > 0)
NOT_NEGATIVE = _number('a finite number of at least 0', lambda value: value >= 0)
ABOVE_ONE = _number('a finite number above 1', lambda value: value > 1)
SHARE = _number('from 0 to 1', lambda value: 0 <= value <= 1)
POSITIVE_SHARE = _number('above 0, and at most 1', lambda value: 0 < value <= 1)
BELOW_ONE = _number('at least 0 and below 1', lambda value: 0 <= value < 1)  # decays, dropout
# Clips are held in memory; threads cannot wait for more than 292 years.
CLIP_SECONDS = _number('above 0, and at most 86400 (a day)', lambda value: 0 < value <= 86_400)
WAIT_SECONDS = _number('above 0, and at most 1e9 (30 years)', lambda value: 0 < value <= 1e9)
BETWEEN = _number('above 0 and below 1', lambda value: 0 < value < 1)


def _is_bool(value: Any) -> bool:
  import numpy as np

  return isinstance(value, (bool, np.bool_))


FLAG = Legal('True or False', _is_bool)
TEXT = Legal('a string', lambda value: isinstance(value, str))


def _is_float_type(value: Any) -> bool:
  import jax.numpy as jnp

  try:
    return jnp.issubdtype(jnp.dtype(value), jnp.floating)
  except (TypeError, ValueError, SyntaxError):  # numpy parses what might be a record
    return False


FLOAT_TYPE = Legal("a floating-point type, such as 'float32' or 'bfloat16'", _is_float_type)


def one_of(*values: Any) -> Legal:
  """Returns the rule that accepts `values`."""
  return Legal(f'one of {", ".join(map(repr, values))}', lambda value: value in values)


def each(legal: Legal) -> Legal:
  """Returns the rule of nonempty tuples whose entries are legal."""
  is_tuple = lambda values: isinstance(values, (tuple, list)) and len(values) > 0
  holds = lambda values: is_tuple(values) and all(map(legal.holds, values))
  return Legal(f'a tuple of one or more, each {legal.text}', holds)


def optional(legal: Legal) -> Legal:
  """Returns the rule that accepts legal values and None."""
  return Legal(f'{legal.text}, or None', lambda value: value is None or legal.holds(value))


def fields(config: Any, **legal: Legal) -> None:
  """Checks fields of `config`.

  Raises:
    UserError: naming the first field whose value is illegal.
  """
  for name, rule in legal.items():
    if not rule.holds(value := getattr(config, name)):
      raise UserError(f'{name}={value!r}: must be {rule.text}')


def values(**pairs: tuple[Any, Legal]) -> None:
  """Checks arguments given as name=(value, legal).

  Raises:
    UserError: naming the first argument whose value is illegal.
  """
  for name, (value, rule) in pairs.items():
    if not rule.holds(value):
      raise UserError(f'{name}={value!r}: must be {rule.text}')


def shapes(**arrays: Any) -> None:
  """Checks that arrays have the axes in the suffix of their names: wave_BT is [B, T].

  An axis letter has the same size in all arrays of a call; a digit is the size itself. Only shapes
  are read, so the check costs nothing in compiled code.

  Raises:
    UserError: naming the first array with another shape.
  """
  import numpy as np

  known: dict[str, tuple[int, str]] = {}
  for name, array in arrays.items():
    axes, shape = name.rpartition('_')[2], np.shape(array)
    if len(shape) != len(axes):
      missing = len(shape) == len(axes) - 1 and axes[0] == 'B'
      remedy = 'add the batch axis, as in x[None]' if missing else f'must be [{", ".join(axes)}]'
      raise UserError(f'{name} has shape {shape}: {remedy}')
    for axis, size in zip(axes, shape):
      fixed = (int(axis), 'its name') if axis.isdigit() else (size, name)
      wanted, first = known.setdefault(axis, fixed)
      if size != wanted:
        raise UserError(
          f'{name} has shape {shape}: its axis {axis} is {size}, but {wanted} in {first}'
        )


def ids(name: str, array: Any, size: int, *, padding: bool = True) -> None:
  """Checks that ids are from 0 to `size` - 1; -1 is legal with `padding`.

  Traced arrays, and JAX arrays that are partly on other hosts, are not checked.

  Raises:
    UserError: naming an illegal id, or the type of an array that is not of integers.
  """
  import jax
  import numpy as np

  if isinstance(array, jax.core.Tracer):
    return
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    return
  array = np.asarray(array)
  if not np.issubdtype(array.dtype, np.integer):
    raise UserError(f'{name} is of type {array.dtype}: ids are integers')
  if not array.size:
    return
  low = -1 if padding else 0
  for value in (int(array.min()), int(array.max())):
    if not low <= value < size:
      raise UserError(
        f'{name} holds {value}, outside of 0 to {size - 1}{" and -1 (padding)" * padding}: '
        'was it made with another codebook, or another number of clusters?'
      )

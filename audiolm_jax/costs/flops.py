"""Counts floating-point operations in traced functions, and finds their largest array.

The count covers matrix products and convolutions; other operations (normalization, softmax,
activations) do not run on the matrix unit and are excluded, as usual for utilization. It reads the
jaxpr, so that loops count as often as they run, on any machine and without compiling.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax.errors import UserError
from audiolm_jax.nn import quantizer

# A scope made by `nn.block_attention.useful_scope`.
_USEFUL = re.compile(r'useful_(\d+)_of_(\d+)')


def count(function: Callable[..., Any], *args: Any) -> int:
  """Returns the number of operations of `function(*args)` over all devices.

  A multiply-add is two operations. Causal attention counts half, because the other half is masked,
  and products in a `block_attention.useful_scope` count by its share.
  A conditional counts as its most expensive branch, or as its cheapest if it fits codebooks in the
  first step. A kernel counts as its cost estimate without recomputed products.

  Args:
    function: the function.
    *args: its arguments, or their shapes.

  Raises:
    UserError: if a matrix product is in a loop without a fixed number of iterations, or a kernel
      has no cost estimate.
  """
  return count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def without_remat(config: Any) -> Any:
  """Returns a config that recomputes no activations, because that is no work of the model."""
  if hasattr(config, 'transformer'):
    parts = {name: getattr(config, name, None) for name in ('transformer', 'depth')}
    return dataclasses.replace(
      config,
      **{name: dataclasses.replace(part, remat=False) for name, part in parts.items() if part},
    )
  return dataclasses.replace(config, remat=False) if hasattr(config, 'remat') else config


def count_jaxpr(jaxpr: Any) -> int:
  """Returns the number of operations of a jaxpr; see `count`."""
  return round(_exact(jaxpr))


def _exact(jaxpr) -> Fraction | int:
  return sum(_equation(equation) for equation in jaxpr.eqns)


def largest_array(jaxpr: Any) -> jax.core.ShapedArray:
  """Returns shape and dtype of the largest array that a jaxpr computes, over all devices.

  This includes arrays in loops and calls, and arrays that the compiler may fuse away. The jaxpr has
  to compute an array.
  """
  made = list(_made(jaxpr))
  numbers = [aval for aval in made if jnp.issubdtype(aval.dtype, jnp.number)]
  return max(numbers or made, key=lambda aval: aval.size * aval.dtype.itemsize)


def _made(jaxpr) -> Iterator[jax.core.ShapedArray]:
  for equation in jaxpr.eqns:
    yield from (variable.aval for variable in equation.outvars)
    for inner in _inside(equation.params):
      yield from _made(inner)


def _equation(equation) -> Fraction | int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    return _dot(equation)
  if name == 'conv_general_dilated':
    return _convolution(equation)
  if name == 'pallas_call':
    return _kernel(params)
  if name == 'cond':
    choose = min if quantizer.FIT in str(equation.source_info.name_stack) else max
    return choose(_exact(branch.jaxpr) for branch in params['branches'])
  inner = sum(_exact(jaxpr) for jaxpr in _inside(params))
  if name == 'scan':
    return params['length'] * inner
  if name == 'while' and inner:
    raise UserError(
      'a matrix product is in a while loop with an unknown number of iterations: count one '
      'iteration instead'
    )
  if name == 'shard_map':
    return math.prod(params['mesh'].shape[axis] for axis in params['newly_manual_axes']) * inner
  return inner


def _kernel(params) -> int:
  if params['cost_estimate'] is None:
    raise UserError(f'the kernel {params["name"]!r} has no cost estimate: give pallas_call one')
  metadata = {name: params['metadata'][name] for name in params['metadata'] or ()}
  products = int(metadata.get('products', 1))
  return (
    params['cost_estimate'].flops
    * (products - int(metadata.get('recomputed_products', 0)))
    // products
  )


def _inside(params) -> Iterator[Any]:
  """Yields the jaxprs among the parameters of an equation."""
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      item = getattr(item, 'jaxpr', item)
      if hasattr(item, 'eqns'):
        yield item


def _dot(equation) -> Fraction | int:
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  operations = (
    2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
  )
  # The name stack includes the scope also in backward passes. The diagonal counts half.
  share = _USEFUL.search(str(equation.source_info.name_stack))
  return operations * Fraction(int(share[1]), int(share[2])) if share else operations


def _convolution(equation) -> int:
  """Returns the operations of a convolution without products with padding or dilation zeros.

  Backward passes have many of both.
  """
  params, out = equation.params, equation.outvars[0].aval
  left, right = (variable.aval for variable in equation.invars[:2])
  numbers = params['dimension_numbers']
  taps = 1
  for i, (low, _) in enumerate(params['padding']):
    size, window = left.shape[numbers.lhs_spec[2 + i]], right.shape[numbers.rhs_spec[2 + i]]
    starts = np.arange(out.shape[numbers.out_spec[2 + i]]) * params['window_strides'][i] - low
    position = starts[:, None] + np.arange(window) * params['rhs_dilation'][i]
    hole = params['lhs_dilation'][i]
    taps *= int(((position >= 0) & (position <= (size - 1) * hole) & (position % hole == 0)).sum())
  channels = right.shape[numbers.rhs_spec[1]]  # inputs of one group
  rows, outputs = out.shape[numbers.out_spec[0]], out.shape[numbers.out_spec[1]]
  return 2 * rows * outputs * channels * taps

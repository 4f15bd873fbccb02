"""What layers say about where their activations lie; void but within `on(mesh, rules)`, which the train step opens.

Without it XLA's partitioner tends to cut activations along their width, as the parameters are, and pays with traffic in
every layer.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

BATCH, HEADS = 'batch', 'heads'  # logical axes of activations


class _Placement(NamedTuple):
  mesh: Mesh
  rules: Mapping[str, tuple[str, ...]]


_PLACEMENT: contextvars.ContextVar[_Placement | None] = contextvars.ContextVar('placement', default=None)


@contextlib.contextmanager
def on(mesh: Mesh, rules: Mapping[str, tuple[str, ...]]) -> Iterator[None]:
  """What is traced within is placed on `mesh`; `rules` gives the mesh axes of BATCH and HEADS."""
  token = _PLACEMENT.set(_Placement(mesh, rules))
  try:
    yield
  finally:
    _PLACEMENT.reset(token)


def on_tpu() -> bool:
  """Whether what is traced now is for TPUs, there or not."""
  placement = _PLACEMENT.get()
  return placement is not None and placement.mesh.devices.flat[0].platform == 'tpu'


def batch_parts() -> int:
  """Returns into how many parts a batch is cut."""
  placement = _PLACEMENT.get()
  return 1 if placement is None else math.prod(placement.mesh.shape[axis] for axis in placement.rules[BATCH])


def by_batch(x: Shaped[Array, 'B *dims']) -> Shaped[Array, 'B *dims']:
  """Holds an activation to be cut along its batch and nothing else."""
  return _constrained(x, (BATCH,))


def whole(table: Shaped[Array, '*dims']) -> Shaped[Array, '*dims']:
  """Gathers a small parameter on every device before it is used."""
  return _constrained(table, ())


def each_part(x: Shaped[Array, '*dims']) -> Shaped[Array, 'P *dims']:
  """Gives each part of the batch a copy of its own, so that the copies' gradients are summed over devices once.

  What every layer uses would otherwise have its gradient summed over all devices in every layer.
  """
  return by_batch(jnp.broadcast_to(x, (batch_parts(), *x.shape)))


def per_device(function: Callable[..., Any], inputs: Sequence[Sequence[str | None]], output: Sequence[str | None]):
  """Returns `function` run by every device on its own part of arrays with these logical axes: for kernels, which XLA
  cannot cut. Heads that the mesh does not divide evenly stay together.
  """
  placement = _PLACEMENT.get()
  if placement is None:
    return function

  def call(*args):
    heads = {arg.shape[axes.index(HEADS)] for axes, arg in zip(inputs, args, strict=True) if HEADS in axes}
    parts = math.prod(placement.mesh.shape[axis] for axis in placement.rules[HEADS])
    rules = placement.rules if all(size % parts == 0 for size in heads) else {**placement.rules, HEADS: ()}
    local = placement._replace(rules=rules)
    return jax.shard_map(
        function, mesh=placement.mesh, in_specs=tuple(_spec(local, axes) for axes in inputs),
        out_specs=_spec(local, output), check_vma=False,
    )(*args)

  return call


def _constrained(x, axes):
  placement = _PLACEMENT.get()
  if placement is None:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(placement.mesh, _spec(placement, axes)))


def _spec(placement: _Placement, axes: Sequence[str | None]) -> PartitionSpec:
  return PartitionSpec(*(None if axis is None else placement.rules[axis] for axis in axes))

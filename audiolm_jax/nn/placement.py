"""What layers say about where their activations lie; void but within `on(mesh, rules)`, which the
train step opens.

Without it XLA's partitioner tends to cut activations along their width, as the parameters are, and
pays with traffic in every layer.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

BATCH, HEADS = 'batch', 'heads'  # logical axes of activations


class _Placement(NamedTuple):
  mesh: Mesh
  rules: Mapping[str, tuple[str, ...]]


_PLACEMENT: contextvars.ContextVar[_Placement | None] = contextvars.ContextVar(
  'placement', default=None
)


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


def unrolls_layers() -> bool:
  """Whether layers are to be unrolled, not looped over.

  On TPUs a loop copies what the backward pass needs in and out of arrays of all layers: a fifth of
  a step. On several devices of a CPU the collectives of a loop and those outside come in any order,
  and wait for one another forever (docs/log.md).
  """
  placement = _PLACEMENT.get()
  return on_tpu() or (placement is not None and placement.mesh.size > 1)


def batch_parts() -> int:
  """Returns into how many parts a batch is cut."""
  placement = _PLACEMENT.get()
  return (
    1
    if placement is None
    else math.prod(placement.mesh.shape[axis] for axis in placement.rules[BATCH])
  )


def by_batch(x: Shaped[Array, 'B *dims']) -> Shaped[Array, 'B *dims']:
  """Holds an activation to be cut along its batch and nothing else."""
  return _constrained(x, (BATCH,))


def whole(table: Shaped[Array, '*dims']) -> Shaped[Array, '*dims']:
  """Gathers a small parameter on every device before it is used."""
  return _constrained(table, ())


def each_part(x_H: Shaped[Array, 'H *dims']) -> Shaped[Array, 'P H *dims']:
  """Gives each part of the batch a copy of what is per head.

  So the copies' gradients are summed over devices once. What every layer uses would otherwise have
  its gradient summed over all devices in every layer.
  """
  return _constrained(jnp.broadcast_to(x_H, (batch_parts(), *x_H.shape)), (BATCH, HEADS))


def per_device(
  function: Callable[..., Array], inputs: Sequence[Sequence[str | None]]
) -> Callable[..., Array]:
  """Returns `function` run by every device on its own part of arrays with these logical axes: for
  kernels, which XLA cannot cut. The result has the shape and the axes of the first input.
  """
  placement = _PLACEMENT.get()
  if placement is None:
    return function

  def call(*args):
    specs = tuple(_spec(placement, axes, arg.shape) for axes, arg in zip(inputs, args, strict=True))
    return jax.shard_map(
      function, mesh=placement.mesh, in_specs=specs, out_specs=specs[0], check_vma=False
    )(*args)

  return call


def _constrained(x, axes):
  placement = _PLACEMENT.get()
  if placement is None:
    return x
  return jax.lax.with_sharding_constraint(
    x, NamedSharding(placement.mesh, _spec(placement, axes, x.shape))
  )


def _spec(placement: _Placement, axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
  """Heads that the mesh does not divide evenly stay together, as parameters do; a batch must
  divide.
  """
  parts = lambda axis: math.prod(placement.mesh.shape[name] for name in placement.rules[axis])
  kept = [None if axis == HEADS and size % parts(axis) else axis for axis, size in zip(axes, shape)]
  return PartitionSpec(*(None if axis is None else placement.rules[axis] for axis in kept))

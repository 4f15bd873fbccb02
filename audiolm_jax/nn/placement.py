"""Constrains the sharding of activations within `on(mesh, rules)`; does nothing elsewhere.

The train step traces the loss within `on`. Without constraints, XLA's partitioner tends to shard
activations along their width, like the parameters, which costs communication in each layer.
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

BATCH, HEADS = 'batch', 'heads'  # logical axis names of activations


class _Placement(NamedTuple):
  mesh: Mesh
  rules: Mapping[str, tuple[str, ...]]
  trains: bool


_PLACEMENT: contextvars.ContextVar[_Placement | None] = contextvars.ContextVar(
  'placement', default=None
)


@contextlib.contextmanager
def on(mesh: Mesh, rules: Mapping[str, tuple[str, ...]], *, trains: bool = True) -> Iterator[None]:
  """Constrains everything that is traced within the context to `mesh`.

  Args:
    mesh: device mesh.
    rules: mesh axes for each of the logical axes BATCH and HEADS.
    trains: whether there may be a backward pass; see `unrolls_layers`.
  """
  token = _PLACEMENT.set(_Placement(mesh, rules, trains))
  try:
    yield
  finally:
    _PLACEMENT.reset(token)


def platform() -> str:
  """Returns the platform of the current trace: of its mesh, or else JAX's default one."""
  placement = _PLACEMENT.get()
  return jax.default_backend() if placement is None else placement.mesh.devices.flat[0].platform


def on_tpu() -> bool:
  """Returns whether the current trace is for a mesh of TPUs, attached or not, or for a single TPU.

  Without a mesh, XLA could not partition kernels over several TPUs.
  """
  return platform() == 'tpu' and (_PLACEMENT.get() is not None or jax.device_count() == 1)


def unrolls_layers() -> bool:
  """Returns whether to unroll layers instead of looping over them.

  On TPUs, a loop copies the residuals of the backward pass in and out of arrays of all layers,
  which takes a fifth of a step; without a backward pass, a loop is the smaller program, sooner
  compiled. On several CPU devices, collectives inside and outside of a loop run in any order and
  can deadlock (docs/log.md).
  """
  placement = _PLACEMENT.get()
  if on_tpu():
    return placement is None or placement.trains
  return placement is not None and placement.mesh.size > 1


def batch_parts() -> int:
  """Returns the number of parts into which the batch is sharded."""
  placement = _PLACEMENT.get()
  return (
    1
    if placement is None
    else math.prod(placement.mesh.shape[axis] for axis in placement.rules[BATCH])
  )


def by_batch(x: Shaped[Array, 'B *dims']) -> Shaped[Array, 'B *dims']:
  """Shards an activation along its batch only."""
  return _constrained(x, (BATCH,))


def whole(table: Shaped[Array, '*dims']) -> Shaped[Array, '*dims']:
  """Replicates a small parameter on each device before its use."""
  return _constrained(table, ())


def each_part(x_H: Shaped[Array, 'H *dims']) -> Shaped[Array, 'P H *dims']:
  """Returns copies [P, H, ...] of a per-head array [H, ...], one for each part of the batch.

  If all layers use the copies, their gradients are summed over devices once instead of once per
  layer.
  """
  return _constrained(jnp.broadcast_to(x_H, (batch_parts(), *x_H.shape)), (BATCH, HEADS))


def per_device(
  function: Callable[..., Array], inputs: Sequence[Sequence[str | None]]
) -> Callable[..., Array]:
  """Returns a function that runs `function` on each device's own part of the arguments.

  Kernels need it, because XLA cannot partition them.

  Args:
    function: takes one array per entry of `inputs`; the result has the shape and axes of the first
      argument.
    inputs: logical axes of each argument.
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
  """Returns the partition spec of an array.

  Heads that do not divide evenly are not sharded, as in parameters. A batch has to divide evenly.
  """
  parts = lambda axis: math.prod(placement.mesh.shape[name] for name in placement.rules[axis])
  kept = [None if axis == HEADS and size % parts(axis) else axis for axis, size in zip(axes, shape)]
  return PartitionSpec(*(None if axis is None else placement.rules[axis] for axis in kept))

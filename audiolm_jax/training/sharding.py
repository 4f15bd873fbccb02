"""Where arrays live: the mesh, the mapping from logical axis names to mesh axes, and global
batches.

The rules, in the order they apply to one parameter [d_0, d_1, ...] boxed with one logical name per
dimension:

1. `rules` (`RULES` unless you give your own) names the mesh axis of each logical name; a name that is not there is an error.
2. A mesh axis is used once per array: where two dimensions ask for it, the first gets it.
3. A dimension that the mesh axis does not divide evenly is replicated: small models run on any
mesh.
4. Arrays without a box, or whose rank is not the box's (adafactor's row and column statistics), are
replicated.

Activations are cut along their batch wherever a layer says so (nn/placement.py), within
`activations(mesh)`.
"""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.core import meta
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from audiolm_jax import checks
from audiolm_jax.errors import UserError
from audiolm_jax.nn import placement

DATA, FSDP, TENSOR = 'data', 'fsdp', 'tensor'
RULES = {
  'embed': FSDP,
  'heads': TENSOR,
  'mlp': TENSOR,
  'vocab': TENSOR,
  'layers': None,
  'head_dim': None,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Devices along each mesh axis; one of the three may be -1: all that remain."""

  data: int = -1  # copies of the model
  fsdp: int = 1  # parts that parameters are cut into along 'embed'; also splits the batch
  tensor: int = 1  # parts along heads, mlp and vocab

  def __post_init__(self):
    size = checks.Legal(
      'a whole number of at least 1, or -1', lambda n: n == -1 or checks.WHOLE.holds(n)
    )
    checks.fields(self, data=size, fsdp=size, tensor=size)
    if [self.data, self.fsdp, self.tensor].count(-1) > 1:
      raise UserError(f'{self}: at most one size is -1 (the rest of the devices)')


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns the mesh over `devices` (all of them when None); several slices of a TPU lie along
  `data`.

  Raises ValueError when the sizes do not multiply to the number of devices, or the slices do not
  divide `data`.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [config.data, config.fsdp, config.tensor]
  if -1 in sizes:
    known = math.prod(size for size in sizes if size != -1)
    if len(devices) % known:
      raise UserError(
        f'{config}: {known} does not divide the {len(devices)} devices: change fsdp or tensor'
      )
    sizes[sizes.index(-1)] = len(devices) // known
  if math.prod(sizes) != len(devices):
    raise UserError(
      f'{config} takes {math.prod(sizes)} devices but there are {len(devices)}: set one of the sizes to -1'
    )
  names, kinds = (DATA, FSDP, TENSOR), (AxisType.Auto,) * 3
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if slices == 1:
    return jax.make_mesh(sizes, names, axis_types=kinds, devices=devices)
  if sizes[0] % slices:
    raise UserError(
      f'data={sizes[0]} is not a multiple of the {slices} slices: change fsdp or tensor'
    )
  # The network between slices is slow: only the gradients of whole copies of the model are to cross
  # it.
  arranged = mesh_utils.create_hybrid_device_mesh(
    (sizes[0] // slices, *sizes[1:]), (slices, 1, 1), devices, allow_split_physical_axes=True
  )
  return Mesh(arranged, names, axis_types=kinds)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def tree_shardings(tree: Any, mesh: Mesh, rules: Mapping[str, str | None] = RULES) -> Any:
  """Returns one sharding per array of `tree` (shapes will do), by the rules above, in the shape of
  the unboxed tree.

  Works for optimizer state too: optax maps over the boxes, so that a moment carries the box of its
  parameter.

  Args:
    tree: arrays or shapes, boxed by `nn.with_logical_partitioning` where an axis can be cut.
    mesh: any mesh whose axes the rules name.
    rules: the mesh axis of each logical name, None for an axis that is never cut.

  Raises ValueError for a rule whose axis the mesh does not have, and for a logical name without a
  rule.
  """
  if unknown := {name: axis for name, axis in rules.items() if axis not in (None, *mesh.shape)}:
    raise UserError(
      f'the rules {unknown} name axes that the mesh does not have: it has {sorted(mesh.shape)}; '
      "give the rules of your mesh, as in rules={**sharding.RULES, 'embed': 'model'}"
    )
  is_box = lambda node: isinstance(node, meta.AxisMetadata)
  place = lambda node: NamedSharding(mesh, _spec(node, mesh, rules))
  return jax.tree.map(place, tree, is_leaf=is_box)


def unbox(tree: Any) -> Any:
  """Returns the plain arrays (or shapes) of a tree with boxes."""
  return meta.unbox(tree)


def _spec(node: Any, mesh: Mesh, rules: Mapping[str, str | None]) -> PartitionSpec:
  if not isinstance(node, meta.AxisMetadata):
    return PartitionSpec()
  shape, names = node.unbox(apply_constraint=False).shape, node.names
  if len(shape) != len(names):
    return PartitionSpec()
  axes = []
  for size, name in zip(shape, names):
    if name is not None and name not in rules:
      raise UserError(f'logical axis {name!r} of a parameter {shape} is not one of {sorted(rules)}')
    axis = rules.get(name)
    fits = axis is not None and axis not in axes and size % mesh.shape[axis] == 0
    axes.append(axis if fits else None)
  return PartitionSpec(*axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: its first axis is cut over data and fsdp."""
  return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def activations(mesh: Mesh) -> contextlib.AbstractContextManager[None]:
  """While a loss is traced: what layers say of their activations holds on `mesh`."""
  return placement.on(mesh, {placement.BATCH: (DATA, FSDP), placement.HEADS: (TENSOR,)})


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises ValueError unless the global batch can be cut over this mesh and fed by its
  processes.
  """
  parts, processes = (
    mesh.shape[DATA] * mesh.shape[FSDP],
    len({device.process_index for device in mesh.devices.flat}),
  )
  if batch_size % parts:
    raise UserError(
      f'batch_size={batch_size} is not a multiple of data * fsdp = {parts} of the mesh: change batch_size or the mesh'
    )
  local = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  rows = sum(
    stop - start for start, stop in {index[0].indices(batch_size)[:2] for index in local.values()}
  )
  if rows * processes != batch_size:
    raise UserError(
      f'this process holds {rows} of batch_size={batch_size} rows but there are {processes} processes: '
      'the tensor axis must lie within one process'
    )


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Makes global arrays of what every process holds: its own rows, global batch size / process
  count of them.
  """
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
    for name, array in batch.items()
  }

"""Places arrays on devices: makes the mesh, shards parameters and batches.

Parameters are boxed by Flax with one logical name per dimension. They are sharded as follows:

1. `rules` (default: RULES) maps logical names to mesh axes. A name without a rule is an error.
2. A mesh axis is used once per array: if two dimensions map to it, it shards the first.
3. A dimension that the size of the mesh axis does not divide is replicated, so that small models
   run on any mesh.
4. Arrays without a box, or with another rank than their box, are replicated. The latter are
   adafactor's row and column statistics.

Layers constrain their activations by nn/placement.py, which is active within `activations(mesh)`.
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
  """Configures the sizes of the mesh axes; one of them may be -1 for all remaining devices.

  Fields:
    data: copies of the model, each with its part of the batch.
    fsdp: parts of the parameters along 'embed', and further parts of the batch.
    tensor: parts of the parameters along 'heads', 'mlp' and 'vocab'.

  Raises:
    UserError: if a size is neither positive nor -1, or several are -1.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    size = checks.Legal(
      'a whole number of at least 1, or -1', lambda n: n == -1 or checks.WHOLE.holds(n)
    )
    checks.fields(self, data=size, fsdp=size, tensor=size)
    if [self.data, self.fsdp, self.tensor].count(-1) > 1:
      raise UserError(f'{self}: only one size may be -1 (the remaining devices)')


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns the mesh over `devices`, default all; slices of a TPU are along the axis `data`.

  Args:
    config: sizes of the axes.
    devices: None: all devices of all processes.

  Raises:
    UserError: if the product of the sizes is not the number of devices, or `data` is not a multiple
      of the number of slices.
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
      f'{config} takes {math.prod(sizes)} devices but there are {len(devices)}: set one of the '
      'sizes to -1'
    )
  names, kinds = (DATA, FSDP, TENSOR), (AxisType.Auto,) * 3
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if slices == 1:
    return jax.make_mesh(sizes, names, axis_types=kinds, devices=devices)
  if sizes[0] % slices:
    raise UserError(
      f'data={sizes[0]} is not a multiple of the {slices} slices: change fsdp or tensor'
    )
  # The network between slices is slow, so only gradients should cross it: each copy of the model is
  # within one slice.
  arranged = mesh_utils.create_hybrid_device_mesh(
    (sizes[0] // slices, *sizes[1:]), (slices, 1, 1), devices, allow_split_physical_axes=True
  )
  return Mesh(arranged, names, axis_types=kinds)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that each device of a mesh holds whole.

  Args:
    mesh: devices.
  """
  return NamedSharding(mesh, PartitionSpec())


def tree_shardings(tree: Any, mesh: Mesh, rules: Mapping[str, str | None] = RULES) -> Any:
  """Returns the sharding of each array, as described above, in the structure of the unboxed tree.

  Optimizer states work too: optax maps over boxes, so that moments have the boxes of their
  parameters.

  Args:
    tree: arrays or shapes, boxed by `nn.with_logical_partitioning` if they can be sharded.
    mesh: mesh with the axes of the rules.
    rules: mesh axis by logical name; None: never sharded.

  Raises:
    UserError: if the mesh lacks the axis of a rule, or a logical name has no rule.
  """
  if unknown := {name: axis for name, axis in rules.items() if axis not in (None, *mesh.shape)}:
    raise UserError(
      f'the rules {unknown} name axes that the mesh does not have: it has {sorted(mesh.shape)}; '
      "pass rules for your mesh, such as rules={**sharding.RULES, 'embed': 'model'}"
    )
  is_box = lambda node: isinstance(node, meta.AxisMetadata)
  place = lambda node: NamedSharding(mesh, _spec(node, mesh, rules))
  return jax.tree.map(place, tree, is_leaf=is_box)


def unbox(tree: Any) -> Any:
  """Returns a tree without its boxes: plain arrays or shapes.

  Args:
    tree: tree with boxes of logical axis names.
  """
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
  """Returns the sharding of a batch: its first axis over the mesh axes data and fsdp.

  Args:
    mesh: devices.
  """
  return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def activations(mesh: Mesh, *, trains: bool = True) -> contextlib.AbstractContextManager[None]:
  """Returns a context in which layers constrain activations to `mesh`; trace the loss within it.

  Args:
    mesh: device mesh.
    trains: False where there is no backward pass: layers are then loops on TPUs, too.
  """
  rules = {placement.BATCH: (DATA, FSDP), placement.HEADS: (TENSOR,)}
  return placement.on(mesh, rules, trains=trains)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Checks that a global batch can be sharded over a mesh, with equal parts from its processes.

  Args:
    batch_size: global number of examples.
    mesh: devices.

  Raises:
    UserError: if not.
  """
  parts, processes = (
    mesh.shape[DATA] * mesh.shape[FSDP],
    len({device.process_index for device in mesh.devices.flat}),
  )
  if batch_size % parts:
    raise UserError(
      f'batch_size={batch_size} is not a multiple of data * fsdp = {parts} of the mesh: change '
      'batch_size or the mesh'
    )
  local = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  rows = sum(
    stop - start for start, stop in {index[0].indices(batch_size)[:2] for index in local.values()}
  )
  if rows * processes != batch_size:
    raise UserError(
      f'this process holds {rows} of batch_size={batch_size} rows but there are {processes} '
      'processes: the tensor axis must lie within one process'
    )


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Returns the global batch, given the rows of this process: batch size / number of processes.

  Args:
    batch: arrays by name.
    mesh: devices.
  """
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
    for name, array in batch.items()
  }

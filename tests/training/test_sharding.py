"""Meshes, the sharding rules and global batches on eight fake devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import meta
from jax.sharding import PartitionSpec as P

from audiolm_jax.nn import placement
from audiolm_jax.training import optimizers, sharding
from tests.training import toy

MeshConfig = sharding.MeshConfig


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))


def test_rest_of_the_devices_goes_to_the_free_axis(mesh):
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  assert dict(sharding.make_mesh(MeshConfig(), jax.devices()[:1]).shape) == {
    'data': 1,
    'fsdp': 1,
    'tensor': 1,
  }


@pytest.mark.parametrize(
  'config, message',
  [
    (dict(data=-1, fsdp=-1), 'only one size may be -1'),
    (dict(fsdp=3), 'does not divide the 8 devices'),
    (dict(data=4), 'takes 4 devices but there are 8'),
    (dict(tensor=0), 'tensor=0: must be a whole number of at least 1, or -1'),
  ],
)
def test_bad_meshes_are_explained(config, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(MeshConfig(**config))


@pytest.mark.parametrize(
  'shape, names, spec',
  [
    ((4, 6), ('embed', 'mlp'), P('fsdp', 'tensor')),
    ((4, 5), ('embed', 'mlp'), P('fsdp', None)),  # 5 does not divide evenly
    ((4, 4), ('embed', 'embed'), P('fsdp', None)),  # an axis is used once
    ((3, 4, 2), ('layers', None, 'heads'), P(None, None, 'tensor')),
    ((4,), ('embed', 'mlp'), P()),  # a factored moment under its parameter's box
  ],
)
def test_rules(mesh, shape, names, spec):
  box = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)
  assert sharding.tree_shardings(box, mesh).spec == spec


def test_rules_of_your_own_fit_a_mesh_with_other_axis_names():
  own = jax.make_mesh((4, 2), ('replica', 'model'))
  rules = dict.fromkeys(sharding.RULES) | {'embed': 'replica', 'mlp': 'model', 'mine': 'model'}
  names = {'kernel': ('embed', 'mlp'), 'table': ('vocab', 'mine'), 'heads': ('heads',)}
  shapes = {'kernel': (8, 6), 'table': (5, 4), 'heads': (8,)}
  boxes = {
    name: nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shapes[name], jnp.float32), names[name])
    for name in names
  }
  shardings = sharding.tree_shardings(boxes, own, rules=rules)
  assert {name: one.spec for name, one in shardings.items()} == {
    'kernel': P('replica', 'model'),
    'table': P(None, 'model'),
    'heads': P(None),
  }
  assert shardings['kernel'].shard_shape((8, 6)) == (2, 3)
  with pytest.raises(ValueError, match=r"'embed': 'fsdp'.*it has \['model', 'replica'\].*rules="):
    sharding.tree_shardings(boxes, own)


def test_unknown_logical_axis_is_named(mesh):
  box = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((4,), jnp.float32), ('emebd',))
  with pytest.raises(ValueError, match='emebd'):
    sharding.tree_shardings(box, mesh)


@pytest.mark.parametrize('name', ['adam', 'adafactor'])
def test_optimizer_state_is_placed_like_its_parameters(mesh, name):
  stage = toy.Config().make()
  config = {group: optimizers.OptimizerConfig(name=name) for group in ('hidden', 'output')}
  boxed = jax.eval_shape(
    lambda key: optimizers.make(config).init(stage.init(key).params), jax.random.key(0)
  )
  shardings = sharding.tree_shardings(boxed, mesh)
  assert jax.tree.structure(shardings) == jax.tree.structure(meta.unbox(boxed))
  specs = {
    jax.tree_util.keystr(path): (leaf.shape, s.spec)
    for (path, leaf), s in zip(
      jax.tree.flatten_with_path(meta.unbox(boxed))[0], jax.tree.leaves(shardings)
    )
  }
  moments = [spec for path, (shape, spec) in specs.items() if shape == (16, 8) and 'kernel' in path]
  assert moments and all(spec == P('fsdp', 'tensor') for spec in moments)


def test_global_batch_is_cut_over_data_and_fsdp(mesh):
  wave = np.arange(24, dtype=np.float32).reshape(8, 3)
  array = sharding.global_batch({'waveform': wave}, mesh)['waveform']
  np.testing.assert_array_equal(array, wave)
  assert {shard.data.shape for shard in array.addressable_shards} == {(2, 3)}


def test_batch_size_that_cannot_be_cut_is_explained(mesh):
  sharding.check_batch_size(8, mesh)
  with pytest.raises(ValueError, match='batch_size=6 is not a multiple of data . fsdp = 4'):
    sharding.check_batch_size(6, mesh)


def test_layers_are_a_loop_on_a_tpu_only_without_a_backward_pass(monkeypatch):
  def unrolls(count, **options):
    one = sharding.make_mesh(MeshConfig(), jax.devices()[:count])
    with sharding.activations(one, **options):
      return placement.unrolls_layers()

  # On several CPU devices, collectives inside and outside of a loop could wait for each other.
  assert not unrolls(1) and unrolls(2) and unrolls(2, trains=False)
  monkeypatch.setattr(placement, 'platform', lambda: 'tpu')
  assert unrolls(2) and not unrolls(2, trains=False) and not unrolls(1, trains=False)

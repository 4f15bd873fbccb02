"""What is read from compiled programs, on eight fake CPU devices and on text as TPUs have it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from audiolm_jax.costs import hlo
from audiolm_jax.nn import quantizer
from audiolm_jax.training import sharding

# A scanned layer of a TPU program, shortened: an asynchronous gather, a fusion that reads a slice,
# one in VMEM.
TEXT = """HloModule jit_step, is_scheduled=true

%fused (p.0: f32[12,64,128], p.1: s32[]) -> f32[64,128] {
  %p.0 = f32[12,64,128]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,64,128]{2,1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,64,128}
}

%body (arg: (s32[], f32[12,64,128])) -> (s32[], f32[12,64,128]) {
  %arg = (s32[]{:T(128)}, /*index=1*/f32[12,64,128]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %w = f32[12,64,128]{2,1,0:T(8,128)} get-tuple-element(%arg), index=1
  %layer = f32[64,128]{1,0:T(8,128)S(1)} fusion(%w, %i), kind=kLoop, calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"700"}}
  %gather = (f32[64,128]{1,0:T(8,128)S(1)}, f32[256,128]{1,0:T(8,128)}) all-gather-start(%layer), channel_id=1, \
replica_groups=[4,4]<=[4,4]T(1,0), dimensions={0}, metadata={op_name="jit(step)/gather"}
  %gathered = f32[256,128]{1,0:T(8,128)} all-gather-done(%gather)
  ROOT %out = (s32[]{:T(128)}, f32[12,64,128]{2,1,0:T(8,128)}) tuple(%i, %w)
}

%cond (arg.1: (s32[], f32[12,64,128])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[12,64,128]{2,1,0:T(8,128)}) parameter(0)
  ROOT %less = pred[]{:T(512)} constant(true)
}

ENTRY %main (w.1: f32[12,64,128]) -> f32[12,64,128] {
  %w.1 = f32[12,64,128]{2,1,0:T(8,128)} parameter(0)
  %start = s32[]{:T(128)} constant(0)
  %init = (s32[]{:T(128)}, f32[12,64,128]{2,1,0:T(8,128)}) tuple(%start, %w.1)
  %loop = (s32[]{:T(128)}, f32[12,64,128]{2,1,0:T(8,128)}) while(%init), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"12"}}
  %result = f32[12,64,128]{2,1,0:T(8,128)} get-tuple-element(%loop), index=1
  %sum = f32[12,64,128]{2,1,0:T(8,128)} all-reduce(%result), channel_id=2, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %double = f32[12,64,128]{2,1,0:T(8,128)} fusion(%sum), kind=kLoop, calls=%fused.2, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
}

%fused.2 (p.2: f32[12,64,128]) -> f32[12,64,128] {
  %p.2 = f32[12,64,128]{2,1,0:T(8,128)} parameter(0)
  ROOT %add.2 = f32[12,64,128]{2,1,0:T(8,128)} add(%p.2, %p.2)
}
"""


def test_rounds_cycles_traffic_and_collectives_of_a_tpu_program():
  program = hlo.parse(TEXT)
  assert program.rounds == {'main': 1, 'body': 12, 'cond': 12} and not program.unknown_loops
  assert hlo.cycles(program) == 12 * 700 + 1000
  reduce, gather = hlo.collectives(program, 16)
  assert gather == hlo.Collective(
    'all-gather', 'f32[256,128]', 256 * 128 * 4, (0, 4, 8, 12), 12, np.inf, 'jit(step)/gather'
  )
  assert (reduce.kind, reduce.size, reduce.group, reduce.rounds, reduce.hidden_by) == (
    'all-reduce',
    12 * 64 * 128 * 4,
    (0, 1),
    1,
    0,
  )
  layer = 64 * 128 * 4
  # Reads a layer's slice in each round, and writes what is gathered; then sums and doubles all
  # twelve.
  assert hlo.hbm_bytes(program) == pytest.approx(
    12 * (layer + 4 * layer) + 2 * 12 * layer + 2 * 12 * layer, abs=64
  )


def test_what_fits_codebooks_at_the_first_step_is_left_out():
  books, x, key = (
    quantizer.init(jax.random.key(0), 2, 8, 4),
    jnp.ones((1, 10, 4)),
    jax.random.key(0),
  )
  either = lambda books, x, key: jax.lax.cond(
    books.fitted, lambda b: b, lambda b: quantizer.fit(b, x, key), books
  )
  once, each_time = (
    hlo.parse(jax.jit(f).lower(books, x, key).compile().as_text())
    for f in (quantizer.fitted, either)
  )
  assert sum(once.rounds.values()) < 5 < sum(each_time.rounds.values())


@pytest.mark.parametrize(
  'text, group',
  [
    ('replica_groups={{0,4},{1,5}}, dimensions={0}', (0, 4)),
    ('replica_groups=[2,4]<=[8], dimensions={0}', (0, 1, 2, 3)),
    ('replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true', (0, 4)),
    (
      "replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={0}",
      (0, 1, 2, 3),
    ),
    ("replica_groups=mesh['a'=4,'c'=2], device_ids=([2,4]T(1,0)) {'c'}, dimensions={0}", (0, 4)),
    ("replica_groups=mesh['a'=4,'c'=2] {'a','c'}", tuple(range(8))),
    ('replica_groups={}, to_apply=%add', tuple(range(8))),
    ('source_target_pairs={{3,2},{2,3}}', (3, 2)),
  ],
)
def test_groups_of_devices(text, group):
  assert hlo._group(text, 8) == group


def test_a_text_without_entry_is_an_error():
  with pytest.raises(ValueError, match='no ENTRY'):
    hlo.parse('HloModule nothing')


def test_what_slices_exchange_goes_through_the_hosts():
  handler = '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"'
  send = f'send(%g, %after), channel_id=3, is_host_transfer=true, frontend_attributes={{{handler}}}'
  text = f"""HloModule jit_step

ENTRY %main (g: bf16[4,8,128]) -> token[] {{
  %g = bf16[4,8,128]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %after = token[] after-all()
  %send = (bf16[4,8,128]{{2,1,0:T(8,128)(2,1)}}, u32[], token[]) {send}
  ROOT %done = token[] send-done(%send), channel_id=3, is_host_transfer=true
}}
"""
  [exchange] = hlo.collectives(hlo.parse(text), 16)
  assert exchange == (
    'all-reduce',
    'bf16[4,8,128]',
    2 * 4 * 8 * 128,
    tuple(range(16)),
    1,
    np.inf,
    '',
  )


def test_a_gather_beside_products_is_one_and_unrolled_layers_share_its_channel():
  gather = '%g = bf16[256,128]{1,0} all-gather(%p), channel_id=7, replica_groups=[4,4]<=[16], dimensions={0}'

  def fusion(name, computation, cycles=0):
    config = (
      f', backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}' if cycles else ''
    )
    return (
      f'  %{name} = bf16[256,128]{{1,0}} fusion(%w), kind=kOutput, calls=%{computation}{config}\n'
    )

  computations = ''.join(
    f'%{name} (p: bf16[64,128]) -> bf16[256,128] {{\n  %p = bf16[64,128]{{1,0}} parameter(0)\n  ROOT {gather}\n}}\n\n'
    for name in ('begin', 'async_collective_fusion.1', 'async_collective_fusion.2', 'end')
  )
  layer = fusion('async-collective-start', 'begin') + fusion(
    'product', 'async_collective_fusion.1', 700
  )
  layer += fusion('product.2', 'async_collective_fusion.2', 50) + fusion(
    'async-collective-done', 'end'
  )
  layers = ''.join(
    re.sub(r'%((?:async-collective|product)[\w.\-]*)', rf'%\1.{i}', layer) for i in range(2)
  )
  text = f'HloModule jit_step\n\n{computations}ENTRY %main (w: bf16[64,128]) -> bf16[256,128] {{\n'
  text += f'  %w = bf16[64,128]{{1,0}} parameter(0)\n{layers}}}\n'
  found = hlo.collectives(hlo.parse(text), 16)
  assert found == [('all-gather', 'bf16[256,128]', 2 * 256 * 128, (0, 1, 2, 3), 1, 750, '')] * 2


def test_loops_of_a_compiled_program_count_their_collectives():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))
  place = lambda *spec: NamedSharding(mesh, P(*spec))
  x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=place(('data', 'fsdp')))
  weights = jax.ShapeDtypeStruct((6, 32, 32), jnp.float32, sharding=place(None, 'fsdp'))

  def function(x, weights):
    def body(x, weight):
      whole = jax.lax.with_sharding_constraint(weight, place())
      return jnp.tanh(jax.lax.with_sharding_constraint(x, place(('data', 'fsdp'))) @ whole), None

    return jax.lax.scan(body, x, weights)[0].sum()

  compiled = jax.jit(function).lower(x, weights).compile()
  found = hlo.collectives(hlo.parse(compiled.as_text()), 8)
  gathers = [one for one in found if one.kind == 'all-gather']
  assert sum(one.rounds * one.size for one in gathers) == 6 * 32 * 32 * 4
  assert all(len(one.group) == 4 for one in gathers)
  (total,) = (one for one in found if one.kind == 'all-reduce')
  assert (total.size, total.rounds, len(total.group)) == (4, 1, 8)


@pytest.mark.parametrize('quote', ['"', r'\"'])
def test_kernels_are_read_with_the_heads_that_cores_can_share(quote):
  metadata = '{\n"parallel_heads":"16",\n"products":"5"\n}'.replace('"', quote)
  text = (
    'HloModule step\n\nENTRY %main (p: f32[2]) -> f32[2] {\n  %p = f32[2]{0} parameter(0)\n'
    '  %plain = f32[2]{0} custom-call(%p), custom_call_target="tpu_custom_call", '
    'backend_config={"custom_call_config":{"body":"QUJD","cost_estimate":{"flops":"7"}}}\n'
    '  ROOT %attention = f32[2]{0} custom-call(%plain), custom_call_target="tpu_custom_call", '
    f'frontend_attributes={{kernel_metadata="{metadata}"}}, backend_config={{"custom_call_config":'
    '{"cost_estimate":{"flops":"90","transcendentals":"8","bytes_accessed":"1"}}}\n}\n'
  )
  assert hlo.kernels(hlo.parse(text)) == [
    hlo.Kernel('plain', 7, 0, 1, parallel_heads=1),
    hlo.Kernel('attention', 90, 8, 1, parallel_heads=16),
  ]

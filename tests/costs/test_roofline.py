"""Predicted times against arithmetic by hand, on a chip of round numbers."""

import dataclasses
import math

import pytest

from audiolm_jax.costs import hlo, roofline

CHIP = roofline.Chip(
  flops=1e12,
  hbm_bytes=2**30,
  hbm_bandwidth=1e9,
  link_bandwidth=1e8,
  network_bandwidth=1e7,
  clock=1e9,
  cores=1,
)


def collective(kind, size, group, rounds=1, hidden_by=0):
  return hlo.Collective(kind, 'f32[]', size, group, rounds, hidden_by, '')


@pytest.mark.parametrize(
  'one, seconds',
  [
    (collective('all-gather', 400_000_000, (0, 1, 2, 3)), 3.0),
    (collective('all-reduce', 400_000_000, (0, 1, 2, 3)), 6.0),
    # through the network between slices of four
    (collective('reduce-scatter', 100_000_000, (0, 4)), 5.0),
    (collective('collective-permute', 100_000_000, (2, 3)), 1.0),
    (collective('all-reduce', 100_000_000, (5,)), 0.0),
  ],
)
def test_collectives(one, seconds):
  assert roofline.collective_seconds(CHIP, one, 4) == pytest.approx(seconds)


@pytest.mark.parametrize('heads, times', [(1, 1.0), (2, 0.5), (16, 0.5)])
def test_a_second_core_works_only_where_heads_can_be_divided(heads, times):
  two = dataclasses.replace(CHIP, cores=2)
  kernel = hlo.Kernel('attention', 10**10, 4_096 * 10**6, rounds=1, parallel_heads=heads)
  # The peak is that of both cores: one alone takes twice as long for the products.
  assert roofline.kernel_seconds(two, kernel) == pytest.approx(times * (0.04 + 0.01))


def test_a_step_waits_for_the_slowest_and_for_what_is_exposed():
  kernel = hlo.Kernel('attention', flops=10**10, transcendentals=4_096 * 10**6, rounds=2)
  # Heads of 64 fill half of the matrix unit; ten operations on 4096 lanes take 10^7 cycles.
  assert roofline.kernel_seconds(CHIP, kernel) == pytest.approx(0.02 + 0.01)
  predict = lambda **options: roofline.predict(
    CHIP,
    devices_per_slice=4,
    **dict(product_flops=5e11, hbm_bytes=10**8, cycles=10**9, kernels=[], collectives=[]) | options,
  )
  plain = predict()
  assert (plain.step_seconds, plain.utilization, plain.bound) == (1.0, 0.5, 'cores')
  assert predict(kernels=[kernel]).step_seconds == pytest.approx(1.06)
  assert predict(hbm_bytes=2 * 10**9).bound == 'HBM'
  assert predict(product_flops=0.95e12).bound == 'matrix unit'
  gather = collective('all-gather', 40_000_000, (0, 1, 2, 3), rounds=4, hidden_by=math.inf)
  # hidden until it takes longer
  assert predict(collectives=[gather]).step_seconds == pytest.approx(1.2)
  # 0.1 of its 0.3 s
  fused = collective('all-gather', 40_000_000, (0, 1, 2, 3), rounds=4, hidden_by=10**8)
  assert predict(collectives=[fused]).step_seconds == pytest.approx(1.0 + 4 * 0.2)
  exposed = predict(collectives=[gather, collective('all-reduce', 200_000_000, (0, 1))])
  assert exposed.step_seconds == pytest.approx(1.2 + 2.0) and exposed.bound == 'collectives'

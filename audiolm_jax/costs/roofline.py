"""Predicts how fast a compiled step can run on a TPU, from its products, traffic and collectives.

Assumptions:

- FLOPs are the model's: causal attention counts half, recomputation and padding do not count.
- Products run at the peak rate of bfloat16, memory at the full bandwidth of HBM.
- A collective within a slice uses one direction of one link along one axis of the torus: an
  all-gather, reduce-scatter or all-to-all of n bytes takes n / bandwidth, an all-reduce twice that.
  A closed ring would be twice as fast; it needs 16 chips along an axis of v5e or v6e, 4 of v4 or
  v5p.
- A collective across slices uses each chip's share of its host's network card.
- Asynchronous collectives overlap with all computation; a collective fused with products overlaps
  for the compiler's estimate of these; others stop the computation.
- The computation takes the compiler's estimate of cycles, which accounts for the use of the matrix
  unit and for waits for memory. It takes at least the time of all products at the peak rate, and of
  all traffic at full bandwidth.
- A chip of two cores runs a kernel of ours on both if its grid can be divided among them by heads,
  else on one.
- The compiler has no estimate for our attention kernel. One side of its products is the head width,
  64, which fills that share of the matrix unit's width. Each attention weight (one exponential)
  takes 10 vector operations. The two units do not overlap, although they could.
"""

import dataclasses
from collections.abc import Sequence

from audiolm_jax.costs import hlo


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """Describes a TPU chip.

  Sources: peak rate, memory and its bandwidth are from cloud.google.com/tpu/docs (pages v4, v5e,
  v5p, v6e); links and network are from "How to Scale Your Model"
  (jax-ml.github.io/scaling-book, the table in its chapter on TPUs).
  """

  flops: float  # per second, in bfloat16
  hbm_bytes: int
  hbm_bandwidth: float  # bytes per second
  link_bandwidth: float  # bytes per second of one link in one direction
  network_bandwidth: float  # bytes per second and chip between slices
  clock: float  # Hz
  matrix_width: int = 128  # of the matrix unit
  cores: int = 1  # each with a vector unit of 8 x 128 lanes and four operations per cycle
  topology_options: tuple[tuple[str, str], ...] = ()  # further arguments of libtpu's topology


HEAD_WIDTH, VECTOR_OPERATIONS = 64, 10  # of the attention kernel; see above
KERNEL_MODEL_SHARE = 6 / 7  # of its two products forward and five backward, one is recomputation

CHIPS = {
  'v4': Chip(
    flops=275e12,
    hbm_bytes=32 * 2**30,
    hbm_bandwidth=1.2e12,
    link_bandwidth=4.5e10,
    network_bandwidth=6.25e9,
    clock=1.05e9,
    cores=2,
    topology_options=(('chip_config_name', 'megacore'),),
  ),
  'v5e': Chip(
    flops=197e12,
    hbm_bytes=16 * 2**30,
    hbm_bandwidth=8.19e11,
    link_bandwidth=4.5e10,
    network_bandwidth=3.125e9,
    clock=1.5e9,
  ),
  'v5p': Chip(
    flops=459e12,
    hbm_bytes=95 * 2**30,
    hbm_bandwidth=2.765e12,
    link_bandwidth=9e10,
    network_bandwidth=6.25e9,
    clock=1.75e9,
    cores=2,
    topology_options=(('chip_config_name', 'megacore'),),
  ),
  'v6e': Chip(
    flops=918e12,
    hbm_bytes=32 * 2**30,
    hbm_bandwidth=1.64e12,
    link_bandwidth=9e10,
    network_bandwidth=1.25e10,
    clock=1.75e9,
    matrix_width=256,
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
  """Holds the predicted times of one step on one chip, in seconds."""

  product_seconds: float  # the model's products at the peak rate
  dense_seconds: float  # the same, without products in kernels
  hbm_seconds: float  # memory traffic at full bandwidth
  compiler_seconds: float  # the compiler's estimate, without kernels
  kernel_seconds: float
  hidden_collective_seconds: float  # overlapping with computation
  exposed_collective_seconds: float

  @property
  def compute_seconds(self) -> float:
    return max(
      self.hbm_seconds, self.kernel_seconds + max(self.dense_seconds, self.compiler_seconds)
    )

  @property
  def step_seconds(self) -> float:
    return (
      max(self.compute_seconds, self.hidden_collective_seconds) + self.exposed_collective_seconds
    )

  @property
  def utilization(self) -> float:
    """Model FLOPs utilization (MFU): the time of the products, as a share of the step."""
    return self.product_seconds / self.step_seconds

  @property
  def bound(self) -> str:
    """Name of the resource that limits the step."""
    if self.step_seconds > 2 * self.compute_seconds:
      return 'collectives'
    if self.hbm_seconds >= 0.9 * self.compute_seconds:
      return 'HBM'
    return 'matrix unit' if self.product_seconds >= 0.9 * self.compute_seconds else 'cores'


def predict(
  chip: Chip,
  *,
  product_flops: float,
  hbm_bytes: int,
  cycles: int,
  kernels: Sequence[hlo.Kernel],
  collectives: Sequence[hlo.Collective],
  devices_per_slice: int,
) -> Prediction:
  """Returns the predicted times of a step.

  Args:
    chip: the chip.
    product_flops: FLOPs of the model's products, per device.
    hbm_bytes: memory traffic in bytes, per device.
    cycles: the compiler's estimate of cycles, per device.
    kernels: kernels of the program.
    collectives: collectives of the program.
    devices_per_slice: number of devices in a slice.
  """
  hidden = exposed = 0.0
  for one in collectives:
    seconds = collective_seconds(chip, one, devices_per_slice)
    covered = min(seconds, one.hidden_by / chip.clock)
    hidden, exposed = hidden + one.rounds * covered, exposed + one.rounds * (seconds - covered)
  return Prediction(
    product_seconds=product_flops / chip.flops,
    dense_seconds=max(
      product_flops - KERNEL_MODEL_SHARE * sum(one.rounds * one.flops for one in kernels), 0.0
    )
    / chip.flops,
    hbm_seconds=hbm_bytes / chip.hbm_bandwidth,
    compiler_seconds=cycles / chip.clock,
    kernel_seconds=sum((one.rounds * kernel_seconds(chip, one) for one in kernels), 0.0),
    hidden_collective_seconds=hidden,
    exposed_collective_seconds=exposed,
  )


def kernel_seconds(chip: Chip, kernel: hlo.Kernel) -> float:
  """Returns the time of one run of an attention kernel, in seconds."""
  cores = min(chip.cores, kernel.parallel_heads)
  flops = chip.flops * cores / chip.cores * min(1, HEAD_WIDTH / chip.matrix_width)
  operations = VECTOR_OPERATIONS * kernel.transcendentals
  return kernel.flops / flops + operations / (4 * 1024 * cores * chip.clock)


def collective_seconds(chip: Chip, one: hlo.Collective, devices_per_slice: int) -> float:
  """Returns the time of one run of a collective, in seconds."""
  if len(one.group) < 2:
    return 0.0
  across = len({device // devices_per_slice for device in one.group}) > 1
  share = 1.0 if one.kind == 'collective-permute' else (len(one.group) - 1) / len(one.group)
  times = 2 if one.kind == 'all-reduce' else 1
  return times * share * one.size / (chip.network_bandwidth if across else chip.link_bandwidth)

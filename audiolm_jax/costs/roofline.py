"""How fast a compiled step can be on a TPU: its products, memory traffic and collectives over what
the chip has.

Assumptions, all stated with the result:

- FLOPs are those of the model: of causal attention the half that is of use, nothing recomputed, no
  padding.
- Products run at the peak rate of bfloat16, memory at the full bandwidth of HBM.
- A collective within a slice goes round one axis of the torus, in one direction of one link: an
  all-gather, a reduce-scatter or an all-to-all of n bytes takes n / bandwidth, an all-reduce twice
  that. A ring that closes would be twice as fast: 16 chips along an axis of v5e or v6e, 4 of v4 or
  v5p.
- A collective across slices goes through each chip's share of its host's network card.
- An asynchronous collective hides behind the computation, one that is fused with a product for as
  long as the compiler thinks that this takes; the others stop it.
- The computation takes as long as the compiler's own estimate of cycles, which knows how full the
  matrix unit is and what waits for memory; it is never less than the products at the peak or the
  traffic at full bandwidth.
- A chip of two cores works with both on a kernel of ours whose grid can be divided among them, by
  heads, else with one.
- Of a kernel of ours the compiler estimates nothing. Its products have one side of a head's width,
  64, and fill that share of the matrix unit's width; for each weight of attention (one exponential)
  the vector unit works 10 times; and the two units are taken to wait for one another, which they
  need not.
"""

import dataclasses
from collections.abc import Sequence

from audiolm_jax.costs import hlo


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One TPU chip.

  Sources: peak, memory and its bandwidth from cloud.google.com/tpu/docs (pages v4, v5e, v5p, v6e);
  links and network from "How to Scale Your Model" (jax-ml.github.io/scaling-book, the table of its
  chapter on TPUs).
  """

  flops: float  # bfloat16, per second
  hbm_bytes: int
  hbm_bandwidth: float  # bytes per second
  link_bandwidth: float  # bytes per second, one link, one direction
  network_bandwidth: float  # bytes per second and chip, between slices
  clock: float  # Hz
  matrix_width: int = 128  # of the matrix unit
  cores: int = 1  # each with a vector unit of 8 x 128 lanes, four operations deep
  topology_options: tuple[tuple[str, str], ...] = ()  # what libtpu wants to hear besides the name


HEAD_WIDTH, VECTOR_OPERATIONS = 64, 10  # of our attention kernel; see above
KERNEL_MODEL_SHARE = 6 / 7  # two products forward, five backward, of which one recomputes

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
  """Seconds of one step on one chip, and what they say."""

  product_seconds: float  # the model's products, without what is recomputed, at the peak
  dense_seconds: float  # those of them that no kernel does
  hbm_seconds: float
  compiler_seconds: float  # the compiler's estimate of the computation but for kernels
  kernel_seconds: float
  hidden_collective_seconds: float  # beside the computation
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
    """MFU: the share of the step in which the peak rate would do the model's products."""
    return self.product_seconds / self.step_seconds

  @property
  def bound(self) -> str:
    """What the step waits for most."""
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
  """Returns the time of a step; all numbers are of one device."""
  hidden = exposed = 0.0
  for one in collectives:
    seconds = collective_seconds(chip, one, devices_per_slice)
    beside = min(seconds, one.beside / chip.clock)
    hidden, exposed = hidden + one.rounds * beside, exposed + one.rounds * (seconds - beside)
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
  """Returns the time of one round of an attention kernel."""
  cores = min(chip.cores, kernel.parallel_heads)
  flops = chip.flops * cores / chip.cores * min(1, HEAD_WIDTH / chip.matrix_width)
  operations = VECTOR_OPERATIONS * kernel.transcendentals
  return kernel.flops / flops + operations / (4 * 1024 * cores * chip.clock)


def collective_seconds(chip: Chip, one: hlo.Collective, devices_per_slice: int) -> float:
  """Returns the time of one round of a collective."""
  if len(one.group) < 2:
    return 0.0
  across = len({device // devices_per_slice for device in one.group}) > 1
  share = 1.0 if one.kind == 'collective-permute' else (len(one.group) - 1) / len(one.group)
  times = 2 if one.kind == 'all-reduce' else 1
  return times * share * one.size / (chip.network_bandwidth if across else chip.link_bandwidth)

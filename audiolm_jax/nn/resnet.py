"""ResNet-50 on log-mel, the audio tower of MuLan (arXiv 2208.12415).

A 7x7 convolution of stride 2, 3x3 max-pooling, four groups of bottleneck blocks (arXiv 1512.03385,
strides in the 3x3 convolutions), mean over time and mel bands (the embedding), a linear layer.

Deviation: group norm (arXiv 1803.08494) instead of batch norm, so that examples are independent and
the network is stateless, with nothing to average over devices. As there, the last scale of each
block starts at 0.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from audiolm_jax import checks
from audiolm_jax.nn import log_mel, placement
from audiolm_jax.nn.attention import EMBED, VOCAB, dense, partitioned

EXPANSION = 4  # channels of a block's output per channel inside
NUM_GROUPS = 32  # of group norm; fewer in narrow networks
EVEN = checks.Legal(
  'an even whole number of at least 2', lambda n: checks.WHOLE.holds(n) and n % 2 == 0
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig(log_mel.LogMelConfig):
  """Configures a `ResNet`; the defaults are ResNet-50 on ten seconds.

  Fields:
    blocks: number of blocks per group; each group after the first halves time and frequency.
    width: channels inside the blocks of the first group; doubles with each group.

  Raises:
    UserError: if a field is illegal, or the crop is shorter than one window.
  """

  blocks: tuple[int, ...] = (3, 4, 6, 3)
  width: int = 64
  crop_seconds: float = 10.0

  def __post_init__(self):
    checks.fields(self, blocks=checks.each(checks.WHOLE), width=EVEN)
    super().__post_init__()

  def network(self, num_outputs: int) -> 'ResNet':
    """Returns the module that maps waveforms to `num_outputs` numbers."""
    return ResNet(self, num_outputs)


class ResNet(nn.Module):
  """Maps waveforms [B, T] to logits [B, num_outputs] and embeddings.

  Raises:
    UserError: if the waveform is shorter than one window.
  """

  config: ResNetConfig
  num_outputs: int

  @nn.compact
  def __call__(
    self, wave_BT: Float[Array, 'B T'], augment: log_mel.Augment | None = None
  ) -> log_mel.Output:
    c = self.config
    x = log_mel.features(c, wave_BT, augment)[..., None].astype(c.dtype)
    x = jax.nn.relu(_convolved(x, c.width, 7, 2, ''))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for group, num_blocks in enumerate(c.blocks):
      for block in range(num_blocks):
        stride = 2 if group and not block else 1
        x = Bottleneck(c.width << group, stride, name=f'block_{group + 1}_{block + 1}')(x)
    embedding_BD = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    return log_mel.Output(
      dense(self.num_outputs, (EMBED, VOCAB), use_bias=True, name='logits')(embedding_BD),
      embedding_BD,
    )


class Bottleneck(nn.Module):
  """Residual block [B, F, M, D] -> [B, F / stride, M / stride, EXPANSION * width]."""

  width: int
  stride: int = 1

  @nn.compact
  def __call__(self, x):
    x = placement.by_batch(x)
    y = jax.nn.relu(_convolved(x, self.width, 1, 1, '_1'))
    y = jax.nn.relu(_convolved(y, self.width, 3, self.stride, '_2'))
    y = _convolved(y, EXPANSION * self.width, 1, 1, '_3', nn.initializers.zeros)
    if x.shape != y.shape:
      x = _convolved(x, y.shape[-1], 1, self.stride, '_shortcut')
    return jax.nn.relu(x + y)


def _convolved(x, features, size, stride, suffix, scale_init=nn.initializers.ones):
  """Returns a normalized convolution, whose modules belong to the module that calls."""
  x = nn.Conv(
    features,
    (size, size),
    strides=(stride, stride),
    padding=size // 2,
    use_bias=False,
    dtype=x.dtype,
    kernel_init=partitioned(nn.initializers.he_normal(), None, None, None, EMBED),
    name=f'conv{suffix}',
  )(x)
  return nn.GroupNorm(
    # Groups of one channel would lose the loudness of their input.
    num_groups=math.gcd(NUM_GROUPS, features // 2),
    dtype=x.dtype,
    scale_init=partitioned(scale_init, EMBED),
    bias_init=partitioned(nn.initializers.zeros, EMBED),
    name=f'norm{suffix}',
  )(x)

"""Convolutional audio classifier on log-mel (AudioLM, arXiv 2209.03143, sections IV-D and IV-I).

Six blocks of a 3x1 convolution over time and a 1x3 convolution over mel bands, ReLU and
normalization; 2x2 max-pooling in blocks that increase the channels; mean over time and bands (the
embedding); a linear layer.

Deviation: group norm instead of batch norm, so that examples are independent and the network is
stateless. Choice: constants shift and scale the log-mel, which keeps information on loudness.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from audiolm_jax import checks
from audiolm_jax.nn import log_mel
from audiolm_jax.nn.attention import EMBED, VOCAB, dense, partitioned


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogMelCNNConfig(log_mel.LogMelConfig):
  """Configures a `LogMelCNN`.

  Raises:
    UserError: if a field is illegal, or the crop is shorter than one window.
  """

  channels: tuple[int, ...] = (64, 128, 256, 256, 512, 512)

  def __post_init__(self):
    checks.fields(self, channels=checks.each(checks.WHOLE))
    super().__post_init__()

  def network(self, num_outputs: int) -> 'LogMelCNN':
    """Returns the module that maps waveforms to `num_outputs` numbers."""
    return LogMelCNN(self, num_outputs)


class LogMelCNN(nn.Module):
  """Maps waveforms [B, T] to logits [B, num_outputs] and embeddings.

  Raises:
    UserError: if the waveform is shorter than one window.
  """

  config: LogMelCNNConfig
  num_outputs: int

  @nn.compact
  def __call__(
    self, wave_BT: Float[Array, 'B T'], augment: log_mel.Augment | None = None
  ) -> log_mel.Output:
    c = self.config
    x = log_mel.features(c, wave_BT, augment)[..., None].astype(c.dtype)
    previous = c.channels[0]
    for block, channels in enumerate(c.channels):
      for shape in ((3, 1), (1, 3)):
        x = nn.Conv(
          channels,
          shape,
          dtype=c.dtype,
          name=f'conv_{block + 1}_{shape[0]}x{shape[1]}',
          kernel_init=partitioned(nn.initializers.he_normal(), None, None, None, EMBED),
          bias_init=partitioned(nn.initializers.zeros, EMBED),
        )(x)
      x = nn.GroupNorm(
        num_groups=None,
        group_size=math.gcd(channels, 8),
        dtype=c.dtype,
        name=f'norm_{block + 1}',
        scale_init=partitioned(nn.initializers.ones, EMBED),
        bias_init=partitioned(nn.initializers.zeros, EMBED),
      )(jax.nn.relu(x))
      if channels > previous:
        x = nn.max_pool(x, (2, 2), strides=(2, 2), padding='SAME')
      previous = channels
    embedding_BD = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    return log_mel.Output(
      dense(self.num_outputs, (EMBED, VOCAB), use_bias=True, name='logits')(embedding_BD),
      embedding_BD,
    )

"""The log-mel CNN of AudioLM (arXiv 2209.03143): a waveform [T] to the logits of `num_classes` classes.

Classifies speakers (section IV-D), and with two classes detects generated speech (section IV-I). Six blocks of a 3x1
convolution over time and a 1x3 convolution over mel bands, ReLU and normalization; 2x2 max-pooling where the channels
grow; mean over what is left of time and bands; a linear layer.

Deviation: group norm in place of batch norm, so that an example is treated alone and there is no state. Chosen: the
log-mel is shifted and scaled by constants, so that loudness is kept.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from audiolm_jax import audio, losses
from audiolm_jax.nn.attention import EMBED, VOCAB, dense, partitioned
from audiolm_jax.stages.base import Aux, Batch, Feature, Key, Params, Stage, State, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  num_classes: int  # the paper: 291 speakers, or 2 to detect generated speech
  channels: tuple[int, ...] = (64, 128, 256, 256, 512, 512)
  num_mels: int = 64
  window_length: int = 400  # samples: 25 ms
  hop_length: int = 160  # samples: 10 ms
  sample_rate: int = 16_000  # Hz
  crop_seconds: float = 1.0
  dtype: Any = jnp.float32

  def make(self) -> Stage:
    num_samples = round(self.crop_seconds * self.sample_rate)
    return Stage(
        batch={
            'waveform': Feature((num_samples,), np.float32, self.sample_rate),
            'label': Feature((), np.int32, None),
        },
        init=lambda key: Variables(Classifier(self).init(key, jnp.zeros((1, num_samples)))['params'], {}),
        loss=lambda params, state, batch, key: loss(self, params, state, batch, key),
    )


class Classifier(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, wave_BT):
    c = self.config
    log_mel_BFM = audio.log_mel_spectrogram(
        wave_BT, sample_rate=c.sample_rate, window_length=c.window_length, hop_length=c.hop_length,
        num_mels=c.num_mels, fft_length=512,
    )
    x = ((log_mel_BFM + 5) / 3)[..., None].astype(c.dtype)  # about zero mean and unit variance on speech
    previous = c.channels[0]
    for block, channels in enumerate(c.channels):
      for shape in ((3, 1), (1, 3)):
        x = nn.Conv(
            channels, shape, dtype=c.dtype, name=f'conv_{block + 1}_{shape[0]}x{shape[1]}',
            kernel_init=partitioned(nn.initializers.he_normal(), None, None, None, EMBED),
            bias_init=partitioned(nn.initializers.zeros, EMBED),
        )(x)
      x = nn.GroupNorm(
          num_groups=None, group_size=math.gcd(channels, 8), dtype=c.dtype, name=f'norm_{block + 1}',
          scale_init=partitioned(nn.initializers.ones, EMBED), bias_init=partitioned(nn.initializers.zeros, EMBED),
      )(jax.nn.relu(x))
      if channels > previous:
        x = nn.max_pool(x, (2, 2), strides=(2, 2), padding='SAME')
      previous = channels
    mean_BD = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    return dense(c.num_classes, (EMBED, VOCAB), use_bias=True, name='logits')(mean_BD)


def loss(config: Config, params: Params, state: State, batch: Batch, key: Key | None) -> tuple[Array, Aux]:
  """Cross entropy; there is no noise in training, so `key` changes nothing."""
  del key
  logits_BN, label_B = logits(config, Variables(params, state), batch['waveform']), batch['label']
  # One label per example is a sequence of length 1; a negative label is padding.
  known_B1 = (label_B >= 0)[:, None]
  total = losses.cross_entropy(logits_BN[:, None], label_B[:, None], known_B1)
  correct_B = (jnp.argmax(logits_BN, axis=-1) == label_B).astype(jnp.float32)
  return total, Aux(state, {'loss': total, 'accuracy': losses.masked_mean(correct_B[:, None], known_B1)})


def logits(config: Config, variables: Variables, wave_BT: Float[Array, 'B T']) -> Float[Array, 'B N']:
  """Returns unnormalized log-probabilities of the classes, from waveforms of any length of at least one window.

  Raises ValueError when a waveform is shorter than `config.window_length` samples.
  """
  return Classifier(config).apply({'params': variables.params}, wave_BT)

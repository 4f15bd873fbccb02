"""The speaker classifier of AudioLM (arXiv 2209.03143, section IV-D): a waveform [T] to the logits
of N classes.

A convolutional network on log-mel (nn/log_mel_cnn.py says where it differs from the paper's),
trained by cross entropy; its embedding, what the logits are a linear function of, compares voices
that it was not trained on.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from audiolm_jax import checks, losses
from audiolm_jax.nn.log_mel_cnn import LogMelCNN, LogMelCNNConfig
from audiolm_jax.stages.base import Aux, Batch, Feature, Key, Params, Stage, State, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LogMelCNNConfig):
  num_classes: int  # the paper: 291 speakers

  def __post_init__(self):
    super().__post_init__()
    checks.fields(self, num_classes=checks.WHOLE)

  def make(self) -> Stage:
    return Stage(
      batch={
        'waveform': Feature((self.crop_length,), np.float32, self.sample_rate),
        'label': Feature((), np.int32, None, self.num_classes),
      },
      init=lambda key: Variables(
        _network(self).init(key, jnp.zeros((1, self.crop_length)))['params'], {}
      ),
      loss=lambda params, state, batch, key: loss(self, params, state, batch, key),
    )


def _network(config: Config) -> LogMelCNN:
  return LogMelCNN(config, config.num_classes)


def loss(
  config: Config, params: Params, state: State, batch: Batch, key: Key | None
) -> tuple[Array, Aux]:
  """Cross entropy; there is no noise in training, so `key` changes nothing."""
  del key
  logits_BN, label_B = logits(config, Variables(params, state), batch['waveform']), batch['label']
  # One label per example is a sequence of length 1; a negative label is padding.
  known_B1 = (label_B >= 0)[:, None]
  total = losses.cross_entropy(logits_BN[:, None], label_B[:, None], known_B1)
  correct_B = (jnp.argmax(logits_BN, axis=-1) == label_B).astype(jnp.float32)
  return total, Aux(
    state, {'loss': total, 'accuracy': losses.masked_mean(correct_B[:, None], known_B1)}
  )


def logits(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B T']
) -> Float[Array, 'B N']:
  """Returns unnormalized log-probabilities of the classes, from waveforms of any length of at least
  one window.

  Raises ValueError when a waveform is shorter than `config.window_length` samples.
  """
  checks.shapes(wave_BT=wave_BT)
  return _network(config).apply({'params': variables.params}, wave_BT).logits_BN


def embedding(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B T']
) -> Float[Array, 'B D']:
  """Returns what the logits are a linear function of; waveforms as for `logits`."""
  checks.shapes(wave_BT=wave_BT)
  return _network(config).apply({'params': variables.params}, wave_BT).embedding_BD

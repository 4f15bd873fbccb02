"""The detector of generated speech of AudioLM (arXiv 2209.03143, section IV-I): a waveform [T] to
the log odds [].

The log odds are those of "generated" against "original", positive where it sounds generated. The
network is the paper's convolutional one on log-mel (nn/log_mel_cnn.py says where ours differs),
trained on crops of 1 s, half of them original. Original audio has been through the codec, so that
what the codec does to a sound is no cue: whoever makes the training set must see to it.

Deviation: one logit with the logistic loss in place of two with the softmax; the functions are the
same.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from audiolm_jax import losses
from audiolm_jax.nn.log_mel_cnn import LogMelCNN, LogMelCNNConfig
from audiolm_jax.stages.base import Aux, Batch, Feature, Key, Params, Stage, State, Variables

ORIGINAL, GENERATED = 0, 1  # labels; a negative label is padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LogMelCNNConfig):
  """The network's fields; a type of its own, because the type of the config selects the stage."""

  def make(self) -> Stage:
    return Stage(
      batch={
        'waveform': Feature((self.crop_length,), np.float32, self.sample_rate),
        'label': Feature((), np.int32, None, 2),
      },
      init=lambda key: Variables(
        LogMelCNN(self, 1).init(key, jnp.zeros((1, self.crop_length)))['params'], {}
      ),
      loss=lambda params, state, batch, key: loss(self, params, state, batch, key),
    )


def loss(
  config: Config, params: Params, state: State, batch: Batch, key: Key | None
) -> tuple[Array, Aux]:
  """The logistic loss, in nats; there is no noise in training, so `key` changes nothing."""
  del key
  log_odds_B, label_B = (
    log_odds(config, Variables(params, state), batch['waveform']),
    batch['label'],
  )
  known_B = label_B >= 0
  total = losses.masked_mean(
    optax.sigmoid_binary_cross_entropy(log_odds_B, jnp.maximum(label_B, 0)), known_B
  )
  correct_B = ((log_odds_B > 0) == (label_B == GENERATED)).astype(jnp.float32)
  return total, Aux(state, {'loss': total, 'accuracy': losses.masked_mean(correct_B, known_B)})


def log_odds(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B T']
) -> Float[Array, 'B']:
  """Returns log p(generated) - log p(original) of waveforms of one crop each (other lengths: at
  least one window).

  Where originals and generated audio are equally frequent; not calibrated (metrics.detection does
  that).

  Raises ValueError when a waveform is shorter than `config.window_length` samples.
  """
  return LogMelCNN(config, 1).apply({'params': variables.params}, wave_BT).logits_BN[:, 0]

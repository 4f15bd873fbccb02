"""Detector of generated speech (AudioLM, arXiv 2209.03143, section IV-I).

Maps a waveform [T] to the log odds [] of "generated" against "original". The network is the paper's
convolutional network on log-mel (nn/log_mel_cnn.py lists deviations), trained on crops of 1 s, of
which half are original. Original audio of the training set has to pass through the codec, too, or
the detector would learn codec artifacts.

Deviation: one logit with the logistic loss instead of two logits with the softmax; both define the
same functions.
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
  """Configures the detector by the fields of the network; the type selects this stage."""

  def make(self) -> Stage:
    """Returns the stage; batches hold waveforms and labels, ORIGINAL or GENERATED."""
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
  """Returns the logistic loss in nats; `key` is ignored, because training uses no noise.

  Args:
    config: of the stage.
    params: parameters.
    state: running state of the stage.
    batch: what `config.make().batch` describes.
    key: PRNG key; None in evaluation.
  """
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
  """Returns log p(generated) - log p(original) in nats, assuming equal frequencies.

  The values are not calibrated; see `metrics.detection`.

  Args:
    config: sizes of the network.
    variables: parameters of the network.
    wave_BT: waveforms of one crop (at least one window).

  Raises:
    UserError: if a waveform is shorter than `config.window_length` samples.
  """
  return LogMelCNN(config, 1).apply({'params': variables.params}, wave_BT).logits_BN[:, 0]

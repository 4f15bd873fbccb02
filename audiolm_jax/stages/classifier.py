"""Speaker classifier (AudioLM, arXiv 2209.03143, section IV-D): waveform [T] -> N logits.

A convolutional network on log-mel (nn/log_mel_cnn.py lists deviations from the paper), trained by
cross entropy. Its embedding, the input of the last linear layer, also compares voices that are not
in the training set.
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
  """Configures the classifier by the fields of the network and the number of classes."""

  num_classes: int  # 291 speakers in the paper

  def __post_init__(self):
    super().__post_init__()
    checks.fields(self, num_classes=checks.WHOLE)

  def make(self) -> Stage:
    """Returns the stage; batches hold waveforms and labels."""
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
  """Returns the cross entropy in nats; `key` is ignored, because training uses no noise.

  Args:
    config: of the stage.
    params: parameters.
    state: running state of the stage.
    batch: what `config.make().batch` describes.
    key: PRNG key; None in evaluation.
  """
  del key
  logits_BN, label_B = logits(config, Variables(params, state), batch['waveform']), batch['label']
  # A label is a sequence of length 1; a negative label is padding.
  known_B1 = (label_B >= 0)[:, None]
  total = losses.cross_entropy(logits_BN[:, None], label_B[:, None], known_B1)
  correct_B = (jnp.argmax(logits_BN, axis=-1) == label_B).astype(jnp.float32)
  return total, Aux(
    state, {'loss': total, 'accuracy': losses.masked_mean(correct_B[:, None], known_B1)}
  )


def logits(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B T']
) -> Float[Array, 'B N']:
  """Returns unnormalized log-probabilities of the classes.

  Args:
    config: sizes of the network.
    variables: parameters of the network.
    wave_BT: waveforms of at least one window.

  Raises:
    UserError: if a waveform is shorter than `config.window_length` samples.
  """
  checks.shapes(wave_BT=wave_BT)
  return _network(config).apply({'params': variables.params}, wave_BT).logits_BN


def embedding(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B T']
) -> Float[Array, 'B D']:
  """Returns the input of the last linear layer of the network.

  Args:
    config: of the stage.
    variables: parameters and state.
    wave_BT: waveforms of at least one window.

  Raises:
    UserError: as `logits`.
  """
  checks.shapes(wave_BT=wave_BT)
  return _network(config).apply({'params': variables.params}, wave_BT).embedding_BD

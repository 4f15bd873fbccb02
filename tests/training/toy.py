"""A small stage with logical axes, state, noise and two parameter groups; and its data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from audiolm_jax.nn import attention
from audiolm_jax.stages import base


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
  noise: float = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  width: int = 16
  widths: tuple[int, ...] = (8, 1)
  dtype: type = jnp.float32
  inner: Inner = Inner()

  def make(self) -> base.Stage:
    hidden, output = (
      attention.dense(self.widths[0], ('embed', 'mlp'), use_bias=True),
      attention.dense(self.widths[1], ('mlp', None), use_bias=True),
    )

    def init(key):
      first, second = jax.random.split(key)
      params = {
        'hidden': hidden.init(first, jnp.zeros((1, self.width)))['params'],
        'output': output.init(second, jnp.zeros((1, self.widths[0])))['params'],
      }
      return base.Variables(
        params, {'mean': jnp.zeros(self.width), 'count': jnp.zeros((), jnp.int32)}
      )

    def loss(params, state, batch, key):
      x_BN = batch['waveform']
      if key is not None:
        mean = 0.9 * state['mean'] + 0.1 * x_BN.mean(axis=0)
        state = {'mean': mean, 'count': state['count'] + 1}
        x_BN = x_BN + self.inner.noise * jax.random.normal(key, x_BN.shape)
      h_BN = nn.tanh(hidden.apply({'params': params['hidden']}, x_BN - state['mean']))
      error_B = output.apply({'params': params['output']}, h_BN)[:, 0] - batch['target']
      value = jnp.mean(error_B**2)
      return value, base.Aux(state, {'mean_error': jnp.mean(error_B)})

    features = {
      'waveform': base.Feature((self.width,), np.float32, None),
      'target': base.Feature((), np.float32, None),
    }
    return base.Stage(features, init, loss)


class Batches:
  """Batch `index` is a function of `index` alone; `poison` is the index of a batch with a NaN."""

  def __init__(self, batch_size=8, width=16, process=0, processes=1, poison=None):
    share = batch_size // processes
    self._size, self._width, self._poison = batch_size, width, poison
    self._rows = slice(process * share, (process + 1) * share)
    self._index = 0

  def __iter__(self):
    return self

  def __next__(self):
    random = np.random.default_rng(self._index)
    wave = random.normal(size=(self._size, self._width)).astype(np.float32)
    if self._index == self._poison:
      wave[0, 0] = np.nan
    self._index += 1
    batch = {'waveform': wave, 'target': np.sin(wave.sum(axis=1)).astype(np.float32)}
    return {name: array[self._rows] for name, array in batch.items()}

  def get_state(self):
    return {'next_index': self._index}

  def set_state(self, state):
    self._index = state['next_index']

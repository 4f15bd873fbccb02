"""CTC speech recognizers of HuBERT base's layout: `Wav2Vec2ForCTC` and `HubertForCTC`.

An example is `facebook/wav2vec2-base-960h` (Apache-2.0), whose encoder has the layout of HuBERT
base. A linear layer gives the logits of characters for each frame of 20 ms; the best path without
repeats and blanks is the text (Graves et al., 2006). Models are loaded from a folder with
config.json, model.safetensors and vocab.json, without torch or tokenizer code.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from audiolm_jax import audio
from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import hubert, tensors
from audiolm_jax.pretrained.layers import Model
from audiolm_jax.stages.base import Variables

ENCODERS = ('hubert', 'wav2vec2')  # the `model_type`, and prefix of the encoder's tensors
VOCABULARY = 'vocab.json'
SEPARATOR = '|'  # between words
UNUSED = r'(hubert|wav2vec2)\.masked_spec_embed'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  encoder: hubert.Config
  name: str  # of the encoder, one of ENCODERS
  symbols: tuple[str, ...]  # by number; those such as <s> are not text
  blank: int

  def make(self) -> Model:
    return Model(lambda key: _init(self, key))


def from_folder(folder: str | os.PathLike) -> tuple[Config, Variables]:
  """Loads config and variables of the recognizer in a folder.

  Raises:
    UserError: if it is another model, or damaged.
  """
  folder = pathlib.Path(folder)
  data = tensors.read_json(folder / tensors.CONFIG)
  kind, architectures = str(data.get('model_type')), data.get('architectures') or []
  if kind not in ENCODERS or not any(str(name).endswith('ForCTC') for name in architectures):
    raise UserError(
      f'{folder / tensors.CONFIG} has model_type={kind[:80]!r} and '
      f'architectures={str(architectures)[:80]}: a recognizer is one of {", ".join(ENCODERS)} '
      'whose architecture ends in ForCTC'
    )
  try:
    encoder = hubert.config_from(data)
  except ValueError as error:
    raise UserError(f'{folder}: {error}; only recognizers of size base are supported') from error
  symbols = _symbols(folder / VOCABULARY, tensors.integer(data, 'vocab_size', 32))
  blank = data.get('pad_token_id', 0)
  if type(blank) is not int or not 0 <= blank < len(symbols):
    raise UserError(
      f'{folder / tensors.CONFIG}: pad_token_id={str(blank)[:80]}, the blank, is no symbol of '
      f'{VOCABULARY}'
    )
  config = Config(encoder=encoder, name=kind, symbols=symbols, blank=blank)
  template = jax.eval_shape(config.make().init, jax.random.key(0)).params
  return config, Variables(tensors.load(folder, template, UNUSED), {})


def _symbols(path: pathlib.Path, size: int) -> tuple[str, ...]:
  numbers = tensors.read_json(path)
  if sorted(map(str, numbers.values())) != sorted(map(str, range(size))):
    raise UserError(
      f'{path} does not number its symbols from 0 to {size - 1}, as vocab_size={size} asks'
    )
  return tuple(sorted(numbers, key=numbers.get))


def _init(config: Config, key: jax.Array) -> Variables:
  encoder_key, head_key = jax.random.split(key)
  encoder = config.encoder.make().init(encoder_key).params
  head = _head(config).init(head_key, jnp.zeros((1, config.encoder.width)))['params']
  return Variables({config.name: encoder, 'lm_head': head}, {})


def _head(config: Config) -> nn.Dense:
  return nn.Dense(len(config.symbols))


def logits(
  config: Config,
  variables: Variables,
  wave_BT: Float[Array, 'B T'],
  num_samples_B: Int[Array, 'B'] | None = None,
) -> Float[Array, 'B S V']:
  """Returns the logits of the symbols of each frame; see `hubert.hidden_states`."""
  encoder = Variables(variables.params[config.name], {})
  hidden_BSD = hubert.features(
    config.encoder, encoder, wave_BT, config.encoder.num_layers, num_samples_B
  )
  return _head(config).apply({'params': variables.params['lm_head']}, hidden_BSD)


def text(config: Config, symbol_S: Sequence[int]) -> str:
  """Returns the text of a path of symbols, one per frame."""
  said = [
    config.symbols[number] for number, _ in itertools.groupby(symbol_S) if number != config.blank
  ]
  return ' '.join(
    ''.join(symbol for symbol in said if len(symbol) == 1).replace(SEPARATOR, ' ').split()
  )


def recognizer(folder: str | os.PathLike) -> Callable[[np.ndarray, int], str]:
  """Returns a function (waveform [T], rate in Hz) -> text, for `metrics.speech.error_rates`."""
  config, variables = from_folder(folder)

  def recognize(wave_T: np.ndarray, sample_rate: int) -> str:
    rate, shortest = config.encoder.sample_rate, config.encoder.frame_length
    wave_1T = audio.resample(np.asarray(wave_T, np.float32)[None], sample_rate, rate)
    length = max(wave_1T.shape[1], shortest)
    # Padding to whole seconds limits compilations.
    padded_1T = np.pad(wave_1T, ((0, 0), (0, -(-length // rate) * rate - wave_1T.shape[1])))
    best_1S = _best(config, variables, padded_1T, np.array([length]))
    return text(
      config, np.asarray(best_1S)[0, : int(hubert.num_frames(config.encoder, length))].tolist()
    )

  return recognize


@functools.partial(jax.jit, static_argnums=0)
def _best(config, variables, wave_BT, num_samples_B):
  return jnp.argmax(logits(config, variables, wave_BT, num_samples_B), axis=-1)

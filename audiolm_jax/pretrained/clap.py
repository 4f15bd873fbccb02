"""CLAP (Wu et al., 2023, arXiv 2211.06687) from Hugging Face's `ClapModel`: audio and texts to one
space.

It stands in for MuLan, which was never published: a music model is trained on unit vectors of audio
(`audio_embeddings`) and asked with those of texts (`text_embeddings`); `embedding_tokens` makes 12
tokens of either.
Checkpoints that are not fused: `laion/clap-htsat-unfused`, `laion/larger_clap_music`,
`..._general`, `..._music_and_speech`.

What is the vector of a clip of any length? The original takes ten seconds at random from a longer
clip, so that it is
another one each time. Here it is always the same: ten seconds from every second on (while they
fit), and the mean of
their unit vectors, as a unit vector: the windows and the stride of MusicLM (arXiv 2301.11325). A
shorter clip is repeated as often as it fits into ten seconds as a whole, then zeros follow, as in
the original.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import byte_pairs, clap_audio, clap_text, tensors
from audiolm_jax.pretrained.clap_audio import CLIP, SAMPLE_RATE
from audiolm_jax.pretrained.layers import Model, check_not_empty
from audiolm_jax.stages.base import Variables

MODEL_TYPE = 'clap'
# What follows from the shapes, or is of use in training alone.
UNUSED = r'(.*\.)?(position_ids|token_type_ids|relative_position_index|num_batches_tracked)'
STRIDE = SAMPLE_RATE  # samples from one window of a long clip to the next


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Defaults: `laion/clap-htsat-unfused`."""

  audio: clap_audio.Config = clap_audio.Config()
  text: clap_text.Config = clap_text.Config()
  embedding_dim: int = 512

  @property
  def sample_rate(self) -> int:
    """Hz."""
    return SAMPLE_RATE

  @property
  def files(self) -> tuple[str, ...]:
    """What belongs to the model beside its weights."""
    return byte_pairs.FILES

  def make(self) -> Model:
    return Model(lambda key: _init(self, key))


def config_from(data: Mapping[str, Any]) -> Config:
  """Returns the config that a `ClapModel`'s config.json describes; ValueError for what we do not
  implement.
  """
  tensors.require(data, {'projection_hidden_act': 'relu'})
  parts = {}
  for name, module in (('audio_config', clap_audio), ('text_config', clap_text)):
    part = data.get(name)
    if not isinstance(part, dict):
      raise UserError(f'{tensors.CONFIG}: {name}={str(part)[:80]}; expected an object')
    try:
      parts[name] = module.config_from(part)
    except ValueError as error:
      raise UserError(f'{name}: {error}') from error
  return Config(
    audio=parts['audio_config'],
    text=parts['text_config'],
    embedding_dim=tensors.integer(data, 'projection_dim', Config().embedding_dim),
  )


def load(folder: pathlib.Path, config: Config) -> Variables:
  """Returns the weights in `folder`; ValueError with a parameter diff where they are not those of
  `config`.
  """
  template = jax.eval_shape(config.make().init, jax.random.key(0)).params
  return Variables(tensors.load(folder, template, UNUSED), {})


def tokenizer(config: Config, folder: pathlib.Path) -> byte_pairs.BytePairs:
  """Returns what cuts texts into this model's tokens, from the vocab.json and merges.txt in
  `folder`.

  It may be the folder of the publisher or the one that `experiments.pretrained import` made. Raises
  ValueError where the files are missing or damaged, or are those of another model.
  """
  return byte_pairs.load(folder, config.text.vocab_size, config.text.padding)


def tokens(
  config: Config, pairs: byte_pairs.BytePairs, texts: Sequence[str]
) -> Int[np.ndarray, 'B L']:
  """Returns the token ids of texts, with padding up to a multiple of 16, so that few lengths are
  compiled.

  Raises ValueError for no texts, and for a text of more tokens than the model has positions (512 in
  those published).
  """
  return byte_pairs.encode_all(pairs, texts, config.text.max_tokens, multiple=16)


class Projection(nn.Module):
  features: int

  @nn.compact
  def __call__(self, x_BD):
    hidden = nn.relu(nn.Dense(self.features, name='linear1')(x_BD))
    return nn.Dense(self.features, name='linear2')(hidden)


def _init(config: Config, key: jax.Array) -> Variables:
  keys = iter(jax.random.split(key, 4))
  params = lambda module, *shape, dtype=jnp.float32: module.init(
    next(keys), jnp.zeros(shape, dtype)
  )['params']
  projection = Projection(config.embedding_dim)
  encoder = params(clap_audio.Encoder(config.audio), 1, clap_audio.FRAMES, config.audio.num_mels)
  scale = jnp.log(jnp.float32(1 / 0.07))
  return Variables(
    {
      'audio_model': {'audio_encoder': encoder},
      'audio_projection': params(projection, 1, config.audio.output_width),
      'text_model': params(clap_text.Encoder(config.text), 1, 2, dtype=jnp.int32),
      'text_projection': params(projection, 1, config.text.width),
      'logit_scale_a': scale,
      'logit_scale_t': scale,
    },
    {},
  )


def _project(config: Config, params: Mapping[str, Any], x_BD: Array) -> Array:
  return _unit(Projection(config.embedding_dim).apply({'params': params}, x_BD))


def _unit(x_BD: Array) -> Array:
  return x_BD / jnp.linalg.norm(x_BD, axis=-1, keepdims=True)


def window_states(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B 480000']
) -> tuple[Array, list[Array]]:
  """Returns what the audio tower makes of ten seconds, before the projection: the mean patch, and
  each stage's.
  """
  mels_BFM = clap_audio.log_mel(config.audio, wave_BT)
  params = variables.params['audio_model']['audio_encoder']
  return clap_audio.Encoder(config.audio).apply({'params': params}, mels_BFM)


def filled(wave_BT: Float[Array, 'B T']) -> Float[Array, 'B N']:
  """Returns clips of at least ten seconds: shorter ones repeated as often as they fit as a whole,
  then zeros.
  """
  num_samples = wave_BT.shape[-1]
  if num_samples < CLIP:
    wave_BT = jnp.tile(wave_BT, (1, CLIP // num_samples))
    wave_BT = jnp.pad(wave_BT, ((0, 0), (0, CLIP - wave_BT.shape[-1])))
  return wave_BT


def audio_embeddings(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B T']
) -> Float[Array, 'B D']:
  """Returns a unit vector for each clip at 48 kHz, of any length but 0; see the top of this file.

  What is behind the last whole second of a clip of more than ten is not heard. Raises ValueError
  for empty clips.
  """
  check_not_empty(wave_BT.shape[-1])
  wave_BT = filled(wave_BT)

  def embed(start):
    mean_BD, _ = window_states(
      config, variables, jax.lax.dynamic_slice_in_dim(wave_BT, start, CLIP, axis=1)
    )
    return _project(config, variables.params['audio_projection'], mean_BD)

  starts_N = STRIDE * jnp.arange((wave_BT.shape[-1] - CLIP) // STRIDE + 1)
  # one by one: an hour must not need an hour's memory
  return _unit(jnp.mean(jax.lax.map(embed, starts_N), axis=0))


def text_states(
  config: Config, variables: Variables, tokens_BL: Int[Array, 'B L']
) -> tuple[Array, list[Array]]:
  """Returns what the text tower makes of token ids, before the projection: a vector for each text,
  and each layer's.
  """
  return clap_text.Encoder(config.text).apply({'params': variables.params['text_model']}, tokens_BL)


def text_embeddings(
  config: Config, variables: Variables, tokens_BL: Int[Array, 'B L']
) -> Float[Array, 'B D']:
  """Returns a unit vector for each text.

  Args:
    tokens_BL: of `tokens`; padding after a text does not change its vector. L of at most
    `config.text.max_tokens`.

  Raises:
    ValueError: L is too long.
  """
  if tokens_BL.shape[-1] > config.text.max_tokens:
    raise UserError(
      f'{tokens_BL.shape[-1]} tokens: this model reads at most {config.text.max_tokens}'
    )
  return _project(
    config, variables.params['text_projection'], text_states(config, variables, tokens_BL)[0]
  )


def logits(
  variables: Variables, audio_BD: Float[Array, 'B D'], text_ND: Float[Array, 'N D']
) -> Float[Array, 'B N']:
  """Returns how well each clip fits each text, on the scale that the audio tower was trained
  with.
  """
  return jnp.exp(variables.params['logit_scale_a']) * audio_BD @ text_ND.T

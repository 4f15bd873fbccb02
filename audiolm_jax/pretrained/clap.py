"""CLAP (Wu et al., 2023, arXiv 2211.06687) from Hugging Face's `ClapModel`.

Maps audio and texts to unit vectors of one space, as MuLan, whose weights are not published. A
music model is trained on audio embeddings (`audio_embeddings`) and prompted with text embeddings
(`text_embeddings`); `embedding_tokens` quantizes both to 12 tokens. `joint_embedding` binds either
model to its weights. Supported checkpoints are the unfused ones: `laion/clap-htsat-unfused`,
`laion/larger_clap_music`, `..._general`, `..._music_and_speech`.

The original embeds ten random seconds of a longer clip. Here the embedding is deterministic: the
normalized mean of the unit vectors of ten-second windows with a stride of one second, as in MusicLM
(arXiv 2301.11325). A shorter clip is repeated a whole number of times within ten seconds and
zero-padded, as in the original.
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
# Tensors that follow from shapes or are needed in training only.
UNUSED = r'(.*\.)?(position_ids|token_type_ids|relative_position_index|num_batches_tracked)'
STRIDE = SAMPLE_RATE  # samples between the windows of a long clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures CLAP; the defaults are those of `laion/clap-htsat-unfused`."""

  audio: clap_audio.Config = clap_audio.Config()
  text: clap_text.Config = clap_text.Config()
  embedding_dim: int = 512

  @property
  def sample_rate(self) -> int:
    """Sample rate in Hz."""
    return SAMPLE_RATE

  @property
  def files(self) -> tuple[str, ...]:
    """Names of the model's files, in addition to weights and config."""
    return byte_pairs.FILES

  def make(self) -> Model:
    return Model(lambda key: _init(self, key))


def config_from(data: Mapping[str, Any]) -> Config:
  """Returns the config described by a `ClapModel`'s config.json.

  Raises:
    UserError: if it asks for something that is not implemented.
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
  """Loads the weights in `folder`.

  Raises:
    UserError: with a parameter diff, if they do not match `config`.
  """
  template = jax.eval_shape(config.make().init, jax.random.key(0)).params
  return Variables(tensors.load(folder, template, UNUSED), {})


def tokenizer(config: Config, folder: pathlib.Path) -> byte_pairs.BytePairs:
  """Loads the tokenizer from the vocab.json and merges.txt in `folder`.

  The folder is that of the publisher, or one made by `experiments.pretrained import`.

  Raises:
    UserError: if the files are missing, damaged, or belong to another model.
  """
  return byte_pairs.load(folder, config.text.vocab_size, config.text.padding)


def tokens(
  config: Config, pairs: byte_pairs.BytePairs, texts: Sequence[str]
) -> Int[np.ndarray, 'B L']:
  """Returns the token ids of texts, padded to a multiple of 16 to limit compilations.

  Raises:
    UserError: if there is no text, or a text has more tokens than the model has positions (512 in
      published models).
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
  """Returns the audio tower's mean patch and the states of each stage, for ten seconds of audio."""
  mels_BFM = clap_audio.log_mel(config.audio, wave_BT)
  params = variables.params['audio_model']['audio_encoder']
  return clap_audio.Encoder(config.audio).apply({'params': params}, mels_BFM)


def window_embeddings(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B 480000']
) -> Float[Array, 'B D']:
  """Returns a unit vector of ten seconds of audio at 48 kHz."""
  mean_BD, _ = window_states(config, variables, wave_BT)
  return _project(config, variables.params['audio_projection'], mean_BD)


def filled(wave_BT: Float[Array, 'B T']) -> Float[Array, 'B N']:
  """Returns clips of at least ten seconds: shorter ones are repeated in whole, then zero-padded."""
  num_samples = wave_BT.shape[-1]
  if num_samples < CLIP:
    wave_BT = jnp.tile(wave_BT, (1, CLIP // num_samples))
    wave_BT = jnp.pad(wave_BT, ((0, 0), (0, CLIP - wave_BT.shape[-1])))
  return wave_BT


def audio_embeddings(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B T']
) -> Float[Array, 'B D']:
  """Returns a unit vector of each clip at 48 kHz, of any length; see the module's docstring.

  In clips longer than ten seconds, samples after the last whole second are ignored.

  Raises:
    UserError: if clips are empty.
  """
  check_not_empty(wave_BT)
  wave_BT = filled(wave_BT)

  def embed(start):
    return window_embeddings(
      config, variables, jax.lax.dynamic_slice_in_dim(wave_BT, start, CLIP, axis=1)
    )

  starts_N = STRIDE * jnp.arange((wave_BT.shape[-1] - CLIP) // STRIDE + 1)
  # Windows run one by one, to bound the memory of long clips.
  return _unit(jnp.mean(jax.lax.map(embed, starts_N), axis=0))


def text_states(
  config: Config, variables: Variables, tokens_BL: Int[Array, 'B L']
) -> tuple[Array, list[Array]]:
  """Returns the text tower's vector of each text and the states of each layer."""
  return clap_text.Encoder(config.text).apply({'params': variables.params['text_model']}, tokens_BL)


def text_embeddings(
  config: Config, variables: Variables, tokens_BL: Int[Array, 'B L']
) -> Float[Array, 'B D']:
  """Returns a unit vector of each text.

  Args:
    config: sizes of the model.
    variables: its parameters.
    tokens_BL: ids from `tokens`, at most `config.text.max_tokens`; padding does not change the
      vector.

  Raises:
    UserError: if L is too long.
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
  """Returns the similarity of each clip and text, scaled as in training by the audio tower."""
  return jnp.exp(variables.params['logit_scale_a']) * audio_BD @ text_ND.T

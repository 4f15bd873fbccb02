"""CLAP's text tower: RoBERTa (Liu et al., 2019, arXiv 1907.11692), token ids to text vectors.

Padding (id 1) is masked and has no position: the vector of a text does not depend on padding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from audiolm_jax.errors import UserError
from audiolm_jax.nn.attention import attend
from audiolm_jax.pretrained import tensors
from audiolm_jax.pretrained.layers import layer_norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures the text tower; the defaults are those of all published CLAPs."""

  vocab_size: int = 50_265
  padding: int = 1  # token id
  num_positions: int = 514  # the first `padding + 1` are unused
  num_types: int = 1  # sentence types; only the first is used
  num_layers: int = 12
  width: int = 768
  num_heads: int = 12
  mlp_width: int = 3072
  epsilon: float = 1e-12  # of the layer norms

  @property
  def max_tokens(self) -> int:
    """Maximum number of tokens of a text, including the start and end tokens."""
    return self.num_positions - self.padding - 1


def config_from(data: Mapping[str, Any]) -> Config:
  """Returns the config described by `text_config` of a config.json.

  Raises:
    UserError: if it asks for something that is not implemented.
  """
  tensors.require(
    data, {'hidden_act': 'gelu', 'position_embedding_type': 'absolute', 'is_decoder': False}
  )
  default = Config()
  config = Config(
    vocab_size=tensors.integer(data, 'vocab_size', default.vocab_size),
    padding=tensors.integer(data, 'pad_token_id', default.padding),
    num_positions=tensors.integer(data, 'max_position_embeddings', default.num_positions),
    num_types=tensors.integer(data, 'type_vocab_size', default.num_types),
    num_layers=tensors.integer(
      data, 'num_hidden_layers', default.num_layers, high=tensors.MAX_LAYERS
    ),
    width=tensors.integer(data, 'hidden_size', default.width),
    num_heads=tensors.integer(data, 'num_attention_heads', default.num_heads),
    mlp_width=tensors.integer(data, 'intermediate_size', default.mlp_width),
    epsilon=tensors.positive(data, 'layer_norm_eps', default.epsilon, high=1.0),
  )
  if config.width % config.num_heads:
    raise UserError(
      f'hidden_size={config.width} is not a multiple of num_attention_heads={config.num_heads}'
    )
  if config.padding >= config.vocab_size or config.max_tokens < 2:
    raise UserError(
      f'pad_token_id={config.padding} leaves no text in vocab_size={config.vocab_size} and '
      f'max_position_embeddings={config.num_positions}'
    )
  return config


class Embeddings(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, tokens_BL):
    c = self.config
    inside_BL = tokens_BL != c.padding
    position_BL = jnp.where(inside_BL, jnp.cumsum(inside_BL, axis=1), 0) + c.padding
    embed = lambda name, size, index: nn.Embed(size, c.width, name=name)(index)
    return layer_norm(c.epsilon, 'LayerNorm')(
      embed('word_embeddings', c.vocab_size, tokens_BL)
      + embed('token_type_embeddings', c.num_types, jnp.zeros_like(tokens_BL))
      + embed('position_embeddings', c.num_positions, position_BL)
    )


class SelfAttention(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BLD, mask):
    heads = (*x_BLD.shape[:-1], self.config.num_heads, -1)
    query, key, value = (
      nn.Dense(self.config.width, name=name)(x_BLD).reshape(heads)
      for name in ('query', 'key', 'value')
    )
    return attend(query, key, value, mask=mask).reshape(x_BLD.shape)


class Residual(nn.Module):
  """Linear layer, residual connection and layer norm."""

  config: Config

  @nn.compact
  def __call__(self, x_BLN, around_BLD):
    return layer_norm(self.config.epsilon, 'LayerNorm')(
      around_BLD + nn.Dense(self.config.width, name='dense')(x_BLN)
    )


class Attention(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BLD, mask):
    return Residual(self.config, name='output')(
      SelfAttention(self.config, name='self')(x_BLD, mask), x_BLD
    )


class Intermediate(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BLD):
    return nn.gelu(nn.Dense(self.config.mlp_width, name='dense')(x_BLD), approximate=False)


class Layer(nn.Module):
  """Post-norm Transformer layer."""

  config: Config

  @nn.compact
  def __call__(self, x_BLD, mask):
    x_BLD = Attention(self.config, name='attention')(x_BLD, mask)
    return Residual(self.config, name='output')(
      Intermediate(self.config, name='intermediate')(x_BLD), x_BLD
    )


class Layers(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BLD, mask):
    states = [x_BLD]
    for number in range(self.config.num_layers):
      states.append(Layer(self.config, name=f'layer_{number}')(states[-1], mask))
    return states


class Pooler(nn.Module):
  """Returns the projected first token as the vector of the text."""

  config: Config

  @nn.compact
  def __call__(self, x_BLD):
    return jnp.tanh(nn.Dense(self.config.width, name='dense')(x_BLD[:, 0]))


class Encoder(nn.Module):
  """Token ids [B, L] -> text vectors [B, D], and the states of each layer.

  The states are the input of the first layer and the output of each one.
  """

  config: Config

  @nn.compact
  def __call__(self, tokens_BL):
    mask = (tokens_BL != self.config.padding)[:, None, None]
    states = Layers(self.config, name='encoder')(
      Embeddings(self.config, name='embeddings')(tokens_BL), mask
    )
    return Pooler(self.config, name='pooler')(states[-1]), states

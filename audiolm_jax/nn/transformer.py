"""Decoder-only Transformer with T5 relative positions, for whole sequences or cached decoding.

Pre-norm (RMS), ungated GELU feed-forward, no biases, untied input and output tables. The paper
states T5's relative positions and the sizes; norm, feed-forward type and tying are choices of this
implementation.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from audiolm_jax import checks, tokens
from audiolm_jax.errors import UserError
from audiolm_jax.nn import attention, block_attention, placement
from audiolm_jax.nn.attention import (
  EMBED,
  HEADS,
  LAYERS,
  MLP,
  VOCAB,
  LayerCache,
  Tiles,
  dense,
  partitioned,
)
from audiolm_jax.nn.dropout import Dropout


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
  """Sizes of AudioLM's Transformers (section IV-B); the default 12 layers have 151 M parameters.

  Fields:
    num_layers: number of layers.
    num_heads: number of attention heads.
    width: model width.
    mlp_width: hidden width of the feed-forward.
    dropout_rate: dropout probability.
    num_buckets: number of T5's relative position buckets, shared by all layers.
    max_distance: distance in tokens from which on all positions share one bucket.
    dtype: dtype of activations; parameters, softmax, norms and logits are float32.
    remat: whether to recompute the activations of a layer in the backward pass.
  """

  num_layers: int = 12
  num_heads: int = 16
  width: int = 1024
  mlp_width: int = 4096
  dropout_rate: float = 0.1
  num_buckets: int = 32
  max_distance: int = 128
  dtype: str = 'bfloat16'
  remat: bool = True

  def __post_init__(self):
    checks.fields(
      self,
      num_layers=checks.WHOLE,
      num_heads=checks.WHOLE,
      width=checks.WHOLE,
      mlp_width=checks.WHOLE,
      dropout_rate=checks.BELOW_ONE,
      num_buckets=checks.whole(2),
      max_distance=checks.WHOLE,
      dtype=checks.FLOAT_TYPE,
      remat=checks.FLAG,
    )
    if self.width % self.num_heads:
      raise UserError(
        f'width={self.width} is not a multiple of num_heads={self.num_heads}: change one of them'
      )
    if self.max_distance <= self.num_buckets // 2:
      raise UserError(
        f'max_distance={self.max_distance} must exceed half of num_buckets={self.num_buckets}'
      )


class KVCache(NamedTuple):
  """Holds keys and values of the columns processed so far, one buffer per layer.

  `valid_BN` is False at PAD; `bias_HM` is from `distance_bias`; `index` is the next column.
  """

  layers: tuple[LayerCache, ...]
  valid_BN: Array
  bias_HM: Array
  index: Array


def relative_buckets(
  distance: Int[Array, '*dims'], num_buckets: int, max_distance: int
) -> Int[Array, '*dims']:
  """Returns T5's causal bucket of distances (query column - key column).

  The first half of the buckets is exact, the rest grows logarithmically up to `max_distance`.
  Negative distances count as 0.
  """
  exact = num_buckets // 2
  distance = jnp.maximum(distance, 0)
  ratio = jnp.maximum(distance, 1).astype(jnp.float32) / exact
  growth = jnp.log(ratio) / np.log(max_distance / exact) * (num_buckets - exact)
  # The small term puts exact powers, which float32 may round down, in the upper bucket.
  far = exact + jnp.maximum(growth + 1e-5, 0).astype(jnp.int32)
  return jnp.where(distance < exact, distance, jnp.minimum(far, num_buckets - 1))


def sinusoids(times_BL: Float[Array, 'B L'], width: int) -> Float[Array, 'B L D']:
  """Returns sines and cosines of times in seconds.

  Periods range from 0.08 s (two semantic frames) to 40 s.
  """
  periods_N = np.geomspace(0.08, 40.0, width // 2)
  angle_BLN = times_BL[..., None] * (2 * np.pi / periods_N).astype(np.float32)
  return jnp.concatenate([jnp.sin(angle_BLN), jnp.cos(angle_BLN)], axis=-1)


class Block(nn.Module):
  """Pre-norm residual block [B, L, D] -> [B, L, D]: attention, then feed-forward."""

  config: TransformerConfig
  deterministic: bool = True
  causal: bool = True
  decoding: bool = False

  @nn.compact
  def __call__(self, x_BLD, bias, mask, cache: LayerCache | None = None, index=None):
    config, dtype, decoding = self.config, jnp.dtype(self.config.dtype), self.decoding
    x_BLD = placement.by_batch(x_BLD)
    drop = Dropout(config.dropout_rate, deterministic=self.deterministic)
    attend = attention.SelfAttention(
      config.num_heads, dtype, self.causal, decoding, name='attention'
    )
    linear = functools.partial(dense, dtype=dtype, decoding=decoding)
    mixed_BLD = attend(
      norm(dtype, 'attention_norm')(x_BLD), bias=bias, mask=mask, cache=cache, index=index
    )
    if decoding:
      mixed_BLD, cache = mixed_BLD
    x_BLD += drop(mixed_BLD)
    hidden = linear(config.mlp_width, (EMBED, MLP), name='mlp_in')(norm(dtype, 'mlp_norm')(x_BLD))
    x_BLD += drop(linear(config.width, (MLP, EMBED), name='mlp_out')(nn.gelu(hidden)))
    self.sow('intermediates', 'hidden', x_BLD)
    return x_BLD, cache


def norm(dtype: Any, name: str) -> nn.RMSNorm:
  return nn.RMSNorm(dtype=dtype, scale_init=partitioned(nn.initializers.ones, EMBED), name=name)


def stacked(config: TransformerConfig, deterministic: bool, causal: bool = True) -> nn.Module:
  """Returns the blocks of all layers as one scan, the submodule 'layers' of the calling module."""
  block = Block
  if config.remat:
    block = nn.remat(Block, policy=attention.REMAT_POLICY, prevent_cse=False)
  scan = nn.scan(
    block,
    variable_axes={'params': 0, 'intermediates': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=(nn.broadcast, nn.broadcast),
    length=config.num_layers,
    unroll=placement.unrolls_layers(),
    metadata_params={nn.PARTITION_NAME: LAYERS},
  )
  return scan(config, deterministic, causal, name='layers')


class Transformer(nn.Module):
  """Maps token ids [B, L] to hidden vectors [B, L, D] and the output table [V, D] of the logits.

  Ids [B, L, N] stand for columns of several tokens, whose embeddings are added up; those of PAD are
  0. Without `outputs`, there is no output table. `given_BLD`, of any width and with L or 1 columns,
  is projected and added to the embeddings.

  With `scanned`, layers are one `nn.scan` over stacked parameters (training); `unstack` converts
  them for unrolled layers. With `num_columns`, it decodes: it also returns a cache of so many
  columns, which is made from ids_BL or, with a `cache`, has ids_BL appended. Parameters are then
  those of `decoding_params`, and layers are unrolled, because a cache carried through a scan over
  layers is copied at each token. `apply(..., mutable='intermediates')` also returns the embedded
  sequence, and hidden vectors and attention weights of each layer (stacked, where scanned).
  """

  config: TransformerConfig
  vocabulary: tokens.Vocabulary
  time_embedding: bool = False
  scanned: bool = True
  deterministic: bool = True
  num_columns: int | None = None
  outputs: bool = True

  @nn.compact
  def __call__(self, ids_BL, times_BL=None, cache: KVCache | None = None, given_BLD=None):
    config, width = self.config, self.config.width
    table = partitioned(nn.initializers.normal(1.0), VOCAB, EMBED)
    embedding_VD = self.param('embedding', table, (self.vocabulary.num_ids, width))
    out_table = partitioned(nn.initializers.normal(width**-0.5), VOCAB, EMBED)
    output_VD = None
    if self.outputs:
      output_VD = self.param('output', out_table, (self.vocabulary.num_targets, width))
    x_BLD, valid_BL = placement.whole(embedding_VD)[jnp.maximum(ids_BL, 0)], ids_BL != tokens.PAD
    if ids_BL.ndim == 3:
      x_BLD = jnp.sum(jnp.where(valid_BL[..., None], x_BLD, 0), axis=2)
      valid_BL = valid_BL.any(axis=2)
    if given_BLD is not None:
      decoding = self.num_columns is not None
      linear = dense(width, (None, EMBED), dtype=config.dtype, decoding=decoding, name='given')
      x_BLD += linear(given_BLD)
    if self.time_embedding:
      x_BLD += dense(width, (None, EMBED), name='time')(sinusoids(times_BL, width))
    drop = Dropout(config.dropout_rate, deterministic=self.deterministic)
    x_BLD = drop(x_BLD.astype(config.dtype))
    self.sow('intermediates', 'embedded', x_BLD)
    bias_table = self.param(
      'relative_bias',
      partitioned(nn.initializers.normal(0.1), None, HEADS),
      (config.num_buckets, config.num_heads),
    )
    length = ids_BL.shape[1]
    padding = block_attention.padded_length(length) - length
    if self.num_columns is None and placement.on_tpu() and 8 * padding <= length:
      # Pad once here, instead of each array of each layer in the kernel, if the products with the
      # padding cost less.
      x_BLD, valid_BL = block_attention.whole_blocks(x_BLD), block_attention.whole_blocks(valid_BL)
    # Weights of attention exist in plain products only. The sequences of a depth model, which have
    # a given vector, are much shorter than a block.
    plain = self.is_mutable_collection('intermediates') or given_BLD is not None
    x_BLD, cache = self._layers(x_BLD, valid_BL, bias_table, cache, plain)
    return norm(config.dtype, 'final_norm')(x_BLD[:, :length]), output_VD, cache

  def _layers(self, x_BLD, valid_BL, bias_table, cache, plain):
    config, length = self.config, x_BLD.shape[1]
    if cache is None:
      bias, mask = sequence_bias(config, bias_table, valid_BL, plain)
    else:
      valid_BN = jax.lax.dynamic_update_slice(cache.valid_BN, valid_BL, (0, cache.index))
      bias, mask = step_bias(cache.bias_HM, cache.index, length, valid_BN), None
    decoding = self.num_columns is not None
    if decoding or not self.scanned:
      layers = []
      for i in range(config.num_layers):
        layer = None if cache is None else cache.layers[i]
        index = None if cache is None else cache.index
        x_BLD, layer = Block(config, self.deterministic, decoding=decoding, name=f'layer_{i}')(
          x_BLD, bias, mask, layer, index
        )
        layers.append(layer)
      if not decoding:
        return x_BLD, None
      if cache is not None:
        return x_BLD, KVCache(tuple(layers), valid_BN, cache.bias_HM, cache.index + 1)
      return x_BLD, KVCache(
        tuple(layer.padded(self.num_columns) for layer in layers),
        jnp.pad(valid_BL, ((0, 0), (0, self.num_columns - length))),
        distance_bias(config, bias_table, self.num_columns),
        jnp.asarray(length, jnp.int32),
      )
    return stacked(config, self.deterministic)(x_BLD, bias, mask)


def unstack(config: TransformerConfig, params: Any) -> dict[str, Any]:
  """Converts unboxed parameters of a scanned Transformer to those of an unrolled one."""
  rest = {name: value for name, value in params.items() if name != 'layers'}
  layers = {
    f'layer_{i}': jax.tree.map(lambda p, i=i: p[i], params['layers'])
    for i in range(config.num_layers)
  }
  return rest | layers


def decoding_params(config: TransformerConfig, params: Any) -> dict[str, Any]:
  """Converts unboxed parameters, stacked or of `unstack`, to those of a decoding Transformer.

  Query, key and value kernels of a layer become one; matrices and tables get the dtype of
  activations, in which they are used anyway, so that a step does not convert them.
  """
  params = unstack(config, params) if 'layers' in params else params
  cast = lambda tree: jax.tree.map(lambda p: p.astype(config.dtype), tree)
  made = params | cast(
    {name: params[name] for name in ('embedding', 'output', 'given') if name in params}
  )
  for i in range(config.num_layers):
    layer = params[f'layer_{i}']
    of = layer['attention']
    qkv = jnp.stack([of[name]['kernel'] for name in attention.PROJECTIONS], axis=1)
    own = {'attention': {'qkv': {'kernel': qkv}, 'output': of['output']}}
    made[f'layer_{i}'] = layer | cast(own | {name: layer[name] for name in ('mlp_in', 'mlp_out')})
  return made


def causal_mask(valid_BL):
  length = valid_BL.shape[1]
  return jnp.tril(jnp.ones((1, 1, length, length), bool)) & valid_BL[:, None, None, :]


def distance_bias(config, bias_table, num_columns):
  """Returns the bias [H, 2 N - 1] of the distances N - 1 to -(N - 1), which masks negative ones."""
  distance_M = num_columns - 1 - jnp.arange(2 * num_columns - 1)
  buckets_M = relative_buckets(distance_M, config.num_buckets, config.max_distance)
  return jnp.where(distance_M < 0, block_attention.MASKED, bias_table[buckets_M].T)


def step_bias(bias_HM, index, length, valid_BN):
  """Returns bias and mask [B H, L, N] of `length` queries from column `index` on, as one sum."""
  num_columns = valid_BN.shape[1]
  rows = [
    jax.lax.dynamic_slice_in_dim(bias_HM, num_columns - 1 - index - n, num_columns, axis=1)
    for n in range(length)
  ]
  bias_BHLN = jnp.where(valid_BN[:, None, None], jnp.stack(rows, axis=1), block_attention.MASKED)
  return bias_BHLN.reshape(-1, length, num_columns)


def sequence_bias(config, bias_table, valid_BL, plain) -> tuple[Array | Tiles, Array]:
  """Returns bias and mask of a whole sequence, in the form of `attend_in_blocks` where it is used.

  `plain`: whether it must not be used.
  """
  length = valid_BL.shape[1]
  block = None if plain else attention.block_size(length, config.max_distance)
  if block is not None:
    bucket = lambda distance: relative_buckets(distance, config.num_buckets, config.max_distance)
    return Tiles(
      placement.each_part(block_attention.bias_tiles(bias_table, bucket, block))
    ), valid_BL
  return placement.each_part(whole_bias(config, bias_table, length)), causal_mask(valid_BL)


def check_bidirectional(transformer: Any):
  """Checks sizes for `bidirectional`.

  Raises:
    UserError: if they are no TransformerConfig, or have too few buckets for both directions.
  """
  is_config = lambda value: isinstance(value, TransformerConfig)
  checks.values(transformer=(transformer, checks.Legal('a TransformerConfig', is_config)))
  if transformer.num_buckets < 4:
    raise UserError(
      f'num_buckets={transformer.num_buckets}: must be at least 4, for positions before and after'
    )


def bidirectional(module: nn.Module, config: TransformerConfig, x_BSD, valid_BS):
  """Returns the output of all layers, in which positions attend to all valid ones.

  The parameters 'relative_bias' and 'layers' are those of the calling module. Dropout is active if
  and only if it has a 'dropout' key.
  """
  shape = (config.num_buckets, config.num_heads)
  init = partitioned(nn.initializers.normal(0.1), None, HEADS)
  bias_table = module.param('relative_bias', init, shape)
  bias = placement.each_part(whole_bias(config, bias_table, x_BSD.shape[1], causal=False))
  layers = stacked(config, not module.has_rng('dropout'), causal=False)
  return layers(x_BSD, bias, valid_BS[:, None, None, :])[0]


def whole_bias(config, bias_table, length, causal=True):
  """Returns the bias [H, L, L] of a whole sequence as a Toeplitz matrix, built by tiling.

  If not causal, half of the buckets is for keys after the query, as in T5's encoder. The gradient
  of a gather from the table would be a scatter over L * L entries, which is slow on all devices.
  """
  period = 2 * length
  distance = -jnp.arange(period) % period  # column - row of the tiled vector is minus the distance
  after, half = distance >= length, config.num_buckets // 2
  if causal:
    distance = jnp.where(after, 0, distance)  # future positions are masked later
    buckets = relative_buckets(distance, config.num_buckets, config.max_distance)
  else:
    distance = jnp.where(after, period - distance, distance)
    buckets = relative_buckets(distance, half, config.max_distance) + jnp.where(after, half, 0)
  vector_HN = jax.nn.one_hot(buckets, config.num_buckets, dtype=bias_table.dtype) @ bias_table
  tiled = jnp.tile(vector_HN.T, (1, length))[:, : length * (period - 1)]
  return tiled.reshape(config.num_heads, length, period - 1)[..., :length]

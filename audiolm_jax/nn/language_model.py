"""Shared parts of AudioLM's three language models: sequence, loss, likelihoods, cached decoding.

A stage converts its batch into arrays of codes: the parts of the prefix (conditioning), and the
targets. This module builds the sequence, positions, offsets and masks. Parameters are those of
training, stacked over layers, or those of `transformer.unstack`; those of cached decoding are from
`transformer.decoding_params`.

A prefix is a tuple of arrays [B, P, N], one for each part of the vocabulary; the array itself is
enough if there is one part. PAD has no effect, so a conditioned model whose condition is PAD is an
unconditional model.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from audiolm_jax import checks, tokens
from audiolm_jax.errors import UserError
from audiolm_jax.losses import masked_mean
from audiolm_jax.nn import attention, placement, transformer
from audiolm_jax.nn.transformer import KVCache, Transformer, TransformerConfig

# Codes [B, P, N] of each part of the prefix; of the only one, also the array itself.
Prefix = Array | np.ndarray | tuple[Array | np.ndarray, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel:
  """Configures a Transformer over `prefix, START, target`; hashable, for use as a static argument.

  Fields:
    transformer: sizes of the Transformer.
    vocabulary: layout of token ids; the rates of its parts are for the time embedding.
    target_rate: frames per second of the target, for the time embedding.
    time_embedding: whether to add a learned linear map of sinusoids of the time in seconds to the
      token embeddings. A prefix token has its own time, or 0 in a part without a rate; START and
      targets have the time of the token they predict.
    code_dropout: share of target codes that are hidden from the input in training (and still
      predicted), so that the model has to use the prefix.
  """

  transformer: TransformerConfig
  vocabulary: tokens.Vocabulary
  target_rate: float = 50.0
  time_embedding: bool = False
  code_dropout: float = 0.0

  def module(self, **options) -> Transformer:
    return Transformer(self.transformer, self.vocabulary, self.time_embedding, **options)


def init(model: LanguageModel, key: jax.Array):
  """Returns initial parameters with logical axis names (boxed)."""
  ids_BL = jnp.zeros((1, 2), jnp.int32)
  return model.module().init(key, ids_BL, jnp.zeros((1, 2), jnp.float32))['params']


def sequence(
  model: LanguageModel, prefix: Prefix, codes_BFQ: Int[Array, 'B F Q']
) -> tuple[Int[Array, 'B L'], Float[Array, 'B L']]:
  """Returns the ids `prefix, START, target` and their times in seconds.

  PAD in the prefix moves to its left: with relative positions, left padding has no effect, and
  START is in the same column in each row.

  Args:
    model: the language model.
    prefix: codes of each part of the prefix; PAD (-1) marks missing frames.
    codes_BFQ: target codes.

  Raises:
    UserError: if the number of arrays is not that of the parts.
  """
  vocabulary, batch = model.vocabulary, codes_BFQ.shape[0]
  ids, times = [], []
  for codes_BPN, part, offset in zip(
    parts_of(model, prefix), vocabulary.parts, vocabulary.offsets, strict=True
  ):
    ids.append(tokens.flatten(codes_BPN, part.size, offset))
    frame_L = jnp.arange(ids[-1].shape[1]) // part.levels
    time_L = jnp.zeros(frame_L.shape) if part.rate is None else frame_L / part.rate
    times.append(jnp.broadcast_to(time_L, ids[-1].shape))
  if ids:
    prefix_BL, prefix_time_BL = tokens.left_pad(
      jnp.concatenate(ids, axis=1), jnp.concatenate(times, axis=1)
    )
    ids, times = [prefix_BL], [prefix_time_BL]
  target_BL = tokens.flatten(codes_BFQ, vocabulary.target_size, vocabulary.target_offset)
  predicted_time_L = target_time(model, jnp.arange(target_BL.shape[1] + 1))
  ids += [jnp.full((batch, 1), tokens.START, jnp.int32), target_BL]
  times.append(jnp.broadcast_to(predicted_time_L, (batch, target_BL.shape[1] + 1)))
  return jnp.concatenate(ids, axis=1), jnp.concatenate(times, axis=1)


def parts_of(model: LanguageModel, prefix: Prefix) -> tuple[Array | np.ndarray, ...]:
  """Returns the prefix as a tuple with an array for each part of the vocabulary.

  An array without frames may be given to a model without a prefix.

  Raises:
    UserError: if the number of arrays is not that of the parts.
  """
  arrays = prefix if isinstance(prefix, tuple) else (prefix,)
  if not model.vocabulary.parts and not any(array.shape[1] for array in arrays):
    return ()
  if len(arrays) != len(model.vocabulary.parts):
    raise UserError(
      f'the prefix has {len(arrays)} arrays, the model {len(model.vocabulary.parts)} parts: give '
      'one array [B, P, N] for each part'
    )
  return arrays


def without_condition(model: LanguageModel, prefix: Prefix) -> tuple[Array, ...]:
  """Returns the prefix with PAD in the parts without a rate, for the unconditional model."""
  return tuple(
    jnp.full_like(array, tokens.PAD) if part.rate is None else jnp.asarray(array)
    for array, part in zip(parts_of(model, prefix), model.vocabulary.parts, strict=True)
  )


def target_time(model: LanguageModel, position: Int[Array, '*dims']) -> Float[Array, '*dims']:
  """Returns the time in seconds of the target token at `position`."""
  return (position // model.vocabulary.target_levels) / model.target_rate


def target_logits(
  model: LanguageModel,
  params,
  prefix: Prefix,
  codes_BFQ: Int[Array, 'B F Q'],
  key: jax.Array | None,
) -> Float[Array, 'B F Q K']:
  """Returns the logits of each target code over the entries of its own level, in float32.

  The softmax of a position covers its legal ids only; all others have probability 0.

  Args:
    model: the language model.
    params: parameters.
    prefix: codes of each part of the prefix.
    codes_BFQ: target codes (teacher forcing).
    key: PRNG key of dropout; None for evaluation.
  """
  batch, frames, levels = codes_BFQ.shape
  ids_BL, times_BL = sequence(model, prefix, codes_BFQ)
  if key is not None and model.code_dropout:
    key, code_key = jax.random.split(key)
    kept_BN = jax.random.bernoulli(code_key, 1 - model.code_dropout, (batch, frames * levels))
    ids_BL = ids_BL.at[:, -frames * levels :].set(
      jnp.where(kept_BN, ids_BL[:, -frames * levels :], tokens.PAD)
    )
  module = model.module(deterministic=key is None, scanned=_is_stacked(params))
  rngs = {} if key is None else {'dropout': key}
  hidden_BLD, output_VD, _ = module.apply(
    {'params': params}, ids_BL[:, :-1], times_BL[:, :-1], rngs=rngs
  )
  hidden_BFQD = hidden_BLD[:, -frames * levels :].reshape(batch, frames, levels, -1)
  table_QKD = output_VD.reshape(levels, model.vocabulary.target_size, -1)
  table_QKD = table_QKD.astype(hidden_BFQD.dtype)
  return jnp.einsum('bfqd,qkd->bfqk', hidden_BFQD, table_QKD, preferred_element_type=jnp.float32)


def loss(
  model: LanguageModel,
  params,
  prefix: Prefix,
  codes_BFQ: Int[Array, 'B F Q'],
  key: jax.Array | None,
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """Returns nats per predicted token and metrics; PAD is ignored.

  Args:
    model: the language model.
    params: parameters.
    prefix: codes of each part of the prefix.
    codes_BFQ: target codes.
    key: PRNG key of dropout; None for evaluation.

  Returns:
    Loss in nats per token, and metrics: 'nats', 'accuracy', and 'nats_level_q' of each level q
      where there are several.
  """
  logits_BFQK = target_logits(model, params, prefix, codes_BFQ, key)
  mask_BFQ = codes_BFQ != tokens.PAD
  nats_BFQ = -_log_probabilities(logits_BFQK, codes_BFQ)
  nats = masked_mean(nats_BFQ, mask_BFQ)
  hit_BFQ = (jnp.argmax(logits_BFQK, axis=-1) == codes_BFQ).astype(jnp.float32)
  metrics = {'nats': nats, 'accuracy': masked_mean(hit_BFQ, mask_BFQ)}
  if codes_BFQ.shape[-1] > 1:
    for q in range(codes_BFQ.shape[-1]):
      metrics[f'nats_level_{q}'] = masked_mean(nats_BFQ[..., q], mask_BFQ[..., q])
  return nats, metrics


def log_likelihoods(
  model: LanguageModel,
  params: Any,
  prefix: Prefix | None,
  codes_BFQ: Int[Array | np.ndarray, 'B F Q'],
) -> Float[Array, 'B F Q']:
  """Returns the log-probability of each target code, in nats, given all before it; 0 at PAD.

  The sum over a row is the log-likelihood of its codes. Rows of any length without a prefix:
  `decoding.log_likelihoods`.

  Args:
    model: the language model.
    params: parameters.
    prefix: codes of each part of the prefix, PAD on the right; None: no prefix.
    codes_BFQ: target codes, PAD on the right.

  Raises:
    UserError: for another number of levels, and for codes out of range.
  """
  prefix, codes_BFQ = _checked(model, prefix, codes_BFQ)
  return _log_likelihoods(model, params, prefix, codes_BFQ)


def hidden_states(
  model: LanguageModel,
  params: Any,
  prefix: Prefix | None,
  codes_BFQ: Int[Array | np.ndarray, 'B F Q'],
  layers: Sequence[int] | None = None,
) -> Float[Array, 'N B L D']:
  """Returns the residual stream at each token of `sequence(prefix, codes_BFQ)`.

  Column L - F Q - 1 is START; the last F Q columns read the codes. The column before a code
  predicts it. Values at PAD have no meaning. The norm before the logits is not applied.

  Args:
    model: the language model.
    params: parameters.
    prefix: codes of each part of the prefix, PAD on the right; None: no prefix.
    codes_BFQ: target codes, PAD on the right.
    layers: number of layers that have been applied, 0 (embeddings) to `num_layers`; None: all.

  Raises:
    UserError: for another number of levels, codes out of range, and a layer that does not exist.
  """
  layers = _checked_layers(model, layers, 0)
  prefix, codes_BFQ = _checked(model, prefix, codes_BFQ)
  return _hidden_states(model, params, prefix, codes_BFQ, layers)


def attention_weights(
  model: LanguageModel,
  params: Any,
  prefix: Prefix | None,
  codes_BFQ: Int[Array | np.ndarray, 'B F Q'],
  layers: Sequence[int] | None = None,
) -> Float[Array, 'N B H L L']:
  """Returns the attention of each token (second last axis) to each token up to it (last axis).

  Columns, arguments and errors are those of `hidden_states`; layers count from 1. A layer takes
  B H L^2 floats.
  """
  layers = _checked_layers(model, layers, 1)
  prefix, codes_BFQ = _checked(model, prefix, codes_BFQ)
  return _attention_weights(model, params, prefix, codes_BFQ, layers)


def _checked(model, prefix, codes_BFQ):
  vocabulary = model.vocabulary
  if prefix is None:
    prefix = tuple(np.zeros((len(codes_BFQ), 0, p.levels), np.int32) for p in vocabulary.parts)
  target = tokens.Codebook(vocabulary.target_levels, vocabulary.target_size)
  arrays = parts_of(model, prefix)
  for name, array, part in (
    *(('prefix_BPN', array, part) for array, part in zip(arrays, vocabulary.parts, strict=True)),
    ('codes_BFQ', codes_BFQ, target),
  ):
    checks.shapes(**{name: array, 'codes_BFQ': codes_BFQ})
    if array.shape[1] and array.shape[2] != part.levels:
      raise UserError(f'{name} has shape {array.shape}: the model has {part.levels} levels there')
    checks.ids(name, array, part.size)
  return tuple(map(jnp.asarray, arrays)), jnp.asarray(codes_BFQ)


def _checked_layers(model, layers, first) -> tuple[int, ...]:
  last = model.transformer.num_layers
  layers = tuple(range(first, last + 1) if layers is None else layers)
  if not layers or not set(layers) <= set(range(first, last + 1)):
    raise UserError(f'layers={layers}: give one or more of {first} to {last}')
  return layers


def _is_stacked(params) -> bool:
  return 'layers' in params


def _log_probabilities(logits_BFQK, codes_BFQ):
  """Returns the log-probability of each code in nats; without meaning at PAD."""
  safe_BFQ = jnp.maximum(codes_BFQ, 0)
  chosen_BFQ = jnp.take_along_axis(logits_BFQK, safe_BFQ[..., None], axis=-1)[..., 0]
  return chosen_BFQ - jax.nn.logsumexp(logits_BFQK, axis=-1)


@functools.partial(jax.jit, static_argnames='model')
def _log_likelihoods(model, params, prefix, codes_BFQ):
  logits_BFQK = target_logits(model, params, prefix, codes_BFQ, None)
  return jnp.where(codes_BFQ == tokens.PAD, 0.0, _log_probabilities(logits_BFQK, codes_BFQ))


@functools.partial(jax.jit, static_argnames=('model', 'layers'))
def _hidden_states(model, params, prefix, codes_BFQ, layers):
  seen = _intermediates(model, params, prefix, codes_BFQ)
  states = [seen['embedded'], *(layer['hidden'] for layer in seen['layers'])]
  return jnp.stack([states[i] for i in layers])


@functools.partial(jax.jit, static_argnames=('model', 'layers'))
def _attention_weights(model, params, prefix, codes_BFQ, layers):
  seen = _intermediates(model, params, prefix, codes_BFQ)['layers']
  return jnp.stack([seen[i - 1]['attention']['weights'] for i in layers])


def _intermediates(model, params, prefix, codes_BFQ):
  """Returns what the layers sow; compiled code computes only what its caller reads of it."""
  if _is_stacked(params):
    params = transformer.unstack(model.transformer, params)
  _, collections = model.module(scanned=False).apply(
    {'params': params}, *sequence(model, prefix, codes_BFQ), mutable='intermediates'
  )
  is_sown = lambda node: isinstance(node, tuple)
  seen = jax.tree.map(lambda once: once[0], collections['intermediates'], is_leaf=is_sown)
  layers = [seen[f'layer_{i}'] for i in range(model.transformer.num_layers)]
  return {'embedded': seen['embedded'], 'layers': layers}


def prefill(
  model: LanguageModel,
  params,
  ids_BL: Int[Array, 'B L'],
  times_BL: Float[Array, 'B L'],
  num_columns: int,
) -> tuple[Float[Array, 'B K'], KVCache]:
  """Reads a left-padded context of whole target frames into a new cache.

  Args:
    model: the language model.
    params: parameters from `transformer.decoding_params`.
    ids_BL: token ids.
    times_BL: times in seconds.
    num_columns: capacity of the cache in tokens.

  Returns:
    Logits of the next code (level 0), and the cache.
  """
  num_columns += _step_columns(ids_BL.shape[0]) - 1
  hidden_BLD, output_VD, cache = model.module(num_columns=num_columns).apply(
    {'params': params}, ids_BL, times_BL
  )
  return _next_logits(model, hidden_BLD[:, -1], output_VD, jnp.zeros((), jnp.int32)), cache


def step(
  model: LanguageModel,
  params,
  cache: KVCache,
  code_B: Int[Array, 'B'],
  first_B: Int[Array, 'B'],
  n: Int[Array, ''],
) -> tuple[Float[Array, 'B K'], KVCache]:
  """Appends new code n (level n % Q) and returns the logits of the next one and the cache.

  Args:
    model: the language model.
    params: parameters from `transformer.decoding_params`.
    cache: keys and values of the previous columns.
    code_B: the new code.
    first_B: number of target tokens in the context of each row.
    n: number of codes appended before.
  """
  vocabulary = model.vocabulary
  level = n % vocabulary.target_levels
  id_B = vocabulary.target_offset + level * vocabulary.target_size + code_B
  time_B = target_time(model, first_B + n + 1)
  padding = ((0, 0), (0, _step_columns(len(code_B)) - 1))
  ids_BL = jnp.pad(id_B[:, None], padding, constant_values=tokens.PAD)
  times_BL = jnp.pad(time_B[:, None], padding)
  hidden_BLD, output_VD, cache = model.module(num_columns=cache.valid_BN.shape[1]).apply(
    {'params': params}, ids_BL, times_BL, cache
  )
  level = (n + 1) % vocabulary.target_levels
  return _next_logits(model, hidden_BLD[:, 0], output_VD, level), cache


def _step_columns(rows: int) -> int:
  """Returns the number of tokens that a step processes for each row; all but the first are PAD.

  XLA runs products of a single row on the vector unit of a TPU, which takes longer than two rows on
  the matrix unit. The next step overwrites the column of PAD.
  """
  return 2 if rows == 1 and placement.platform() == 'tpu' else 1


def _next_logits(model, hidden_BD, output_VD, level):
  size = model.vocabulary.target_size
  table_KD = jax.lax.dynamic_slice_in_dim(output_VD, level * size, size).astype(hidden_BD.dtype)
  return attention.dot_of_rows(
    hidden_BD, table_KD, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )

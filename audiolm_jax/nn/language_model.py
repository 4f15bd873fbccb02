"""Shared parts of AudioLM's three language models: sequence, loss, likelihoods, cached decoding.

A stage converts its batch into arrays of codes: the parts of the prefix (conditioning), and the
targets. This module builds the sequence, positions, offsets and masks. Parameters are those of
training, stacked over layers, or those of `transformer.unstack`; those of cached decoding are from
`decoding_params`.

With a depth model (RQ-Transformer, arXiv 2203.01941), the Transformer reads a frame of the target
as one column, the sum of the embeddings of its codes, and a small Transformer predicts the codes of
the next frame one after the other, from the vector of that column and the codes before them. The
probability of a code depends on the same codes as without.

With `aligned`, the column that predicts a code of a frame also has the embedding of the last part's
token of that frame's time. Otherwise attention has to find it, which takes long to learn.

A prefix is a tuple of arrays [B, P, N], one for each part of the vocabulary; the array itself is
enough if there is one part. PAD has no effect, so a conditioned model whose condition is PAD is an
unconditional model.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from audiolm_jax import checks, tokens
from audiolm_jax.errors import UserError
from audiolm_jax.losses import masked_mean
from audiolm_jax.nn import attention, code_tables, placement, transformer
from audiolm_jax.nn.transformer import KVCache, Transformer, TransformerConfig

TPU_LANES = 128  # of the vector unit

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
    depth: sizes of the depth model; None: the codes of a frame are columns of their own.
    aligned: whether columns also read the token of their time, of the last part of the prefix; it
      has a rate and one level, and no repeats are removed.

  Raises:
    UserError: if `aligned` has no such part.
  """

  transformer: TransformerConfig
  vocabulary: tokens.Vocabulary
  target_rate: float = 50.0
  time_embedding: bool = False
  code_dropout: float = 0.0
  depth: TransformerConfig | None = None
  aligned: bool = False

  def __post_init__(self):
    parts = self.vocabulary.parts
    if self.aligned and not (parts and parts[-1].rate and parts[-1].levels == 1):
      raise UserError('aligned=True needs a prefix whose last part has a rate and one level')

  @property
  def codes_per_column(self) -> int:
    """Number of target codes in a column of the Transformer."""
    return 1 if self.depth is None else self.vocabulary.target_levels

  def module(self, **options) -> Transformer:
    """Returns the Transformer of all tokens, or with a depth model of all frames.

    Args:
      **options: fields of `Transformer`.
    """
    options |= {'outputs': self.depth is None}
    return Transformer(self.transformer, self.vocabulary, self.time_embedding, **options)

  def depth_module(self, **options) -> Transformer:
    """Returns the depth model, which reads START and the codes of a frame.

    Args:
      **options: fields of `Transformer`.
    """
    vocabulary = dataclasses.replace(self.vocabulary, parts=())
    return Transformer(self.depth, vocabulary, **options)


def init(
  model: LanguageModel,
  key: jax.Array,
  code_vectors: Sequence[code_tables.CodeVectors | None] | None = None,
):
  """Returns initial parameters with logical axis names (boxed).

  Args:
    model: the language model.
    key: PRNG key.
    code_vectors: vectors of the codes of each part of the prefix and of the target, from which
      their tables start (nn/code_tables.py); None for a part, or for all: random tables.

  Raises:
    UserError: if vectors do not have the levels and codes of their part.
  """
  ids_BL, times_BL = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2), jnp.float32)
  if model.depth is None:
    params = model.module().init(key, ids_BL, times_BL)['params']
  else:
    key, depth_key = jax.random.split(key)
    given_BLD = jnp.zeros((1, 1, model.transformer.width), model.transformer.dtype)
    depth = model.depth_module().init(depth_key, ids_BL, given_BLD=given_BLD)['params']
    params = model.module().init(key, ids_BL, times_BL)['params'] | {'depth': depth}
  if code_vectors is None:
    return params
  return _with_code_vectors(model, params, jax.random.fold_in(key, 1), code_vectors)


def _with_code_vectors(model, params, key, code_vectors):
  vocabulary = model.vocabulary
  target = tokens.Codebook(vocabulary.target_levels, vocabulary.target_size)
  vectors = [
    None if one is None else code_tables.check(one, part.levels, part.size)
    for one, part in zip(code_vectors, (*vocabulary.parts, target), strict=True)
  ]

  def started(params, key, vectors, offsets):
    """Returns the parameters of one Transformer, whose output table is that of the target."""
    keys, made = jax.random.split(key, len(vectors) + 1), {}
    width = params['embedding'].value.shape[1]
    tables = [
      None if one is None else code_tables.projected(keys[n], one, width)
      for n, one in enumerate(vectors)
    ]
    embedding_VD = code_tables.fill(params['embedding'].value, tables, offsets)
    made['embedding'] = params['embedding'].replace_boxed(embedding_VD)
    if 'output' in params and vectors[-1] is not None:
      table_QKD = code_tables.projected(keys[-1], vectors[-1], width) * width**-0.5
      output_VD = code_tables.fill(params['output'].value, [table_QKD], [0])
      made['output'] = params['output'].replace_boxed(output_VD)
    return params | made

  own_key, depth_key = jax.random.split(key)
  made = started(params, own_key, vectors, (*vocabulary.offsets, vocabulary.target_offset))
  if model.depth is not None:
    made['depth'] = started(params['depth'], depth_key, vectors[-1:], [tokens.START + 1])
  return made


def sequence(
  model: LanguageModel,
  prefix: Prefix,
  codes_BFQ: Int[Array, 'B F Q'],
  exists_BF: Bool[Array, 'B F'] | None = None,
) -> tuple[Int[Array, 'B L *N'], Float[Array, 'B L']]:
  """Returns the ids `prefix, START, target` and their times in seconds.

  With a depth model, ids are [B, L, Q]: a frame of the target is one column, and PAD fills the
  others. Aligned tokens are one more id of a column.

  PAD in the prefix moves to its left: with relative positions, left padding has no effect, and
  START is in the same column in each row.

  Args:
    model: the language model.
    prefix: codes of each part of the prefix; PAD (-1) marks missing frames.
    codes_BFQ: target codes.
    exists_BF: frames that have an aligned token, even if all their codes are PAD; None: frames that
      have a code.

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
  position_L = jnp.arange(0, target_BL.shape[1] + 1, model.codes_per_column)
  ids.append(jnp.full((batch, 1), tokens.START, jnp.int32))
  times.append(jnp.broadcast_to(target_time(model, position_L), (batch, len(position_L))))
  times_BL = jnp.concatenate(times, axis=1)
  if model.depth is None and not model.aligned:
    return jnp.concatenate([*ids, target_BL], axis=1), times_BL
  alone = ((0, 0), (0, 0), (0, model.codes_per_column - 1))
  ids = [jnp.pad(one[..., None], alone, constant_values=tokens.PAD) for one in ids]
  ids.append(target_BL.reshape(batch, -1, model.codes_per_column))
  ids_BLN = jnp.concatenate(ids, axis=1)
  if model.aligned:
    if exists_BF is None:
      exists_BF = jnp.any(codes_BFQ != tokens.PAD, axis=2)
    exists_BL = jnp.repeat(exists_BF, vocabulary.target_levels // model.codes_per_column, axis=1)
    exists_BL = jnp.pad(exists_BL, ((0, 0), (1, 0)), constant_values=True)  # START exists
    position_BL = jnp.broadcast_to(position_L, (batch, len(position_L)))
    aligned_BL = jnp.where(exists_BL, aligned_ids(model, prefix, position_BL), tokens.PAD)
    before = ids_BLN.shape[1] - aligned_BL.shape[1]
    aligned_BL = jnp.pad(aligned_BL, ((0, 0), (before, 0)), constant_values=tokens.PAD)
    ids_BLN = jnp.concatenate([ids_BLN, aligned_BL[..., None]], axis=2)
  return ids_BLN, times_BL


def aligned_ids(
  model: LanguageModel, prefix: Prefix, position_BL: Int[Array, 'B L']
) -> Int[Array, 'B L']:
  """Returns the id of the last part's token at the time of each target token; PAD where none is.

  Args:
    model: an aligned language model.
    prefix: codes of each part of the prefix, PAD on the right.
    position_BL: numbers of the target tokens.
  """
  part, codes_BPN = model.vocabulary.parts[-1], jnp.asarray(parts_of(model, prefix)[-1])
  # One more token, PAD, for all times after the last.
  codes_BP = jnp.pad(codes_BPN[..., 0], ((0, 0), (0, 1)), constant_values=tokens.PAD)
  frame_BL = position_BL // model.vocabulary.target_levels
  index_BL = frame_BL // tokens.frames_per_semantic(model.target_rate, part.rate)
  index_BL = jnp.minimum(index_BL, codes_BP.shape[1] - 1)
  found_BL = jnp.take_along_axis(codes_BP, index_BL, axis=1)
  return jnp.where(found_BL == tokens.PAD, tokens.PAD, found_BL + model.vocabulary.offsets[-1])


def parts_of(model: LanguageModel, prefix: Prefix) -> tuple[Array | np.ndarray, ...]:
  """Returns the prefix as a tuple with an array for each part of the vocabulary.

  An array without frames may be given to a model without a prefix.

  Args:
    model: the language model.
    prefix: codes of each part, or those of the only one.

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
  """Returns the prefix with PAD in the parts without a rate, for the unconditional model.

  Args:
    model: the language model.
    prefix: codes of each part, or those of the only one.
  """
  return tuple(
    jnp.full_like(array, tokens.PAD) if part.rate is None else jnp.asarray(array)
    for array, part in zip(parts_of(model, prefix), model.vocabulary.parts, strict=True)
  )


def target_time(model: LanguageModel, position: Int[Array, '*dims']) -> Float[Array, '*dims']:
  """Returns the time in seconds of the target token at `position`.

  Args:
    model: the language model.
    position: number of the token in the flattened target, from 0.
  """
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
  exists_BF = jnp.any(codes_BFQ != tokens.PAD, axis=2)
  if key is not None and model.code_dropout:
    key, code_key = jax.random.split(key)
    kept_BN = jax.random.bernoulli(code_key, 1 - model.code_dropout, (batch, frames * levels))
    codes_BFQ = jnp.where(kept_BN.reshape(codes_BFQ.shape), codes_BFQ, tokens.PAD)
  ids_BL, times_BL = sequence(model, prefix, codes_BFQ, exists_BF)
  module = model.module(deterministic=key is None, scanned=_is_stacked(params))
  rngs = {} if key is None else {'dropout': key}
  hidden_BLD, output_VD, _ = module.apply(
    {'params': params}, ids_BL[:, :-1], times_BL[:, :-1], rngs=rngs
  )
  columns = frames * levels // model.codes_per_column
  hidden_BFQD = hidden_BLD[:, -columns:].reshape(batch, frames, -1, hidden_BLD.shape[-1])
  if model.depth is not None:
    hidden_BFQD, output_VD = _depth(model, params['depth'], hidden_BFQD, codes_BFQ, key)
  table_QKD = output_VD.reshape(levels, model.vocabulary.target_size, -1)
  table_QKD = table_QKD.astype(hidden_BFQD.dtype)
  return jnp.einsum('bfqd,qkd->bfqk', hidden_BFQD, table_QKD, preferred_element_type=jnp.float32)


def _depth(model, params, hidden_BF1D, codes_BFQ, key):
  """Returns the hidden vectors [B, F, Q, D] of the depth model and its output table."""
  codes_N1Q, hidden_N1D = (x.reshape(-1, 1, x.shape[-1]) for x in (codes_BFQ, hidden_BF1D))
  ids_NQ = tokens.flatten(codes_N1Q, model.vocabulary.target_size, tokens.START + 1)
  ids_NQ = jnp.pad(ids_NQ[:, :-1], ((0, 0), (1, 0)), constant_values=tokens.START)
  rngs = {} if key is None else {'dropout': jax.random.fold_in(key, 1)}
  module = model.depth_module(deterministic=key is None, scanned=_is_stacked(params))
  hidden_NQD, output_VD, _ = module.apply(
    {'params': params}, ids_NQ, given_BLD=hidden_N1D, rngs=rngs
  )
  return hidden_NQD.reshape(*codes_BFQ.shape, -1), output_VD


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

  Columns are those of `hidden_states`. A layer takes B H L^2 floats.

  Args:
    model: the language model.
    params: its parameters.
    prefix: codes of each part; None: no prefix.
    codes_BFQ: target codes.
    layers: numbers of N layers, from 1; None: all.

  Raises:
    UserError: as `hidden_states`.
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


class FrameCache(NamedTuple):
  """Holds the state of decoding with a depth model.

  `columns` is the cache of the Transformer, `given_BD` its vector that predicts the current frame,
  `ids_BQ` the frame's ids (PAD where not drawn), `codes` the cache of the depth model.
  """

  columns: KVCache
  given_BD: Array
  ids_BQ: Array
  codes: KVCache


# A function (params, cache, code_B, first_B, n) -> (logits of the next code, cache); see `step`.
Step = Callable[..., tuple[Array, Any]]


def decoding_params(model: LanguageModel, params: Any) -> dict[str, Any]:
  """Converts parameters of training to those of decoding (`transformer.decoding_params`).

  Args:
    model: the language model.
    params: its parameters, as trained.

  Returns:
    Parameters for `prefill` and `step`.
  """
  made = transformer.decoding_params(model.transformer, params)
  if model.depth is not None:
    made['depth'] = transformer.decoding_params(model.depth, params['depth'])
  return made


def prefill(
  model: LanguageModel,
  params,
  ids_BL: Int[Array, 'B L *N'],
  times_BL: Float[Array, 'B L'],
  num_columns: int,
) -> tuple[Float[Array, 'B K'], KVCache | FrameCache]:
  """Reads a left-padded context of whole target frames into a new cache.

  Args:
    model: the language model.
    params: parameters from `decoding_params`.
    ids_BL: token ids.
    times_BL: times in seconds.
    num_columns: least capacity of the cache in columns of `sequence`.

  Returns:
    Logits of the next code (level 0), and the cache.
  """
  if placement.platform() == 'tpu':
    # Of other sizes, the compiler may store caches with rows and heads along the lanes, and
    # transposes them at each step.
    num_columns = -(-num_columns // TPU_LANES) * TPU_LANES
  hidden_BLD, output_VD, cache = model.module(num_columns=num_columns).apply(
    {'params': params}, ids_BL, times_BL
  )
  if model.depth is not None:
    return _begin_frame(model, params, cache, hidden_BLD[:, -1])
  return _next_logits(model, hidden_BLD[:, -1], output_VD, 0), cache


def turn(model: LanguageModel, prefix: Prefix | None = None) -> tuple[Step, ...]:
  """Returns the functions that append the codes of one column, in this order, again and again.

  Without a depth model, the only one is `step`, with all its arguments but the model.

  Args:
    model: the language model.
    prefix: the prefix, which an aligned model reads again; others do not need it.
  """
  if model.depth is None:
    return (functools.partial(step, model, prefix=prefix),)
  levels = range(model.codes_per_column)
  return tuple(functools.partial(_depth_step, model, q, prefix=prefix) for q in levels)


def step(
  model: LanguageModel,
  params,
  cache: KVCache,
  code_B: Int[Array, 'B'],
  first_B: Int[Array, 'B'],
  n: Int[Array, ''],
  prefix: Prefix | None = None,
) -> tuple[Float[Array, 'B K'], KVCache]:
  """Appends new code n (level n % Q) and returns the logits of the next one and the cache.

  Args:
    model: a language model without a depth model.
    params: parameters from `decoding_params`.
    cache: keys and values of the previous columns.
    code_B: the new code.
    first_B: number of target tokens in the context of each row.
    n: number of codes appended before.
    prefix: the prefix, for an aligned model.

  Returns:
    The logits, and the cache.
  """
  vocabulary = model.vocabulary
  level = n % vocabulary.target_levels
  id_B = vocabulary.target_offset + level * vocabulary.target_size + code_B
  time_B = target_time(model, first_B + n + 1)
  column = _column(model, prefix, id_B, first_B + n + 1)
  hidden_BLD, output_VD, cache = model.module(num_columns=cache.valid_BN.shape[1]).apply(
    {'params': params}, column, time_B[:, None], cache
  )
  level = (n + 1) % vocabulary.target_levels
  return _next_logits(model, hidden_BLD[:, 0], output_VD, level), cache


def _column(model, prefix, ids, position_B):
  """Returns ids [B] or [B, N] as the column, [B, 1] or [B, 1, N], that predicts `position_B`.

  With `aligned`, the ids have one more: [B, 1, N + 1].
  """
  if not model.aligned:
    return ids[:, None]
  aligned_B1 = aligned_ids(model, prefix, position_B[:, None])
  return jnp.concatenate([ids.reshape(len(ids), -1), aligned_B1], axis=1)[:, None]


def _depth_step(model, level, params, cache: FrameCache, code_B, first_B, n, prefix=None):
  """As `step`, of a model with a depth model, for n of the given level."""
  vocabulary = model.vocabulary
  code_B = level * vocabulary.target_size + code_B
  ids_BQ = cache.ids_BQ.at[:, level].set(vocabulary.target_offset + code_B)
  if level + 1 < vocabulary.target_levels:
    id_B = tokens.START + 1 + code_B
    logits_BK, codes = _next_in_frame(model, params, id_B, cache.given_BD, level + 1, cache.codes)
    return logits_BK, cache._replace(ids_BQ=ids_BQ, codes=codes)
  time_B = target_time(model, first_B + n + 1)
  column = _column(model, prefix, ids_BQ, first_B + n + 1)
  hidden_BLD, _, columns = model.module(num_columns=cache.columns.valid_BN.shape[1]).apply(
    {'params': params}, column, time_B[:, None], cache.columns
  )
  return _begin_frame(model, params, columns, hidden_BLD[:, 0])


def _begin_frame(model, params, columns, given_BD):
  batch, levels = len(given_BD), model.vocabulary.target_levels
  start_B = jnp.full(batch, tokens.START, jnp.int32)
  logits_BK, codes = _next_in_frame(model, params, start_B, given_BD, 0)
  ids_BQ = jnp.full((batch, levels), tokens.PAD, jnp.int32)
  return logits_BK, FrameCache(columns, given_BD, ids_BQ, codes)


def _next_in_frame(model, params, id_B, given_BD, level, cache=None):
  """Returns the logits of `level`, and the depth model's cache, to which `id_B` is appended."""
  hidden_B1D, output_VD, cache = model.depth_module(
    num_columns=model.vocabulary.target_levels
  ).apply({'params': params['depth']}, id_B[:, None], None, cache, given_BD[:, None])
  return _next_logits(model, hidden_B1D[:, 0], output_VD, level), cache


def _next_logits(model, hidden_BD, output_VD, level):
  size = model.vocabulary.target_size
  table_KD = jax.lax.dynamic_slice_in_dim(output_VD, level * size, size).astype(hidden_BD.dtype)
  return attention.dot_of_rows(
    hidden_BD, table_KD, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )

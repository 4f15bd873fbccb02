"""Defines the interface of trainable stages and codecs.

Input pipeline, sharding, train step and loop use this interface only. Like an
`optax.GradientTransformation`, a stage is a record of pure functions; a frozen config makes it by
`Config.make()`. The type of the config selects the stage, so there is no registry.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from audiolm_jax import checks, tokens
from audiolm_jax.errors import UserError

Key = jax.Array  # a typed PRNG key, from jax.random.key
# Arrays with gradients, as a tree whose top-level names are the optimizer's groups.
Params = Any
State = Any  # arrays without gradients (EMA codebooks, counters), as a tree; {} for most stages
Batch = Mapping[str, jax.Array | np.ndarray]
CONDITION_RATE = 1.0  # Hz, of the windows of a joint embedding, and of the tokens of a condition
_HIDING = 2**20  # makes the key of `Condition.read`; larger than what `jax.random.split` counts


class Feature(NamedTuple):
  """Describes one entry of a batch, without the batch axis.

  The input pipeline crops all time series of an example at the same time: `shape[0]` entries of
  axis 0, from `start_seconds * rate`. The other axes are truncated, so that a stage that needs 4
  quantizer levels gets the first 4. Short examples are padded: floats with 0, integers with
  `tokens.PAD` (-1).

  Fields:
    shape: shape of the entry.
    dtype: type of the entry.
    rate: entries per second along axis 0; None if it is no time series, and is not cropped.
    num_ids: number of legal ids, from 0; PAD is legal, too. None allows any number.
  """

  shape: tuple[int, ...]
  dtype: Any
  rate: float | None
  num_ids: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
  """Configures the condition of a stage: tokens of a joint embedding of audio and text.

  As in MusicLM (arXiv 2301.11325), training reads tokens of the audio of the crop, and generation
  those of a text. PAD instead of them makes the stage unconditional.

  Fields:
    levels: number of levels that the stage reads, the first ones; MusicLM reads all 12.
    size: number of tokens per level.
    windows: number of windows, at one per second, whose mean embedding is quantized. In MusicLM, a
      window has 10 s, so that a crop of 30 s has 21 and one of 10 s has 1.
    dropout: share of the training examples without a condition, which guidance needs
      (arXiv 2207.12598); MusicLM has no guidance, hence 0.
    melody_levels: number of the first levels that are tokens of a melody (MusicLM, section 3.3).
    melody_dropout: share of the other training examples without a melody, so that generation needs
      none.

  Raises:
    UserError: if a field is illegal.
  """

  levels: int = 12
  size: int = 1024
  windows: int = 1
  dropout: float = 0.0
  melody_levels: int = 0
  melody_dropout: float = 0.0

  def __post_init__(self):
    checks.fields(
      self,
      levels=checks.WHOLE,
      size=checks.WHOLE,
      windows=checks.WHOLE,
      dropout=checks.BELOW_ONE,
      melody_levels=checks.whole(0, self.levels),
      melody_dropout=checks.BELOW_ONE,
    )

  @property
  def name(self) -> str:
    """Name of the tokens in a batch: an array [1, levels], of the second where the crop starts."""
    return condition_name(self.windows)

  @property
  def feature(self) -> Feature:
    """What a batch holds of a condition."""
    return Feature((1, self.levels), jnp.int32, CONDITION_RATE, self.size)

  @property
  def codebook(self) -> tokens.Codebook:
    """The part of a language model's prefix; all its tokens have the time 0."""
    return tokens.Codebook(self.levels, self.size)

  def read(self, batch: 'Batch', key: jax.Array | None) -> Int[Array, 'B 1 N']:
    """Returns the tokens of a batch; with a key, those of a share `dropout` of the rows are PAD.

    Of the others, a share `melody_dropout` has no melody.

    Args:
      batch: batch of the stage.
      key: PRNG key that hides conditions; None hides none.
    """
    tokens_B1N = jnp.asarray(batch[self.name])
    if key is None:
      return tokens_B1N
    key, shape = jax.random.fold_in(key, _HIDING), (len(tokens_B1N), 1, 1)
    if self.melody_levels and self.melody_dropout:
      has_none_B11 = jax.random.bernoulli(
        jax.random.fold_in(key, _HIDING), self.melody_dropout, shape
      )
      is_melody_N = jnp.arange(tokens_B1N.shape[-1]) < self.melody_levels
      tokens_B1N = jnp.where(has_none_B11 & is_melody_N, tokens.PAD, tokens_B1N)
    if not self.dropout:
      return tokens_B1N
    return jnp.where(jax.random.bernoulli(key, self.dropout, shape), tokens.PAD, tokens_B1N)


def condition_name(windows: int) -> str:
  """Returns the name of tokens of the mean embedding of a number of windows.

  Args:
    windows: number of windows.
  """
  return f'music_{windows}'


class Variables(NamedTuple):
  """Holds the arrays of a model."""

  params: Params
  state: State


class Model(NamedTuple):
  """Holds a trained model; `metadata` comes from its checkpoint (step, fingerprints)."""

  config: Any
  variables: Variables
  metadata: Mapping[str, Any] = {}


class Aux(NamedTuple):
  """Holds the next state, and metrics to log: float32 scalars, means over the global batch."""

  state: State
  metrics: Mapping[str, jax.Array]


class Stage(NamedTuple):
  """Defines a trainable model by pure functions.

  Arrays are global: a mean is a mean over the global batch.

  Fields:
    batch: entries of a batch, by name ('waveform', 'semantic', 'codes', 'label', ...).
    init: key -> Variables. Parameters with axes that can be sharded are boxed by
      `nn.with_logical_partitioning`; `training.sharding` reads and removes the boxes. All other
      functions take trees without boxes.
    loss: (params, state, batch, key) -> (scalar, Aux). In evaluation, `key` is None: there is no
      dropout, masks are drawn from a fixed key, and codebooks and other state do not change.
    inference: Variables -> the variables that inference needs, in the same structure. Arrays for
      training only (discriminators, moving averages) are omitted or None. Exports use it.
  """

  batch: Mapping[str, Feature]
  init: Callable[[Key], Variables]
  loss: Callable[[Params, State, Batch, Key | None], tuple[jax.Array, Aux]]
  inference: Callable[[Variables], Variables] = lambda variables: variables


class StreamFunctions(NamedTuple):
  """Defines encoding and decoding in consecutive chunks, with a state between calls.

  Fields:
    encoder_state: number of clips -> state before the first chunk, as after silence.
    decoder_state: the same for the decoder.
    encode_step: (variables, state, wave_BT, num_quantizers or None) -> (codes_BFQ, state).
    decode_step: (variables, state, codes_BFQ) -> (wave_BT, state).
    delay: number of frames by which the codes of `encode_step` are late. That many frames at the
      start of a stream precede the clip, and that many frames of silence must follow it.
  """

  encoder_state: Callable[[int], State]
  decoder_state: Callable[[int], State]
  encode_step: Callable[[Variables, State, jax.Array, int | None], tuple[jax.Array, State]]
  decode_step: Callable[[Variables, State, jax.Array], tuple[jax.Array, State]]
  delay: int = 0


class CodecFunctions(NamedTuple):
  """Defines a codec by pure functions; `audiolm_jax.codec.Codec` binds them to variables.

  Fields:
    encode: (variables, wave_BT, num_quantizers or None for all) -> codes_BFQ, T = F * hop_length.
    decode: (variables, codes_BFQ of the first levels) -> wave_BT.
    context: number of frames before and after a frame that influence its codes and audio; 0 for
      causal codecs.
    past: number of frames before a frame that influence its codes, for causal codecs; None if it
      has no bound, or is not known.
    stream: functions for chunks; None if the codec needs whole clips.
    vectors: (variables, codes_BFQ) -> embeddings z_BFD of the codes; None if there are none.
    decode_vectors: (variables, z_BFD) -> wave_BT; None if `vectors` is None.
    switch: part that can remove noise, 'encoder' or 'decoder'; None if neither can.
    denoised: the same functions with the switch on; None without a switch.
  """

  encode: Callable[[Variables, jax.Array, int | None], jax.Array]
  decode: Callable[[Variables, jax.Array], jax.Array]
  context: int = 0
  past: int | None = None
  stream: StreamFunctions | None = None
  vectors: Callable[[Variables, jax.Array], jax.Array] | None = None
  decode_vectors: Callable[[Variables, jax.Array], jax.Array] | None = None
  switch: str | None = None
  denoised: 'CodecFunctions | None' = None


@runtime_checkable
class CodecConfig(Protocol):
  """Config of a codec; rates are in Hz, lengths in samples."""

  sample_rate: int
  hop_length: int
  frame_rate: float
  num_quantizers: int
  codebook_size: int

  def codec(self) -> CodecFunctions:
    """Returns the functions of the codec that this config describes."""


@runtime_checkable
class FeatureConfig(Protocol):
  """Config of a model whose features can be clustered into semantic tokens.

  `semantic_features` returns features_BSD of one layer, S = ceil(T / hop_length). Trailing zeros of
  a waveform are padding and do not influence other frames.
  """

  sample_rate: int
  hop_length: int
  frame_rate: float

  def semantic_features(self, variables: Variables, wave_BT: jax.Array, layer: int) -> jax.Array:
    """Returns the features [B, S, D] to cluster.

    Args:
      variables: parameters and state.
      wave_BT: waveforms in [-1, 1] at `sample_rate`.
      layer: number of the layer.
    """


def check_batch(features: Mapping[str, Feature], batch: Mapping[str, Any], batch_size: int) -> None:
  """Checks names, shapes, types and ids of a batch on the host.

  Call it with the first batch of a run, as `training.loop` does.

  Args:
    features: entries that the stage needs.
    batch: arrays by name; further names are allowed.
    batch_size: expected number of examples.

  Raises:
    UserError: naming the first entry that differs.
  """
  if missing := sorted(set(features) - set(batch)):
    raise UserError(f'the batch has {sorted(batch)}; the stage also needs {missing}')
  for name, feature in features.items():
    array, wanted = batch[name], (batch_size, *feature.shape)
    if np.shape(array) != wanted:
      raise UserError(
        f'{name!r} has shape {np.shape(array)} in the batch; the stage needs {wanted}'
      )
    kind = jnp.integer if jnp.issubdtype(feature.dtype, jnp.integer) else jnp.floating
    if not jnp.issubdtype(jnp.result_type(array), kind):
      raise UserError(
        f'{name!r} is of type {jnp.result_type(array)} in the batch; the stage needs '
        f'{np.dtype(feature.dtype).name}'
      )
    if feature.num_ids is not None:
      checks.ids(repr(name), array, feature.num_ids)

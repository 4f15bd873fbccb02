"""The contract between a trainable stage and everything that is written once (input, mesh, train
step, loop).

A stage is what an `optax.GradientTransformation` is: a record of pure functions, made from a frozen
config by `Config.make()`. The type of the config selects the stage; Python's import is the
registry.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import checks
from audiolm_jax.errors import UserError

Key = jax.Array  # a typed PRNG key, from jax.random.key
# tree of arrays that receive gradients; its top-level names are the optimizer's groups
Params = Any
State = Any  # tree of arrays that do not (EMA codebooks, counters); most stages: {}
Batch = Mapping[str, jax.Array | np.ndarray]


class Feature(NamedTuple):
  """One entry of a batch, for one example.

  The input pipeline cuts every time series of an example at the same instant: `start_seconds *
  rate` along axis 0, for `shape[0]` entries. The remaining axes take the leading part of what the
  source holds (a stage that asks for 4 quantizer levels gets the first 4). An example that is too
  short is padded: floats with 0, integers with `tokens.PAD` (-1). Integers below `num_ids` are ids,
  -1 is padding; None: any number is legal.
  """

  shape: tuple[int, ...]
  dtype: Any
  rate: float | None  # entries per second along axis 0; None: not a time series, passed on as it is
  num_ids: int | None = None  # of tokens and labels


class Variables(NamedTuple):
  params: Params
  state: State


class Model(NamedTuple):
  """A trained model: its config, its arrays, and what its checkpoint says (step, fingerprints)."""

  config: Any
  variables: Variables
  metadata: Mapping[str, Any] = {}


class Aux(NamedTuple):
  """What a loss returns beside the loss: the next state, and scalars to log (float32, means over
  the global batch).
  """

  state: State
  metrics: Mapping[str, jax.Array]


class Stage(NamedTuple):
  """A trainable model.

  batch: what one example must hold, by name ('waveform', 'semantic', 'codes', 'label', ...).
  init: key -> Variables. The leaves of `params` are boxed by `nn.with_logical_partitioning` where
    an axis can be sharded; `training.sharding` reads the boxes and unboxes. `loss` takes unboxed
    trees.
  loss: (params, state, batch, key) -> (scalar, Aux). `key is None` means evaluation: no dropout, no
    masking noise that is not derived from a fixed key, no codebook update, no other change of
    state.
  inference: Variables -> those that inference reads, in the same structure; what only training needs
    (discriminators, moving averages) is left out or None. Exports hold these.

  Arrays are global: a mean is a mean over the global batch.
  """

  batch: Mapping[str, Feature]
  init: Callable[[Key], Variables]
  loss: Callable[[Params, State, Batch, Key | None], tuple[jax.Array, Aux]]
  inference: Callable[[Variables], Variables] = lambda variables: variables


class StreamFunctions(NamedTuple):
  """Coding chunk by chunk: what one call leaves for the next is the state.

  encoder_state, decoder_state: number of clips -> the state before their first chunk: silence.
  encode_step: (variables, state, wave_BT, num_quantizers or None) -> (codes_BFQ, state).
  decode_step: (variables, state, codes_BFQ) -> (wave_BT, state).
  """

  encoder_state: Callable[[int], State]
  decoder_state: Callable[[int], State]
  encode_step: Callable[[Variables, State, jax.Array, int | None], tuple[jax.Array, State]]
  decode_step: Callable[[Variables, State, jax.Array], tuple[jax.Array, State]]


class CodecFunctions(NamedTuple):
  """The pure functions of a codec, ours or imported; `audiolm_jax.codec.Codec` binds them.

  encode: (variables, wave_BT, num_quantizers or None for all) -> codes_BFQ, T = F * hop_length.
  decode: (variables, codes_BFQ of the first levels) -> wave_BT.
  context: frames after its own that the codes or the audio of a frame depend on, and as many before
    it; 0: a causal codec, which depends on what came before alone.
  stream: coding chunk by chunk; None: the codec takes whole clips.
  vectors: (variables, codes_BFQ) -> the embeddings z_BFD of the codes; None: a code has none.
  decode_vectors: (variables, z_BFD) -> wave_BT; None where `vectors` is.
  switch: 'encoder' or 'decoder', where the codec can be told to remove noise; None: it cannot.
  denoised: the same functions with the switch on; None without a switch.
  """

  encode: Callable[[Variables, jax.Array, int | None], jax.Array]
  decode: Callable[[Variables, jax.Array], jax.Array]
  context: int = 0
  stream: StreamFunctions | None = None
  vectors: Callable[[Variables, jax.Array], jax.Array] | None = None
  decode_vectors: Callable[[Variables, jax.Array], jax.Array] | None = None
  switch: str | None = None
  denoised: 'CodecFunctions | None' = None


@runtime_checkable
class CodecConfig(Protocol):
  """A config that makes a codec; rates in Hz, lengths in samples."""

  sample_rate: int
  hop_length: int
  frame_rate: float
  num_quantizers: int
  codebook_size: int

  def codec(self) -> CodecFunctions: ...


@runtime_checkable
class FeatureConfig(Protocol):
  """A config of a model whose features can be clustered into semantic tokens.

  `semantic_features` returns features_BSD of one layer, S = ceil(T / hop_length). Zeros at the end
  of a waveform are padding and have no influence on the rest.
  """

  sample_rate: int
  hop_length: int
  frame_rate: float

  def semantic_features(
    self, variables: Variables, wave_BT: jax.Array, layer: int
  ) -> jax.Array: ...


def check_batch(features: Mapping[str, Feature], batch: Mapping[str, Any], batch_size: int) -> None:
  """Raises ValueError where a batch on the host is not `batch_size` examples of what `features`
  say.

  Compares names, shapes, integers or floats, and the range of ids; arrays that no feature names are
  let through. The loop calls it with the first batch of a run; your own loop should.
  """
  if missing := sorted(set(features) - set(batch)):
    raise UserError(f'the batch has {sorted(batch)}; the stage asks for {missing} besides')
  for name, feature in features.items():
    array, wanted = batch[name], (batch_size, *feature.shape)
    if np.shape(array) != wanted:
      raise UserError(
        f'{name!r} has shape {np.shape(array)} in the batch; the stage asks for {wanted}'
      )
    kind = jnp.integer if jnp.issubdtype(feature.dtype, jnp.integer) else jnp.floating
    if not jnp.issubdtype(jnp.result_type(array), kind):
      raise UserError(
        f'{name!r} is of type {jnp.result_type(array)} in the batch; the stage asks for '
        f'{np.dtype(feature.dtype).name}'
      )
    if feature.num_ids is not None:
      checks.ids(repr(name), array, feature.num_ids)

"""Encodes audio to codes and decodes them, with a trained codec: whole clips, blocks or streams.

  codec = load('runs/tiny')
  codes_BFQ = codec.encode(wave_BT, levels=4)
  wave_BT = codec.decode(codes_BFQ)

A `Codec` is a pytree whose leaves are the weights: `jax.device_put` places it, and jitted functions
can take it as an argument. Its methods are jitted, and compile once per shape.
"""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from audiolm_jax import arrays_file, audio, checks, storage
from audiolm_jax.errors import UserError
from audiolm_jax.stages.base import CodecConfig, CodecFunctions, State, Variables
from audiolm_jax.training import checkpoints

CHUNK_SECONDS = 1.0
MAX_WHOLE_SECONDS = 128.0  # of a clip that is encoded or decoded in one piece


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['variables'], meta_fields=['config', 'denoise']
)
@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
  """Binds a codec to its weights.

  Fields:
    config: SoundStream or a pretrained codec.
    variables: its weights.
    denoise: whether to remove noise; only for codecs trained with a denoising switch.
  """

  config: CodecConfig
  variables: Variables
  denoise: bool = False

  @property
  def functions(self) -> CodecFunctions:
    """Pure functions of (variables, ...), for use in other jitted functions.

    Raises:
      UserError: if `denoise` is set but the codec has no denoising switch.
    """
    functions = self.config.codec()
    if not self.denoise:
      return functions
    if functions.denoised is None:
      raise UserError('denoise=True: this codec was trained without a denoising switch')
    return functions.denoised

  @property
  def sample_rate(self) -> int:
    """Samples per second."""
    return self.config.sample_rate

  @property
  def hop_length(self) -> int:
    """Samples per frame."""
    return self.config.hop_length

  @property
  def frame_rate(self) -> float:
    """Frames per second."""
    return self.config.frame_rate

  @property
  def num_quantizers(self) -> int:
    """Number of levels Q of codes."""
    return self.config.num_quantizers

  @property
  def codebook_size(self) -> int:
    """Number of different codes per level."""
    return self.config.codebook_size

  @property
  def context(self) -> int:
    """Number of frames before and after a frame that it depends on; 0 for a causal codec."""
    return self.functions.context

  @property
  def past(self) -> int | None:
    """Number of frames before a frame that its codes depend on; None if it has no bound."""
    return self.context or self.functions.past

  def code_vectors(self) -> np.ndarray:
    """Returns the vector [Q, K, D] that each code adds to the embedding of its frame.

    Vectors of one level share an unknown constant.

    Raises:
      UserError: if the codec's codes have no vectors.
    """
    if self.functions.vectors is None:
      raise UserError(
        f'the codes of {type(self.config).__name__} have no vectors: use another codec'
      )
    levels, size = self.num_quantizers, self.codebook_size
    made = []
    for level in range(levels):
      codes_K1Q = np.zeros((size, 1, levels), np.int32)
      codes_K1Q[:, 0, level] = np.arange(size)
      z_K1D = self.functions.vectors(self.variables, jnp.asarray(codes_K1Q))
      made.append(np.asarray(z_K1D)[:, 0])
    return np.stack(made)

  def bit_rate(self, levels: int | None = None) -> float:
    """Returns the bits per second of the first `levels` levels; None for all.

    Args:
      levels: number of levels; None: all.
    """
    return math.log2(self.codebook_size) * self.frame_rate * (levels or self.num_quantizers)

  @functools.cached_property
  def fingerprint(self) -> str:
    """16 hex digits of the SHA-256 of the weights that encode and decode (no discriminators)."""
    params, state = self.variables
    return arrays_file.fingerprint((params.get('generator', params), state.get('codebooks')))

  def encode(
    self, wave_BT: Float[Array | np.ndarray, 'B T'], levels: int | None = None
  ) -> Int[Array, 'B F Q']:
    """Returns codes, F = ceil(T / hop_length).

    Args:
      wave_BT: waveforms in [-1, 1] at `sample_rate`; zeros are appended to complete the last frame.
      levels: number of levels Q; None for all.
    """
    checks.shapes(wave_BT=wave_BT)
    return _encode(self, wave_BT, levels=levels)

  def decode(
    self, codes_BFQ: Int[Array | np.ndarray, 'B F Q'], num_samples: int | None = None
  ) -> Float[Array, 'B T']:
    """Returns the waveforms of codes.

    Args:
      codes_BFQ: codes of the first Q levels.
      num_samples: length T, to remove what completed the last frame; None: T = F * hop_length.

    Raises:
      UserError: if a code is out of range, or a waveform of `num_samples` does not have F frames.
    """
    checks.shapes(codes_BFQ=codes_BFQ)
    checks.ids('codes_BFQ', codes_BFQ, self.codebook_size, padding=False)
    frames, hop = codes_BFQ.shape[1], self.hop_length
    if num_samples is None:
      return _decode(self, codes_BFQ)
    if -(-num_samples // hop) != frames or num_samples < 1:
      raise UserError(
        f'num_samples={num_samples:,} does not match {frames} frames of hop_length={hop}: '
        'pass the length of the waveform that was encoded'
      )
    return _decode(self, codes_BFQ)[:, :num_samples]

  def reconstruct(
    self, wave_BT: Float[Array | np.ndarray, 'B T'], levels: int | None = None
  ) -> Float[Array, 'B T']:
    """Returns waveforms encoded and decoded, of the same length.

    Args:
      wave_BT: waveforms in [-1, 1] at `sample_rate`.
      levels: number of levels; None: all.
    """
    checks.shapes(wave_BT=wave_BT)
    return _reconstruct(self, wave_BT, levels=levels)

  @property
  def stream(self) -> 'Stream | None':
    """Streaming interface; None if the codec needs whole clips."""
    return None if self.functions.stream is None else Stream(self)

  @property
  def block_frames(self) -> int:
    """Frames per block of `encode_blocks` and `decode_blocks`: one second, at least `context`."""
    return max(1, round(CHUNK_SECONDS * self.frame_rate), self.context)

  def encode_blocks(
    self, blocks: Iterable[np.ndarray], levels: int | None = None
  ) -> Iterator[np.ndarray]:
    """Yields the codes [F, Q] of the blocks of a clip of any length.

    Codecs with a stream encode block by block. Codecs with `context` get that many frames of both
    neighbours with each block, and silence after the clip. Causal codecs without a stream get the
    whole clip, padded to a power of two seconds.

    Args:
      blocks: waveforms [T] of `block_frames` frames; the last may be shorter.
      levels: number of levels Q; None for all.

    Raises:
      UserError: if the codec needs the whole clip, and it is longer than MAX_WHOLE_SECONDS.
    """
    hop = self.hop_length
    if self.stream is not None:
      yield from self._streamed(blocks, levels)
      return
    silence = lambda wave_T, count: np.zeros(count, np.float32)
    for window_T, before in _windows(self, blocks, hop, silence):
      yield _inner(self, np.asarray(self.encode(window_T[None], levels))[0], before)

  def _streamed(self, blocks: Iterable[np.ndarray], levels: int | None) -> Iterator[np.ndarray]:
    stream, frames, delay = self.stream, self.block_frames, self.stream.delay
    state, late_FQ = stream.encoder_state(1), None
    silence = [np.zeros(0, np.float32)] * -(-delay // frames)
    for block_T in itertools.chain(blocks, silence):
      # Only the last block can be shorter; silence follows the clip.
      chunk_BT = np.pad(block_T, (0, frames * self.hop_length - len(block_T)))[None]
      codes_BFQ, state = stream.encode(state, chunk_BT, levels)
      codes_FQ = np.asarray(codes_BFQ)[0]
      late_FQ = codes_FQ if late_FQ is None else np.concatenate([late_FQ, codes_FQ])
      if len(late_FQ) >= delay + frames:
        yield late_FQ[delay : delay + frames]
        late_FQ = late_FQ[frames:]

  def decode_blocks(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the waveforms [T] of blocks of codes; otherwise as `encode_blocks`.

    After the clip, codecs that look ahead get repetitions of the last frame.

    Args:
      blocks: codes [F, Q] of `block_frames` frames. The last block may be shorter: discard samples
        after its last frame.
    """
    if self.stream is not None:
      state = self.stream.decoder_state(1)
      for block_FQ in blocks:
        chunk_BFQ = np.pad(block_FQ, ((0, self.block_frames - len(block_FQ)), (0, 0)))[None]
        wave_BT, state = self.stream.decode(state, chunk_BFQ)
        yield np.asarray(wave_BT)[0]
      return
    hold = lambda codes_FQ, count: np.repeat(codes_FQ[-1:], count, axis=0)
    for window_FQ, before in _windows(self, blocks, 1, hold):
      wave_T = np.asarray(self.decode(window_FQ[None]))[0]
      yield _inner(self, wave_T.reshape(-1, self.hop_length), before).reshape(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """Encodes and decodes chunk by chunk.

  Results equal those of the whole clip, except that codes may differ where rounding decides between
  equally near vectors. Pass each call the state that the previous one returned.
  """

  codec: Codec

  @property
  def delay(self) -> int:
    """Number of frames by which codes are late; see `stages.base.StreamFunctions`."""
    return self.codec.functions.stream.delay

  def encoder_state(self, batch_size: int) -> State:
    """Returns the state before the first chunk of `batch_size` clips: preceding silence.

    Args:
      batch_size: number of clips.
    """
    return self._placed(self.codec.functions.stream.encoder_state(batch_size))

  def decoder_state(self, batch_size: int) -> State:
    """Returns the state before the first codes of `batch_size` clips.

    Args:
      batch_size: number of clips.
    """
    return self._placed(self.codec.functions.stream.decoder_state(batch_size))

  def _placed(self, state: State) -> State:
    # With the sharding of the weights; with another one, the second chunk would compile again.
    weight = jax.tree.leaves(self.codec.variables.params)[0]
    return jax.device_put(state, getattr(weight, 'sharding', None))

  def encode(
    self, state: State, wave_BT: Float[Array | np.ndarray, 'B T'], levels: int | None = None
  ) -> tuple[Int[Array, 'B F Q'], State]:
    """Returns the next codes, and the state.

    Args:
      state: state after the previous chunk.
      wave_BT: the next chunk; T is a multiple of hop_length.
      levels: number of levels Q; None for all.

    Returns:
      The codes of as many frames as the chunk has, `delay` frames late.
    """
    return _encode_step(self.codec, state, wave_BT, levels=levels)

  def decode(
    self, state: State, codes_BFQ: Int[Array | np.ndarray, 'B F Q']
  ) -> tuple[Float[Array, 'B T'], State]:
    """Returns the waveforms of the next frames, T = F * hop_length, and the state; F >= 1.

    Args:
      state: from `decoder_state` or the previous call.
      codes_BFQ: codes of the next frames, of any number of leading levels.
    """
    checks.ids('codes_BFQ', codes_BFQ, self.codec.codebook_size, padding=False)
    return _decode_step(self.codec, state, codes_BFQ)


def load(directory: str | os.PathLike) -> Codec:
  """Returns the codec in a workdir or in a stage's folder.

  Args:
    directory: workdir or folder of a stage, on a disk or in a bucket.

  Raises:
    UserError: if there is no codec, or its checkpoints are damaged.
  """
  directory = storage.path(directory)
  if (directory / 'soundstream').is_dir():
    directory = directory / 'soundstream'
  if not directory.is_dir():
    raise UserError(f'{directory} does not exist: train or import a codec there')
  config, variables, _ = checkpoints.load_variables(directory)
  if not isinstance(config, CodecConfig):
    raise UserError(
      f'{directory} holds {type(config).__module__}, which is not a codec: import one there'
    )
  return Codec(config, variables)


@functools.partial(jax.jit, static_argnames='levels')
def _encode(codec: Codec, wave_BT, levels: int | None = None):
  wave_BT = audio.pad_to_multiple(wave_BT, codec.hop_length)
  return codec.functions.encode(codec.variables, wave_BT, levels)


@jax.jit
def _decode(codec: Codec, codes_BFQ):
  return codec.functions.decode(codec.variables, codes_BFQ)


@functools.partial(jax.jit, static_argnames='levels')
def _reconstruct(codec: Codec, wave_BT, levels: int | None = None):
  return _decode(codec, _encode(codec, wave_BT, levels=levels))[:, : wave_BT.shape[1]]


@functools.partial(jax.jit, static_argnames='levels')
def _encode_step(codec: Codec, state, wave_BT, levels: int | None = None):
  return codec.functions.stream.encode_step(codec.variables, state, wave_BT, levels)


@jax.jit
def _decode_step(codec: Codec, state, codes_BFQ):
  return codec.functions.stream.decode_step(codec.variables, state, codes_BFQ)


def _windows(
  codec: Codec,
  blocks: Iterable[np.ndarray],
  unit: int,
  follow: Callable[[np.ndarray, int], np.ndarray],
) -> Iterator[tuple[np.ndarray, int]]:
  """Yields the codec's input for each block, and the number of its frames that precede the block.

  Args:
    codec: the codec, without a stream.
    blocks: arrays of `block_frames * unit` rows; the last may be shorter.
    unit: rows (samples or frames of codes) per frame.
    follow: function (rows, count) -> rows to append after the last.
  """
  context, frames, blocks = codec.context, codec.block_frames, iter(blocks)
  past, block = None, next(blocks, None)
  if block is not None and not context:
    yield _whole(codec, itertools.chain([block], blocks), unit, follow), 0
    return
  while block is not None:
    following = next(blocks, None)
    before = 0 if past is None else context
    rows = [] if past is None else [past[-context * unit :]]
    rows = np.concatenate(
      rows + [block] + ([] if following is None else [following[: context * unit]])
    )
    missing = (before + frames + context) * unit - len(rows)
    yield np.concatenate([rows, follow(rows, missing)]), before
    past, block = block, following


def _whole(codec: Codec, blocks: Iterator[np.ndarray], unit: int, follow) -> np.ndarray:
  """Returns all blocks as one array, padded to a power of two seconds."""
  second, taken, length = round(codec.frame_rate) * unit, [], 0
  for block in blocks:
    taken.append(block)
    length += len(block)
    if length > MAX_WHOLE_SECONDS * second:
      raise UserError(
        f'the clip is longer than {MAX_WHOLE_SECONDS:g} s, the limit of '
        f'{type(codec.config).__module__}: cut it, or use a codec that works block by block '
        '(SoundStream, DAC)'
      )
  rows = np.concatenate(taken)
  seconds = 1 << max(0, -(-len(rows) // second) - 1).bit_length()
  return np.concatenate([rows, follow(rows, seconds * second - len(rows))])


def _inner(codec: Codec, rows_F: np.ndarray, before: int) -> np.ndarray:
  """Returns the frames of the block, without those of its neighbours."""
  return rows_F[before : before + codec.block_frames] if codec.context else rows_F

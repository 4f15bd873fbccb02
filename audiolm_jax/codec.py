"""A codec with its weights: audio to codes and back, of whole clips, in chunks, and block by block.

  codec = load('runs/tiny')
  codes_BFQ = codec.encode(wave_BT, levels=4)
  wave_BT = codec.decode(codes_BFQ)

A `Codec` is a pytree whose leaves are the weights: `jax.device_put` places it, and a compiled
function takes it as an argument. Its methods are compiled, once for each shape.
"""

import dataclasses
import functools
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from audiolm_jax import arrays_file, audio, checks
from audiolm_jax.errors import UserError
from audiolm_jax.stages.base import CodecConfig, CodecFunctions, State, Variables
from audiolm_jax.training import checkpoints

CHUNK_SECONDS = 1.0
MAX_WHOLE_SECONDS = 128.0  # of a clip that is not coded in pieces


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['variables'], meta_fields=['config', 'denoise']
)
@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
  """A codec, ours or imported, bound to its weights.

  denoise: remove noise; only for a codec that was trained with a denoising switch.
  """

  config: CodecConfig
  variables: Variables
  denoise: bool = False

  @property
  def functions(self) -> CodecFunctions:
    """The pure functions of (variables, ...), for compiled functions of one's own."""
    functions = self.config.codec()
    if not self.denoise:
      return functions
    if functions.denoised is None:
      raise UserError('denoise=True: this codec was trained without a denoising switch (film)')
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
    """Levels of codes."""
    return self.config.num_quantizers

  @property
  def codebook_size(self) -> int:
    """Codes of a level."""
    return self.config.codebook_size

  @property
  def context(self) -> int:
    """Frames on either side that a frame depends on; 0: a causal codec."""
    return self.functions.context

  def bit_rate(self, levels: int | None = None) -> float:
    """Returns bits per second of the first `levels` levels (None: of all)."""
    return math.log2(self.codebook_size) * self.frame_rate * (levels or self.num_quantizers)

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256, 16 hex digits, of what encodes and decodes: without discriminators."""
    params, state = self.variables
    return arrays_file.fingerprint((params.get('generator', params), state.get('codebooks')))

  def encode(
    self, wave_BT: Float[Array | np.ndarray, 'B T'], levels: int | None = None
  ) -> Int[Array, 'B F Q']:
    """Returns the codes of the first `levels` levels (None: all), F = ceil(T / hop_length).

    Zeros fill up the last frame.
    """
    checks.shapes(wave_BT=wave_BT)
    return _encode(self, wave_BT, levels=levels)

  def decode(
    self, codes_BFQ: Int[Array | np.ndarray, 'B F Q'], num_samples: int | None = None
  ) -> Float[Array, 'B T']:
    """Returns the waveform of codes of the first levels, T = F * hop_length, or T = `num_samples`.

    Raises ValueError for a code outside of the codebook, and where waveforms of `num_samples` have
    another number of frames.
    """
    checks.shapes(codes_BFQ=codes_BFQ)
    checks.ids('codes_BFQ', codes_BFQ, self.codebook_size, padding=False)
    frames, hop = codes_BFQ.shape[1], self.hop_length
    if num_samples is None:
      return _decode(self, codes_BFQ)
    if -(-num_samples // hop) != frames or num_samples < 1:
      raise UserError(
        f'num_samples={num_samples:,} does not go with {frames} frames of hop_length={hop}: '
        'give the length of the waveform that was encoded'
      )
    return _decode(self, codes_BFQ)[:, :num_samples]

  def reconstruct(
    self, wave_BT: Float[Array | np.ndarray, 'B T'], levels: int | None = None
  ) -> Float[Array, 'B T']:
    """Returns the waveform through the codec, of the same length."""
    checks.shapes(wave_BT=wave_BT)
    return _reconstruct(self, wave_BT, levels=levels)

  @property
  def stream(self) -> 'Stream | None':
    """Coding in chunks with a latency of one frame; None where the codec takes whole clips only."""
    return None if self.functions.stream is None else Stream(self)

  @property
  def block_frames(self) -> int:
    """Frames of a block of `encode_blocks` and `decode_blocks`: a second, and at least `context`."""
    return max(1, round(CHUNK_SECONDS * self.frame_rate), self.context)

  def encode_blocks(
    self, blocks: Iterable[np.ndarray], levels: int | None = None
  ) -> Iterator[np.ndarray]:
    """Yields codes [F, Q] of a clip of any length that comes in blocks [T] of `block_frames` frames.

    The last block may be shorter. A stream is used where there is one. A codec that looks ahead
    sees `context` frames of the neighbours on both sides of a block, and silence after the clip. A
    causal codec without a stream is given the whole clip, filled up to a power of two seconds.

    Raises ValueError when the clip is too long for a codec that takes it whole.
    """
    hop = self.hop_length
    if self.stream is not None:
      state = self.stream.encoder_state(1)
      for block_T in blocks:
        # only the last one is shorter, and the codec is causal
        chunk_BT = np.pad(block_T, (0, self.block_frames * hop - len(block_T)))[None]
        codes_BFQ, state = self.stream.encode(state, chunk_BT, levels)
        yield np.asarray(codes_BFQ)[0]
      return
    silence = lambda wave_T, count: np.zeros(count, np.float32)
    for window_T, before in _windows(self, blocks, hop, silence):
      yield _inner(self, np.asarray(self.encode(window_T[None], levels))[0], before)

  def decode_blocks(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the waveform [T] of codes [F, Q] that come in blocks of `block_frames` frames.

    The last block may be shorter; samples after its last frame are yielded too and mean nothing. A
    codec that looks ahead sees the last frame repeated after the clip. Otherwise as
    `encode_blocks`.
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
  """Codes clips chunk by chunk, with what the whole clip gives, but for rounding at ties.

  Make a state, and give each call the state that the one before returned.
  """

  codec: Codec

  def encoder_state(self, batch_size: int) -> State:
    """Returns the state for the first chunk of `batch_size` clips: silence before it."""
    return self._placed(self.codec.functions.stream.encoder_state(batch_size))

  def decoder_state(self, batch_size: int) -> State:
    """Returns the state for the first codes of `batch_size` clips."""
    return self._placed(self.codec.functions.stream.decoder_state(batch_size))

  def _placed(self, state: State) -> State:
    # Beside the variables: where JAX may choose, the second chunk compiles again.
    weight = jax.tree.leaves(self.codec.variables.params)[0]
    return jax.device_put(state, getattr(weight, 'sharding', None))

  def encode(
    self, state: State, wave_BT: Float[Array | np.ndarray, 'B T'], levels: int | None = None
  ) -> tuple[Int[Array, 'B F Q'], State]:
    """Returns the codes of the next chunk, T a multiple of hop_length, and the state after it."""
    return _encode_step(self.codec, state, wave_BT, levels=levels)

  def decode(
    self, state: State, codes_BFQ: Int[Array | np.ndarray, 'B F Q']
  ) -> tuple[Float[Array, 'B T'], State]:
    """Returns the waveform of the next F >= 1 frames, T = F * hop_length, and the state after it."""
    checks.ids('codes_BFQ', codes_BFQ, self.codec.codebook_size, padding=False)
    return _decode_step(self.codec, state, codes_BFQ)


def load(directory: str | os.PathLike) -> Codec:
  """Returns the codec, trained or imported, of a workdir or of its own checkpoint folder.

  Raises UserError where there is none.
  """
  directory = pathlib.Path(directory)
  if (directory / 'soundstream').is_dir():
    directory = directory / 'soundstream'
  if not directory.is_dir():
    raise UserError(f'{directory} does not exist: train or import a codec there')
  config, variables, _ = checkpoints.load_variables(directory)
  if not isinstance(config, CodecConfig):
    raise UserError(
      f'{directory} holds {type(config).__module__}, which is no codec: import one there'
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
  """Yields what the codec is given at a time, and how many of its frames come before the block.

  blocks: of `block_frames * unit` rows, the last one shorter; follow: (rows, count) -> what comes
  after the last row.
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
  """Returns a clip filled up to a power of two seconds."""
  second, taken, length = round(codec.frame_rate) * unit, [], 0
  for block in blocks:
    taken.append(block)
    length += len(block)
    if length > MAX_WHOLE_SECONDS * second:
      raise UserError(
        f'the clip is longer than {MAX_WHOLE_SECONDS:g} s, the most that '
        f'{type(codec.config).__module__} takes: cut it, or use a codec that works in pieces '
        '(SoundStream, DAC)'
      )
  rows = np.concatenate(taken)
  seconds = 1 << max(0, -(-len(rows) // second) - 1).bit_length()
  return np.concatenate([rows, follow(rows, seconds * second - len(rows))])


def _inner(codec: Codec, rows_F: np.ndarray, before: int) -> np.ndarray:
  """Returns the frames of the block alone, of those of its window."""
  return rows_F[before : before + codec.block_frames] if codec.context else rows_F

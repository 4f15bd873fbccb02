"""Clips of any length through a codec, in pieces of one shape: few compilations, little memory.

SoundStream streams. A codec that looks ahead is given each piece with `context` frames of its
neighbours on both sides, and behind the clip silence (the encoder) or its last frame (the decoder):
the result is that of the whole clip with these behind it. A causal codec whose state we do not
carry over, imported ones, is given clips whole, filled up to a power of two seconds.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from audiolm_jax import streaming
from audiolm_jax.errors import UserError
from audiolm_jax.stages import soundstream
from audiolm_jax.stages.base import Variables

CHUNK_SECONDS = 1.0
MAX_WHOLE_SECONDS = 128.0  # of a clip that does not go through in pieces


class Codec(NamedTuple):
  config: Any
  variables: Variables
  fingerprint: str
  num_quantizers: int | None  # levels to write, or to read of what a file has; None: all
  denoise: bool = False  # leave noise out; of SoundStream with a switch for it alone

  @property
  def chunk_frames(self) -> int:
    return max(1, round(CHUNK_SECONDS * self.config.frame_rate), self.config.codec().context)


def encode(codec: Codec, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
  """Yields codes [F, Q] of a clip that comes in blocks of `chunk_frames`, the last one shorter;
  rounded up to frames.

  Raises ValueError when the clip is too long for a codec that takes it whole.
  """
  config, length = codec.config, codec.chunk_frames * codec.config.hop_length
  if isinstance(config, soundstream.Config):
    state = _first_state(codec, streaming.encoder_state)
    for block_T in blocks:
      # of the last one, the codec is causal
      chunk_BT = np.pad(block_T, (0, length - len(block_T)))[None]
      codes_BFQ, state = _encode_step(
        config, codec.variables, state, chunk_BT, codec.num_quantizers, codec.denoise
      )
      yield np.asarray(codes_BFQ)[0]
    return
  silence = lambda wave_T, count: np.zeros(count, np.float32)
  for window_T, before in _pieces(codec, blocks, config.hop_length, silence):
    codes_FQ = np.asarray(_encode(config, codec.variables, window_T[None], codec.num_quantizers))[0]
    yield _middle(codec, codes_FQ, before)


def decode(codec: Codec, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
  """Yields the waveform [T] of codes [F, Q] that come in parts of `chunk_frames`, the last one
  shorter; and more.

  What lies beyond the last frame means nothing. Raises ValueError as `encode`.
  """
  config, frames = codec.config, codec.chunk_frames
  if isinstance(config, soundstream.Config):
    state = _first_state(codec, streaming.decoder_state)
    for part_FQ in parts:
      chunk_BFQ = np.pad(part_FQ, ((0, frames - len(part_FQ)), (0, 0)))[None]
      wave_BT, state = _decode_step(config, codec.variables, state, chunk_BFQ, codec.denoise)
      yield np.asarray(wave_BT)[0]
    return
  hold = lambda codes_FQ, count: np.repeat(codes_FQ[-1:], count, axis=0)
  for window_FQ, before in _pieces(codec, parts, 1, hold):
    wave_T = np.asarray(_decode(config, codec.variables, window_FQ[None]))[0]
    yield _middle(codec, wave_T.reshape(-1, config.hop_length), before).reshape(-1)


def _pieces(
  codec: Codec,
  parts: Iterable[np.ndarray],
  unit: int,
  follow: Callable[[np.ndarray, int], np.ndarray],
) -> Iterator[tuple[np.ndarray, int]]:
  """Yields what the codec is given at a time, and the frames of it that come before those asked
  for.

  parts: of `chunk_frames * unit` rows, the last one shorter; follow: (rows, count) -> what comes
  behind the last row.
  """
  context, frames, parts = codec.config.codec().context, codec.chunk_frames, iter(parts)
  past, part = None, next(parts, None)
  if part is not None and not context:
    yield _whole(codec, itertools.chain([part], parts), unit, follow), 0
    return
  while part is not None:
    following = next(parts, None)
    before = 0 if past is None else context
    rows = [] if past is None else [past[-context * unit :]]
    rows = np.concatenate(
      rows + [part] + ([] if following is None else [following[: context * unit]])
    )
    yield (
      np.concatenate([rows, follow(rows, (before + frames + context) * unit - len(rows))]),
      before,
    )
    past, part = part, following


def _whole(codec: Codec, parts: Iterator[np.ndarray], unit: int, follow) -> np.ndarray:
  """Returns a clip filled up to a power of two seconds."""
  second, taken, length = round(codec.config.frame_rate) * unit, [], 0
  for part in parts:
    taken.append(part)
    length += len(part)
    if length > MAX_WHOLE_SECONDS * second:
      raise UserError(
        f'the clip is longer than {MAX_WHOLE_SECONDS:g} s, the most that {type(codec.config).__module__} takes: cut '
        'it, or use a codec that goes through in pieces (SoundStream, DAC)'
      )
  rows = np.concatenate(taken)
  seconds = 1 << max(0, -(-len(rows) // second) - 1).bit_length()
  return np.concatenate([rows, follow(rows, seconds * second - len(rows))])


def _middle(codec: Codec, rows_F: np.ndarray, before: int) -> np.ndarray:
  """Returns the frames that were asked for, of those that a piece made."""
  return rows_F[before : before + codec.chunk_frames] if codec.config.codec().context else rows_F


def _first_state(codec: Codec, make):
  # Where it is left to JAX, and not beside the variables, the second chunk compiles again.
  return jax.device_put(make(codec.config, 1), jax.tree.leaves(codec.variables.params)[0].sharding)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _encode_step(config, variables, state, wave_BT, num_quantizers, denoise):
  return streaming.encode_step(config, variables, state, wave_BT, num_quantizers, denoise=denoise)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _decode_step(config, variables, state, codes_BFQ, denoise):
  return streaming.decode_step(config, variables, state, codes_BFQ, denoise=denoise)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _encode(config, variables, wave_BT, num_quantizers):
  return config.codec().encode(variables, wave_BT, num_quantizers)


@functools.partial(jax.jit, static_argnums=0)
def _decode(config, variables, codes_BFQ):
  return config.codec().decode(variables, codes_BFQ)

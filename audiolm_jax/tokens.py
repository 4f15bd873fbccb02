"""The only place where codes become token ids and back: flattening, offsets, deduplication,
padding.

One language model reads one vocabulary (`Vocabulary`) with disjoint id ranges:

  START | levels of the prefix | levels of the target

and every sequence is `prefix, START, target`. START is the only special token: what follows it is
predicted. There is no end token, since training crops end anywhere. PAD (-1) is no id: it marks
what is not there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from audiolm_jax import checks
from audiolm_jax.errors import UserError

PAD = -1
START = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
  """Id ranges of one language model: START, then `prefix_levels` ranges, then `target_levels`
  ranges.

  prefix_levels, prefix_size: codebooks of the conditioning part and entries of each; 0 levels: no
  prefix.
  target_levels, target_size: the same for the predicted part.
  """

  prefix_levels: int = 0
  prefix_size: int = 0
  target_levels: int = 1
  target_size: int

  def __post_init__(self):
    checks.fields(
      self,
      prefix_levels=checks.whole(0),
      prefix_size=checks.whole(0),
      target_levels=checks.WHOLE,
      target_size=checks.WHOLE,
    )
    if self.num_ids > checks.LARGEST:
      raise UserError(f'{self} has {self.num_ids} ids: int32 holds at most {checks.LARGEST}')

  @property
  def prefix_offset(self) -> int:
    """First id of the prefix."""
    return START + 1

  @property
  def target_offset(self) -> int:
    """First id of the target."""
    return self.prefix_offset + self.prefix_levels * self.prefix_size

  @property
  def num_targets(self) -> int:
    return self.target_levels * self.target_size

  @property
  def num_ids(self) -> int:
    return self.target_offset + self.num_targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """Rates and sizes of the tokens of a clip, as made by a tokenizer, stored, or read by a model.

  None: the model does not read it, or a file does not say it.

  semantic_rate: semantic tokens per second.
  num_clusters: semantic tokens are in [0, num_clusters).
  frame_rate: codec frames per second.
  num_quantizers: levels of codes; of a model, those of the codec that it was made for.
  codebook_size: codes are in [0, codebook_size).
  """

  semantic_rate: float | None = None
  num_clusters: int | None = None
  frame_rate: float | None = None
  num_quantizers: int | None = None
  codebook_size: int | None = None

  @classmethod
  def of(cls, metadata: Mapping[str, Any]) -> 'Spec':
    """Returns the spec in the manifest of token shards, which may hold other entries, or lack some."""
    return cls(**{name: metadata.get(name) for name in cls.__dataclass_fields__})

  def differences(self, made: 'Spec') -> list[str]:
    """Returns why a model of this spec cannot read tokens that were `made` so; []: it can.

    Fewer levels than there are can be read; all else must be equal where both say it.
    """
    found = []
    for name in self.__dataclass_fields__:
      wanted, there = getattr(self, name), getattr(made, name)
      if wanted is None or there is None:
        continue
      if wanted > there if name == 'num_quantizers' else wanted != there:
        found.append(f'{name}={wanted}, the tokens have {there}')
    return found

  @property
  def frames_per_semantic(self) -> int:
    """Codec frames that last as long as a semantic token; ValueError where not a whole number."""
    return frames_per_semantic(self.frame_rate, self.semantic_rate)


def flatten(
  codes_BFQ: Int[Array | np.ndarray, 'B F Q'], codebook_size: int, offset: int = 0
) -> Int[Array, 'B L']:
  """Returns ids in row-major order (frame outer, level inner), L = F Q: code + offset + level *
  codebook_size.

  PAD stays PAD. Source: AudioLM, section III-B.
  Raises ValueError for another rank, and, for numpy input, when a code is neither PAD nor in
  [0, codebook_size).
  """
  checks.shapes(codes_BFQ=codes_BFQ)
  if isinstance(codes_BFQ, np.ndarray):
    checks.ids('codes_BFQ', codes_BFQ, codebook_size)
  batch, frames, levels = codes_BFQ.shape
  offsets_Q = offset + jnp.arange(levels, dtype=jnp.int32) * codebook_size
  ids_BFQ = jnp.where(codes_BFQ == PAD, PAD, jnp.asarray(codes_BFQ, jnp.int32) + offsets_Q)
  return ids_BFQ.reshape(batch, frames * levels)


def unflatten(
  ids_BL: Int[Array | np.ndarray, 'B L'], num_levels: int, codebook_size: int, offset: int = 0
) -> Int[Array, 'B F Q']:
  """Inverts `flatten`.

  Raises ValueError when L is not a multiple of `num_levels`, or, for numpy input, when an id is
  outside its level.
  """
  checks.shapes(ids_BL=ids_BL)
  batch, length = ids_BL.shape
  if num_levels < 1 or length % num_levels:
    raise UserError(
      f'{length} tokens are no whole number of frames of {num_levels} levels: cut the last frame'
    )
  offsets_Q = offset + np.arange(num_levels, dtype=np.int32) * codebook_size
  ids_BFQ = ids_BL.reshape(batch, length // num_levels, num_levels)
  if isinstance(ids_BL, np.ndarray):
    # An id one below its level's range would turn into PAD by subtraction, so the real pads are set
    # to 0 first.
    shifted_BFQ = np.where(ids_BFQ == PAD, 0, ids_BFQ - offsets_Q)
    checks.ids('ids_BL', np.where(shifted_BFQ < 0, codebook_size, shifted_BFQ), codebook_size)
  return jnp.where(ids_BFQ == PAD, PAD, jnp.asarray(ids_BFQ, jnp.int32) - offsets_Q)


def first_of_run(semantic_BS: Int[Array | np.ndarray, 'B S']) -> Bool[Array | np.ndarray, 'B S']:
  """Returns True where a token differs from the one before it and is not PAD."""
  xp = np if isinstance(semantic_BS, np.ndarray) else jnp
  before_BS = xp.concatenate([xp.full_like(semantic_BS[:, :1], PAD), semantic_BS[:, :-1]], axis=1)
  return (semantic_BS != PAD) & (semantic_BS != before_BS)


def deduplicate(
  semantic_BS: Int[Array | np.ndarray, 'B S'],
) -> tuple[Int[Array | np.ndarray, 'B S'], Int[Array | np.ndarray, 'B']]:
  """Removes consecutive repeats; the kept tokens move to the front, PAD fills the rest.

  Shapes are static, numpy in gives numpy out. Returns the tokens and their number in each row.
  Source: AudioLM, section IV-B. Raises ValueError for another rank.
  """
  checks.shapes(semantic_BS=semantic_BS)
  xp = np if isinstance(semantic_BS, np.ndarray) else jnp
  keep_BS = first_of_run(semantic_BS)
  # A stable sort of booleans is a compaction with static shapes.
  order_BS = xp.argsort(~keep_BS, axis=1, stable=True)
  kept_BS = xp.take_along_axis(xp.where(keep_BS, semantic_BS, PAD), order_BS, axis=1)
  return kept_BS, keep_BS.sum(axis=1).astype(xp.int32)


def left_pad(ids_BL: Int[Array, 'B L'], times_BL: Float[Array, 'B L']) -> tuple[Array, Array]:
  """Moves all PAD to the left of each row, so that every row ends at the last column; times move
  along.
  """
  order_BL = jnp.argsort(ids_BL != PAD, axis=1, stable=True)
  return jnp.take_along_axis(ids_BL, order_BL, axis=1), jnp.take_along_axis(
    times_BL, order_BL, axis=1
  )


def frames_per_semantic(frame_rate: float, semantic_rate: float) -> int:
  """Returns how many codec frames last as long as a semantic frame; ValueError where that is no
  whole number.
  """
  checks.values(
    frame_rate=(frame_rate, checks.POSITIVE), semantic_rate=(semantic_rate, checks.POSITIVE)
  )
  frames = round(frame_rate / semantic_rate)
  if frames < 1 or frames * semantic_rate != frame_rate:
    raise UserError(
      f'frame_rate={frame_rate} of the codec must be a multiple of semantic_rate={semantic_rate}: codec frames and '
      'semantic frames cannot be aligned otherwise; take another codec or another semantic model, or make a token of '
      'several features (frames_per_token)'
    )
  return frames


def semantic_frames(crop_seconds: float, semantic_rate: float, frame_rate: float) -> int:
  """Returns the number of semantic frames of a crop.

  Raises ValueError when a semantic frame is no whole number of codec frames or the crop no whole
  number of them.
  """
  frames_per_semantic(frame_rate, semantic_rate)
  checks.values(crop_seconds=(crop_seconds, checks.POSITIVE))
  frames = round(crop_seconds * semantic_rate)
  if frames < 1 or abs(frames - crop_seconds * semantic_rate) > 1e-6:
    raise UserError(
      f'crop_seconds={crop_seconds} is no whole number of frames at {semantic_rate} Hz: change the crop'
    )
  return frames

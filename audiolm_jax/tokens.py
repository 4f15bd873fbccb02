"""Converts codes to token ids and back: flattening, offsets, deduplication, padding.

A language model has one vocabulary (`Vocabulary`) of disjoint id ranges:

  START | levels of part 1 | levels of part 2 | ... | levels of the target

A sequence is `part 1, part 2, ..., START, target`, where the parts before START are the prefix,
which conditions the target. START is the only special token: what follows it is predicted. There is
no end token, because training crops end anywhere. PAD (-1) is not an id; it marks missing tokens.
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


@dataclasses.dataclass(frozen=True)
class Codebook:
  """Defines the ids of one part of the prefix.

  Fields:
    levels: number of codes of a frame.
    size: number of codes per level.
    rate: frames per second; None if the part is no time series, such as tokens of a text.
  """

  levels: int
  size: int
  rate: float | None = None

  def __post_init__(self):
    checks.fields(
      self, levels=checks.WHOLE, size=checks.WHOLE, rate=checks.optional(checks.POSITIVE)
    )

  @property
  def num_ids(self) -> int:
    """Number of ids of all levels."""
    return self.levels * self.size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
  """Defines the id ranges of a language model: START, the parts of the prefix, then the target.

  Fields:
    parts: parts of the prefix, in the order of the sequence; () if there is no prefix.
    target_levels: number of predicted codes of a frame.
    target_size: number of codes per level of the target.

  Raises:
    UserError: if a size is not positive, or there are more ids than int32 holds.
  """

  parts: tuple[Codebook, ...] = ()
  target_levels: int = 1
  target_size: int

  def __post_init__(self):
    a_part = checks.Legal('a tokens.Codebook', lambda value: isinstance(value, Codebook))
    for part in self.parts:
      checks.values(part=(part, a_part))
    checks.fields(self, target_levels=checks.WHOLE, target_size=checks.WHOLE)
    if self.num_ids > checks.LARGEST:
      raise UserError(f'{self} has {self.num_ids} ids: int32 holds at most {checks.LARGEST}')

  @property
  def offsets(self) -> tuple[int, ...]:
    """First id of each part of the prefix."""
    return tuple(START + 1 + sum(p.num_ids for p in self.parts[:n]) for n in range(len(self.parts)))

  @property
  def target_offset(self) -> int:
    """First id of the target."""
    return START + 1 + sum(part.num_ids for part in self.parts)

  @property
  def num_targets(self) -> int:
    """Number of ids of the target codes."""
    return self.target_levels * self.target_size

  @property
  def num_ids(self) -> int:
    """Number of ids of prefix and target codes."""
    return self.target_offset + self.num_targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """Describes the tokens of a clip: those that a tokenizer makes, a file holds, or a model reads.

  A field is None if the model does not read such tokens, or the file does not state it.

  Fields:
    semantic_rate: semantic tokens per second.
    num_clusters: number of semantic ids.
    frame_rate: codec frames per second.
    num_quantizers: number of levels of codes; of a model, those of its codec.
    codebook_size: number of codes per level.
    condition_levels: number of levels of the tokens of a joint embedding of audio and text
      (`stages.base.Condition`).
    condition_size: number of these tokens per level.
  """

  semantic_rate: float | None = None
  num_clusters: int | None = None
  frame_rate: float | None = None
  num_quantizers: int | None = None
  codebook_size: int | None = None
  condition_levels: int | None = None
  condition_size: int | None = None

  @classmethod
  def of(cls, metadata: Mapping[str, Any]) -> 'Spec':
    """Returns the spec in the metadata of token shards; other entries are ignored.

    Args:
      metadata: fields of the spec by name.
    """
    return cls(**{name: metadata.get(name) for name in cls.__dataclass_fields__})

  def differences(self, made: 'Spec') -> list[str]:
    """Returns the reasons why a model of this spec cannot read tokens of the spec `made`.

    A model may read fewer levels than there are. All other fields that both state must be equal.
    A model that reads a condition also needs tokens that have one.

    Args:
      made: spec of the tokens.
    """
    found = []
    for name in self.__dataclass_fields__:
      wanted, there = getattr(self, name), getattr(made, name)
      if wanted is None or (there is None and not name.startswith('condition_')):
        continue
      is_levels = name in ('num_quantizers', 'condition_levels')
      if there is None:
        found.append(f'{name}={wanted}, the tokens have no condition')
      elif wanted > there if is_levels else wanted != there:
        found.append(f'{name}={wanted}, the tokens have {there}')
    return found

  def relevant(self, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Returns the fingerprints, by name, of the models that make the tokens of this spec.

    Args:
      fingerprints: of models, by name.
    """
    read = {
      'soundstream': self.frame_rate,
      'semantic_tokens': self.semantic_rate,
      'music_tokens': self.condition_levels,
    }
    return {name: value for name, value in fingerprints.items() if read[name] is not None}

  @property
  def frames_per_semantic(self) -> int:
    """Number of codec frames per semantic token.

    Raises:
      UserError: if it is not a whole number.
    """
    return frames_per_semantic(self.frame_rate, self.semantic_rate)


def changed_makers(
  trained_on: Mapping[str, str], made_by: Mapping[str, str], spec: Spec | None = None
) -> list[str]:
  """Returns the names of the models that no longer make the tokens that a stage was trained on.

  This decides whether a stage is finished, may resume, and belongs to a chain.

  Args:
    trained_on: fingerprints in the stage's checkpoint, by name of the model. Older checkpoints also
      name models whose tokens the stage does not read.
    made_by: fingerprints of the models that make the tokens now.
    spec: tokens that the stage reads; None: those of all models in `made_by`.
  """
  read = made_by if spec is None else spec.relevant(made_by)
  if trained_on and not read:
    return list(trained_on)
  return [name for name, value in read.items() if trained_on.get(name) != value]


def flatten(
  codes_BFQ: Int[Array | np.ndarray, 'B F Q'], codebook_size: int, offset: int = 0
) -> Int[Array, 'B L']:
  """Returns the ids of codes, frame by frame: code + offset + level * codebook_size; L = F * Q.

  PAD stays PAD. Source: AudioLM (arXiv 2209.03143), section III-B.

  Args:
    codes_BFQ: codes in [0, codebook_size), or PAD.
    codebook_size: codes per level.
    offset: id of code 0 of level 0.

  Raises:
    UserError: for another rank; for numpy input, if a code is neither PAD nor in
      [0, codebook_size).
  """
  checks.shapes(codes_BFQ=codes_BFQ)
  if isinstance(codes_BFQ, np.ndarray):
    checks.ids('codes_BFQ', codes_BFQ, codebook_size)
  batch, frames, levels = codes_BFQ.shape
  offsets_Q = offset + jnp.arange(levels, dtype=jnp.int32) * codebook_size
  ids_BFQ = jnp.where(
    codes_BFQ == PAD, PAD, jnp.asarray(codes_BFQ, jnp.int32) + offsets_Q[None, None]
  )
  return ids_BFQ.reshape(batch, frames * levels)


def unflatten(
  ids_BL: Int[Array | np.ndarray, 'B L'], num_levels: int, codebook_size: int, offset: int = 0
) -> Int[Array, 'B F Q']:
  """Inverts `flatten`: returns the codes of ids.

  Args:
    ids_BL: ids, frame by frame.
    num_levels: number of levels Q.
    codebook_size: codes per level.
    offset: id of code 0 of level 0.

  Returns:
    Codes in [0, codebook_size), or PAD.

  Raises:
    UserError: if L is not a multiple of `num_levels`; for numpy input, if an id is outside its
      level.
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
  """Returns where a token differs from the previous one and is not PAD.

  Args:
    semantic_BS: semantic tokens; PAD is padding.
  """
  xp = np if isinstance(semantic_BS, np.ndarray) else jnp
  before_BS = xp.concatenate([xp.full_like(semantic_BS[:, :1], PAD), semantic_BS[:, :-1]], axis=1)
  return (semantic_BS != PAD) & (semantic_BS != before_BS)


def deduplicate(
  semantic_BS: Int[Array | np.ndarray, 'B S'],
) -> tuple[Int[Array | np.ndarray, 'B S'], Int[Array | np.ndarray, 'B']]:
  """Removes consecutive repeats; the kept tokens move to the left, PAD fills the rest.

  Shapes do not change. Numpy arrays give numpy arrays. Source: AudioLM, section IV-B.

  Args:
    semantic_BS: semantic tokens; PAD is padding.

  Returns:
    Tokens, and the number of tokens in each row.

  Raises:
    UserError: for another rank.
  """
  checks.shapes(semantic_BS=semantic_BS)
  xp = np if isinstance(semantic_BS, np.ndarray) else jnp
  keep_BS = first_of_run(semantic_BS)
  # A stable sort of booleans is a compaction with static shapes.
  order_BS = xp.argsort(~keep_BS, axis=1, stable=True)
  kept_BS = xp.take_along_axis(xp.where(keep_BS, semantic_BS, PAD), order_BS, axis=1)
  return kept_BS, keep_BS.sum(axis=1).astype(xp.int32)


def left_pad(ids_BL: Int[Array, 'B L *N'], times_BL: Float[Array, 'B L']) -> tuple[Array, Array]:
  """Moves PAD to the left of each row, so that every row ends at the last column.

  With ids [B, L, N], columns of PAD alone move.

  Args:
    ids_BL: ids; PAD is padding.
    times_BL: time of each id, in seconds.

  Returns:
    Ids, and times in the same order.
  """
  present = ids_BL != PAD
  order_BL = jnp.argsort(present if ids_BL.ndim == 2 else present.any(axis=2), axis=1, stable=True)
  order = order_BL.reshape(*order_BL.shape, *(1,) * (ids_BL.ndim - 2))
  return jnp.take_along_axis(ids_BL, order, axis=1), jnp.take_along_axis(times_BL, order_BL, axis=1)


def frames_per_semantic(frame_rate: float, semantic_rate: float) -> int:
  """Returns the number of codec frames per semantic frame.

  Args:
    frame_rate: codec frames per second.
    semantic_rate: semantic frames per second.

  Raises:
    UserError: if it is not a whole number.
  """
  checks.values(
    frame_rate=(frame_rate, checks.POSITIVE), semantic_rate=(semantic_rate, checks.POSITIVE)
  )
  frames = round(frame_rate / semantic_rate)
  if frames * semantic_rate != frame_rate:
    raise UserError(
      f'frame_rate={frame_rate} of the codec must be a multiple of semantic_rate={semantic_rate}: '
      'codec frames and semantic frames cannot be aligned otherwise; take another codec or another '
      'semantic model, or make a token of several features (frames_per_token)'
    )
  return frames


def semantic_frames(crop_seconds: float, semantic_rate: float, frame_rate: float) -> int:
  """Returns the number of semantic frames of a crop.

  Args:
    crop_seconds: length of the crop.
    semantic_rate: semantic frames per second.
    frame_rate: codec frames per second.

  Raises:
    UserError: if the crop is not a whole number of semantic frames, or a semantic frame not a whole
      number of codec frames.
  """
  frames_per_semantic(frame_rate, semantic_rate)
  checks.values(crop_seconds=(crop_seconds, checks.POSITIVE))
  frames = round(crop_seconds * semantic_rate)
  if frames < 1 or abs(frames - crop_seconds * semantic_rate) > 1e-6:
    raise UserError(
      f'crop_seconds={crop_seconds} is no whole number of frames at {semantic_rate} Hz: change the '
      'crop'
    )
  return frames

"""Generates the tokens of a chain: semantic tokens, then codes, window by window.

`audiolm_jax.generation` describes windows, alignment and conditions, and makes audio of the codes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from audiolm_jax import checks, decoding, tokens
from audiolm_jax.chain import SamplingConfig, acoustic_model, num_acoustic
from audiolm_jax.errors import UserError
from audiolm_jax.sampling import as_pytree, draw
from audiolm_jax.tokens import PAD

CARRY_SECONDS = 3.0  # of the past in each later window, but at most half of the crop
UNKNOWN_DURATION = 2.0  # semantic frames (of 40 ms) per deduplicated token, without a prompt


class Segments(NamedTuple):
  """Holds the conditions of new audio, one segment after another.

  Fields:
    tokens_BGN: tokens of each segment G of each row.
    seconds: length of a segment; the last one has no end.
  """

  tokens_BGN: Int[np.ndarray, 'B G N']
  seconds: float = float('inf')

  def number(self, seconds: float) -> int:
    """Returns the segment of a time in seconds since the start of the new audio.

    Args:
      seconds: time since the start of the new audio.
    """
    return min(int(seconds // self.seconds), self.tokens_BGN.shape[1] - 1)


class Timed(NamedTuple):
  """Holds the semantic tokens of a row, and the semantic frame at which each starts.

  Starts computed from an assumed duration may be fractional.
  """

  token_N: np.ndarray
  start_N: np.ndarray


class Semantic:
  """Holds the semantic tokens of each row, and generates further ones when they are read."""

  def __init__(self, timed: list[Timed], more: Iterator[list[Timed]] | None = None):
    self._timed, self._more = timed, iter(()) if more is None else more

  def until(self, row: int, frame: int | float) -> Timed:
    """Returns the tokens of a row, complete for the semantic frames before `frame`.

    Args:
      row: number of the row.
      frame: semantic frame; infinity asks for all tokens.
    """
    # A token ends where the next one starts, so one more is needed.
    while not (self._timed[row].start_N >= frame).any() and self._grow():
      pass
    return self._timed[row]

  def whole(self) -> list[Timed]:
    """Returns all tokens of all rows."""
    while self._grow():
      pass
    return self._timed

  def _grow(self) -> bool:
    grown = next(self._more, None)
    self._timed = self._timed if grown is None else grown
    return grown is not None


class How(NamedTuple):
  """Holds the options of a pipeline, see `continue_audio`."""

  rules: SamplingConfig
  carry_seconds: float | None
  acoustic: str
  condition: Segments | None
  guidance: float
  progress: Callable[[int, int], Any] | None = None

  def guided(self, config, condition: decoding.GetCondition) -> dict[str, Any]:
    """Returns the options of decoding.py for a model: a condition if there is one that it reads.

    Args:
      config: config of the model.
      condition: function that returns the condition of each row in a window.
    """
    if self.condition is None or config.condition is None:
      return {}
    return dict(condition=condition, guidance=self.guidance)


class Count:
  """Counts the codec frames that the acoustic models make, and reports them."""

  def __init__(self, progress: Callable[[int, int], Any] | None, total: int):
    self._progress, self._total, self._done = progress, total, 0

  def of(self, parts: Iterable[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """Yields new codes [F, Q] of each row, after reporting them.

    Args:
      parts: new codes [F, Q] of each row, window by window.
    """
    for part in parts:
      self._done += sum(map(len, part))
      if self._progress is not None:
        self._progress(self._done, self._total)
      yield part


class Work(NamedTuple):
  """Holds input of acoustic models: tokens, codes [F, Q] of prompts, numbers of new frames."""

  semantic: Semantic
  prompts: list[np.ndarray]
  new_frames: list[int]


def timed_tokens(semantic_S, deduplicate):
  """Returns the tokens of a row, without repeats if `deduplicate`, and their first frames.

  Args:
    semantic_S: frame-aligned semantic tokens of a row.
    deduplicate: whether to remove repeats.
  """
  semantic_S = semantic_S[semantic_S != PAD]
  keep_S = tokens.first_of_run(semantic_S[None])[0] if deduplicate else semantic_S != PAD
  return Timed(semantic_S[keep_S], np.flatnonzero(keep_S).astype(float))


def extend_semantic(
  models, key, timed: list[Timed], frames_B, num_new: int, how: How
) -> Iterator[list[Timed]]:
  """Yields the rows after each window, in all extended by `num_new` semantic frames.

  A conditioned model starts a new window with each segment.

  Args:
    models: models that belong together.
    key: PRNG key.
    timed: tokens of each row, with their first frames.
    frames_B: number of semantic frames of each row.
    num_new: number of semantic frames to add to each row.
    how: settings of the generation.
  """
  config, condition = models.semantic.config, how.condition
  num_segments = 1
  if condition is not None and config.condition is not None:
    num_segments = condition.tokens_BGN.shape[1]
  done = 0
  for g in range(num_segments):
    end = num_new
    if g < num_segments - 1:
      end = min(num_new, round((g + 1) * condition.seconds * config.semantic_rate))
    if end <= done:
      continue
    segment_key = jax.random.fold_in(key, done) if done else key
    parts = _extend_segment(models, segment_key, timed, frames_B + done, end - done, g, how)
    for timed in parts:
      yield timed
    done = end


def _extend_segment(
  models, key, timed: list[Timed], frames_B, num_new: int, segment: int, how: How
) -> Iterator[list[Timed]]:
  """Yields the rows after each window, in all extended by `num_new` frames of a segment."""
  config, variables, _ = models.semantic
  durations = [
    1.0
    if not config.deduplicate
    else n / len(row.token_N)
    if len(row.token_N)
    else UNKNOWN_DURATION
    for row, n in zip(timed, frames_B, strict=True)
  ]
  parts = decoding.extend_by_window(
    config.language_model,
    variables.params,
    key,
    [row.token_N[:, None] for row in timed],
    [int(np.ceil(num_new / duration)) for duration in durations],
    crop=config.num_semantic,
    carry=config.num_semantic // 2,
    prefix=lambda b, start, stop: np.zeros((0, 1), np.int32),
    prefix_crop=0,
    rule=how.rules.semantic,
    **how.guided(config, lambda b, start: how.condition.tokens_BGN[b, segment]),
  )
  drawn = [row.token_N[:0, None] for row in timed]
  for part in parts:
    drawn = decoding.joined(drawn, [part])
    extended = []
    for before, new_N1, frames, duration in zip(timed, drawn, frames_B, durations, strict=True):
      start_N = frames + duration * np.arange(len(new_N1))
      row_N = np.concatenate([before.token_N, new_N1[:, 0]])
      start_N = np.concatenate([before.start_N, start_N])
      keep_N = start_N < frames + num_new
      extended.append(Timed(row_N[keep_N], start_N[keep_N]))
    yield extended


def carry_frames(config, carry_seconds: float | None) -> int:
  """Returns the number of past codec frames in later windows, a whole number of semantic frames.

  Args:
    config: of the acoustic model.
    carry_seconds: past in later windows; None is CARRY_SECONDS, at most half of the crop.

  Raises:
    UserError: if it is not less than the crop.
  """
  if carry_seconds is None:
    kept = min(round(CARRY_SECONDS * config.semantic_rate), config.num_semantic // 2)
    return config.frames_per_semantic * kept
  checks.values(carry_seconds=(carry_seconds, checks.NOT_NEGATIVE))
  carry = config.frames_per_semantic * round(carry_seconds * config.semantic_rate)
  if carry >= config.num_frames:
    raise UserError(
      f'carry_seconds={carry_seconds} must be shorter than the crop, {config.crop_seconds} s'
    )
  return carry


def new_codes(models, key, work: Work, how: How, *, at_once: bool) -> Iterator[list[np.ndarray]]:
  """Returns an iterator over the new codes [F, Q] of each row.

  Args:
    models: models that belong together.
    key: PRNG key.
    work: what to generate.
    how: settings of the generation.
    at_once: whether all chunks of the fine model are one batch, which takes fewer steps; otherwise
      codes come as soon as the coarse model has made enough.
  """
  config = acoustic_model(models, how.acoustic).config
  carry, coarse_key = carry_frames(config, how.carry_seconds), jax.random.fold_in(key, 1)

  def tokens_of(b, frame):
    new_seconds = (frame - len(work.prompts[b])) / config.frame_rate
    return how.condition.tokens_BGN[b, how.condition.number(new_seconds)]

  guided = how.guided(config, tokens_of)
  count = Count(how.progress, sum(work.new_frames) * num_acoustic(models, how.acoustic))
  if how.acoustic == 'soundstorm':
    ratio = config.frames_per_semantic
    parts = decoding.fill_by_window(
      config,
      models.soundstorm.variables.params,
      coarse_key,
      [row_FQ[:, : config.num_quantizers] for row_FQ in work.prompts],
      work.new_frames,
      semantic=lambda b, first, stop: work.semantic.until(b, stop // ratio).token_N[
        first // ratio : stop // ratio
      ],
      carry=carry,
      how=how.rules.soundstorm,
      **guided,
    )
    return count.of(parts)
  parts = count.of(_coarse(models, coarse_key, work, how.rules.coarse, carry, guided))
  if models.fine is None:
    return parts
  if at_once:
    parts = [
      decoding.joined([np.zeros((0, config.num_quantizers), np.int32)] * len(work.prompts), parts)
    ]
  parts = _fine(models, jax.random.fold_in(key, 2), parts, work.new_frames, how.rules.fine)
  return count.of(parts)


def _coarse(models, key, work: Work, rule, carry, guided) -> Iterator[list[np.ndarray]]:
  """Returns an iterator over the coarse codes [F, Q] of each row, window by window."""
  config, variables, _ = models.coarse
  ratio = config.frames_per_semantic

  def prefix(b, start, stop):
    row = work.semantic.until(b, stop / ratio)
    ends_N = np.append(row.start_N[1:], np.inf)
    token_N = row.token_N[(row.start_N < stop / ratio) & (ends_N > start / ratio)]
    if config.deduplicate:
      token_N = token_N[tokens.first_of_run(token_N[None])[0]]
    return token_N[:, None]

  return decoding.extend_by_window(
    config.language_model,
    variables.params,
    key,
    [row_FQ[:, : config.num_quantizers] for row_FQ in work.prompts],
    work.new_frames,
    crop=config.num_frames,
    carry=carry,
    prefix=prefix
    if config.condition_on_semantic
    else lambda b, start, stop: np.zeros((0, 1), np.int32),
    prefix_crop=config.num_semantic if config.condition_on_semantic else 0,
    rule=rule,
    **guided,
  )


def _fine(
  models, key, parts: Iterable[list[np.ndarray]], new_frames: list[int], rule
) -> Iterator[list[np.ndarray]]:
  """Yields new codes [F, Q] of all levels of each row.

  Rows are cut into chunks of a crop, which do not depend on one another. The complete chunks of
  each part are one batch.

  Args:
    models: models with a fine stage.
    key: PRNG key.
    parts: new coarse codes of each row.
    new_frames: number of new frames of each row in all parts.
    rule: sampling rule.
  """
  config, variables, _ = models.fine
  crop, levels = config.num_frames, config.total_quantizers - config.num_coarse
  waiting = [np.zeros((0, config.num_coarse), np.int32)] * len(new_frames)
  done = [0] * len(new_frames)
  for part in parts:
    waiting, chunks = decoding.joined(waiting, [part]), []  # chunks: (row, first frame, codes)
    for b, total in enumerate(new_frames):
      while done[b] < total and len(waiting[b]) >= (size := min(crop, total - done[b])):
        chunks.append((b, done[b], waiting[b][:size]))
        waiting[b], done[b] = waiting[b][size:], done[b] + size
    if not chunks:
      continue
    place_B2 = np.zeros((decoding.row_bucket(len(chunks)), 2), np.int32)
    place_B2[: len(chunks)] = [(b, first) for b, first, _ in chunks]
    drawn = decoding.extend(
      config.language_model,
      variables.params,
      key,
      [np.zeros((0, levels), np.int32)] * len(chunks),
      [len(coarse_FQ) for _, _, coarse_FQ in chunks],
      crop=crop,
      carry=0,
      prefix=lambda c, start, stop: chunks[c][2],
      prefix_crop=crop,
      rule=jax.tree_util.Partial(_draw_by_place, as_pytree(rule), place_B2),
    )
    made = [[np.zeros((0, config.total_quantizers), np.int32)] for _ in new_frames]
    for (b, _, coarse_FQ), fine_FQ in zip(chunks, drawn, strict=True):
      made[b].append(np.concatenate([coarse_FQ, fine_FQ], axis=1))
    yield [np.concatenate(row) for row in made]


def _draw_by_place(rule, place_B2, key, logits_BV, past_BN):
  """Draws a token per chunk by a key of its row and first frame, independent of the batch."""

  def one(place_2, logits_V, past_N):
    own = jax.random.fold_in(jax.random.fold_in(key, place_2[0]), place_2[1])
    return draw(own, logits_V[None], rule, past_N[None])[0]

  return jax.vmap(one)(place_B2, logits_BV, past_BN)

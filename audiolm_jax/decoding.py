"""Generates and scores sequences of any length, window by window, with models of a fixed crop.

A window of a conditioned model (`stages.base.Condition`) reads the condition of its first new
frame. With guidance s (classifier-free guidance, arXiv 2207.12598), the logits are
u + s (c - u), where c are those with the condition and u those without; s = 1 is no guidance, and
any other value doubles the number of rows.

To limit the number of compiled shapes, lengths are padded to quarters of the crop, and the number
of rows to a power of two (above 8, to a multiple of 8). Actual lengths and sampling rules are
traced arguments.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from audiolm_jax import checks, tokens
from audiolm_jax.errors import UserError
from audiolm_jax.nn import language_model
from audiolm_jax.sampling import OwnRule, ParallelRule, Rule, as_pytree, autoregress, decode_masked
from audiolm_jax.stages import soundstorm
from audiolm_jax.tokens import PAD

# Function (row number, first new frame of a window) -> tokens [N] of the condition. A model reads
# its first levels.
GetCondition = Callable[[int, int], np.ndarray]


def extend(
  model: language_model.LanguageModel,
  params: Any,
  key: jax.Array,
  rows: Sequence[np.ndarray],
  num_new: int | Sequence[int],
  **options: Any,
) -> list[np.ndarray]:
  """Returns rows of codes [F, Q] with sampled frames appended: all windows of `extend_by_window`.

  Args:
    model: language model of the codes.
    params: its parameters.
    key: PRNG key.
    rows: codes [F, Q] of each row.
    num_new: number of frames to add, in all rows or in each.
    **options: further arguments of `extend_by_window`.

  Raises:
    UserError: as `extend_by_window`.
  """
  return joined(rows, extend_by_window(model, params, key, rows, num_new, **options))


def joined(rows: Sequence[np.ndarray], parts: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
  """Returns rows [F, Q] with the frames of all parts appended; a part has frames for each row.

  Args:
    rows: codes of each row.
    parts: parts, each with codes [F, Q] of each row.
  """
  pieces = [[row] for row in rows]
  for part in parts:
    for row, frames_FQ in zip(pieces, part, strict=True):
      row.append(frames_FQ)
  return [np.concatenate(row) for row in pieces]


def extend_by_window(
  model: language_model.LanguageModel,
  params: Any,
  key: jax.Array,
  rows: Sequence[np.ndarray],
  num_new: int | Sequence[int],
  *,
  crop: int,
  carry: int,
  prefix: Callable[[int, int, int], np.ndarray],
  prefix_crop: int,
  rule: Rule | OwnRule,
  condition: GetCondition | None = None,
  guidance: float = 1.0,
) -> Iterator[list[np.ndarray]]:
  """Yields sampled frames that follow each row of codes, window by window.

  If past and future of a row fit the crop, a window contains all of its past, otherwise only the
  last `carry` frames. Windows of a row do not depend on the other rows of the batch.

  Args:
    model: language model of the codes.
    params: its parameters.
    key: PRNG key.
    rows: codes [F, Q] of each row.
    num_new: number of frames to append, for all rows or for each.
    crop: largest number of frames in a window.
    carry: number of past frames in a later window.
    prefix: function (row number, first frame, end frame) -> codes [P, N] that a window reads as the
      last part of the prefix, if that has a rate; called when the window is computed.
    prefix_crop: usual largest length P.
    rule: sampling rule.
    condition: see `GetCondition`, called when the window is computed; None: no condition.
    guidance: see the module's docstring.

  Yields:
    The new frames [F, Q] of each row; none of rows that are complete.

  Raises:
    UserError: if a code is out of range, or the model has no condition but one is given.
  """
  _check_guidance(guidance, condition)
  parts = model.vocabulary.parts
  conditioned = bool(parts) and parts[0].rate is None
  if condition is not None and not conditioned:
    raise UserError('a condition is given, but the model was trained without: pass none')
  rows, num_levels = list(rows), model.vocabulary.target_levels
  for row in rows:
    checks.ids('rows', row, model.vocabulary.target_size)
  remaining = np.broadcast_to(num_new, len(rows)).tolist()
  wanted = list(remaining)
  while active := [b for b, n in enumerate(remaining) if n > 0]:
    lengths = [len(rows[b]) for b in active]
    kept = [
      n if n + remaining[b] <= crop else min(n, carry) for b, n in zip(active, lengths, strict=True)
    ]
    new = [min(remaining[b], crop - k) for b, k in zip(active, kept, strict=True)]
    size, arrays = row_bucket(len(active)), []
    if conditioned:
      starts = list(zip(active, lengths, strict=True))
      arrays.append(_conditions(condition, starts, parts[0].levels, parts[0].size, size)[:, None])
    if len(parts) > conditioned:
      spans = zip(active, lengths, kept, new, strict=True)
      prefixes = [prefix(b, n - k, n + m) for b, n, k, m in spans]
      for past in prefixes:
        checks.ids('prefix', past, parts[-1].size)
      longest = bucket(max(map(len, prefixes)), prefix_crop)
      arrays.append(stack(prefixes, longest, parts[-1].levels, size))
    past = [rows[b][n - k :] for b, n, k in zip(active, lengths, kept, strict=True)]
    prompt_BFQ = stack(past, bucket(max(kept), crop), num_levels, size)
    # Increases with each window, so that each has a different key.
    done = min(wanted[b] - remaining[b] for b in active)
    drawn_BN = sample_targets(
      model,
      params,
      jax.random.fold_in(key, done),
      tuple(arrays),
      prompt_BFQ,
      max(new) * num_levels,
      as_pytree(rule),
      None if guidance == 1 else float(guidance),
      capacity=bucket(max(new), crop) * num_levels,
    )
    fresh = [row[:0] for row in rows]
    for b, m, drawn_N in zip(active, new, np.asarray(drawn_BN)):
      fresh[b] = drawn_N[: m * num_levels].reshape(m, num_levels)
      rows[b] = np.concatenate([rows[b], fresh[b]])
      remaining[b] -= m
    yield fresh


@functools.partial(jax.jit, static_argnames=('model', 'capacity'))
def sample_targets(
  model: language_model.LanguageModel,
  params: Any,
  key: jax.Array,
  prefix: language_model.Prefix,
  prompt_BFQ: Int[Array | np.ndarray, 'B F Q'],
  num_steps: int | Array,
  rule: Rule | OwnRule,
  guidance: float | Array | None = None,
  *,
  capacity: int,
) -> Int[Array, 'B C']:
  """Samples the codes that follow prefix and prompt, flattened frame by frame.

  Args:
    model: language model of the codes.
    params: its parameters.
    key: PRNG key.
    prefix: codes of each part of the prefix; PAD is padding.
    prompt_BFQ: first codes of the row; PAD is padding.
    num_steps: number of codes to sample per row; with a depth model, of whole frames.
    rule: sampling rule.
    guidance: see the module's docstring; None: off.
    capacity: number of columns C; those from `num_steps` on are -1.

  Returns:
    The sampled codes.
  """
  prompt_BFQ = jnp.asarray(prompt_BFQ)
  prompt_BN = jnp.reshape(prompt_BFQ, (len(prompt_BFQ), -1))
  if guidance is not None:
    free = language_model.without_condition(model, prefix)
    prefix = jax.tree.map(
      lambda *two: jnp.concatenate(two), language_model.parts_of(model, prefix), free
    )
    prompt_BFQ = jnp.concatenate([prompt_BFQ] * 2)
  first_B = jnp.sum(prompt_BFQ != PAD, axis=(1, 2))
  ids_BL, times_BL = tokens.left_pad(*language_model.sequence(model, prefix, prompt_BFQ))
  params = language_model.decoding_params(model, params)
  logits_BK, cache = language_model.prefill(
    model, params, ids_BL, times_BL, ids_BL.shape[1] + capacity // model.codes_per_column
  )

  def guided(step, cache, code_B, n):
    code_B = code_B if guidance is None else jnp.concatenate([code_B] * 2)
    logits_BK, cache = step(params, cache, code_B, first_B, n)
    return _guided(logits_BK, guidance), cache

  turn = [functools.partial(guided, step) for step in language_model.turn(model, prefix)]
  logits_BK = _guided(logits_BK, guidance)
  return autoregress(turn, logits_BK, cache, key, rule, jnp.asarray(num_steps), capacity, prompt_BN)


def _guided(logits, guidance: float | Array | None):
  """Returns the logits of the first half of the rows, guided away from those of the second half."""
  if guidance is None:
    return logits
  conditioned, free = jnp.split(logits, 2)
  return free + guidance * (conditioned - free)


def _conditions(
  condition: GetCondition | None,
  starts: Sequence[tuple[int, int]],
  levels: int,
  num_ids: int,
  size: int,
) -> Int[np.ndarray, 'B N']:
  """Returns the first levels of the conditions of rows at their first new frames.

  Rows without a condition, and those up to `size`, are PAD.
  """
  found_BN = np.full((size, levels), PAD, np.int32)
  for b, start in enumerate(starts if condition is not None else ()):
    found_N = condition(*start)
    checks.ids('condition', found_N, num_ids)
    if len(found_N) < levels:
      raise UserError(f'the condition has {len(found_N)} levels, the model reads {levels}')
    found_BN[b] = found_N[:levels]
  return found_BN


def _check_guidance(guidance: float, condition: GetCondition | None) -> None:
  checks.values(guidance=(guidance, checks.NOT_NEGATIVE))
  if guidance != 1 and condition is None:
    raise UserError(f'guidance={guidance} needs a condition: pass one, or leave guidance out')


def fill(
  config: soundstorm.Config,
  params: Any,
  key: jax.Array,
  semantic: Sequence[np.ndarray],
  rows: Sequence[np.ndarray],
  *,
  carry: int,
  how: ParallelRule,
  condition: GetCondition | None = None,
  guidance: float = 1.0,
) -> list[np.ndarray]:
  """Returns rows of codes, filled until they are as long as their semantic tokens.

  Args:
    config: config of SoundStorm.
    params: its parameters.
    key: PRNG key.
    semantic: frame-aligned semantic tokens [S] of each row.
    rows: known codes [F, Q] of each row.
    carry: as `fill_by_window`.
    how: rule of the decoding.
    condition: see `GetCondition`; None: no condition.
    guidance: see the module's docstring.

  Raises:
    UserError: if a token or code is out of range, or the model has no condition but one is given.
  """
  ratio = config.frames_per_semantic
  num_new = [
    ratio * len(semantic_S) - len(row) for row, semantic_S in zip(rows, semantic, strict=True)
  ]
  read = lambda b, first, stop: semantic[b][first // ratio : stop // ratio]
  parts = fill_by_window(
    config,
    params,
    key,
    rows,
    num_new,
    semantic=read,
    carry=carry,
    how=how,
    condition=condition,
    guidance=guidance,
  )
  return joined(rows, parts)


def fill_by_window(
  config: soundstorm.Config,
  params: Any,
  key: jax.Array,
  rows: Sequence[np.ndarray],
  num_new: Sequence[int],
  *,
  semantic: Callable[[int, int, int], np.ndarray],
  carry: int,
  how: ParallelRule,
  condition: GetCondition | None = None,
  guidance: float = 1.0,
) -> Iterator[list[np.ndarray]]:
  """Yields decoded frames that follow each row of codes, window by window.

  A row not longer than the crop is decoded in one window, a longer one in several.

  Args:
    config: config of SoundStorm.
    params: its parameters.
    key: PRNG key.
    rows: known codes [F, Q] of each row.
    num_new: number of frames to append to each.
    semantic: function (row number, first frame, end frame) -> frame-aligned semantic tokens [S] of
      these frames of codes; called when the window is computed.
    carry: least number of past frames in a later window; a multiple of
      `config.frames_per_semantic`.
    how: rule of the decoding.
    condition: see `GetCondition`, called when the window is computed; None: no condition.
    guidance: see the module's docstring.

  Yields:
    The new frames [F, Q] of each row; none of rows that are complete.

  Raises:
    UserError: if a token or code is out of range, or the model has no condition but one is given.
  """
  _check_guidance(guidance, condition)
  if condition is not None and config.condition is None:
    raise UserError('a condition is given, but SoundStorm was trained without: pass none')
  rows, crop, number, ratio = list(rows), config.num_frames, 0, config.frames_per_semantic
  for row in rows:
    checks.ids('rows', row, config.codebook_size)
  ends = [len(row) + count for row, count in zip(rows, num_new, strict=True)]
  while unfinished := [b for b, row in enumerate(rows) if len(row) < ends[b]]:
    firsts = [max(0, min(len(rows[b]) - carry, ends[b] - crop)) for b in unfinished]
    stops = [min(ends[b], first + crop) for b, first in zip(unfinished, firsts, strict=True)]
    spans = list(zip(unfinished, firsts, stops, strict=True))
    size = row_bucket(len(spans))
    length = bucket(max(stop - first for _, first, stop in spans) // ratio, config.num_semantic)
    read = [semantic(*span)[:, None] for span in spans]
    for semantic_S1 in read:
      checks.ids('semantic', semantic_S1, config.num_clusters)
    semantic_BS = stack(read, length, 1, size)[..., 0]
    codes_BFQ = stack(
      [rows[b][first:] for b, first, _ in spans], ratio * length, config.num_quantizers, size
    )
    condition_BN = None
    if config.condition is not None:
      starts = [(b, len(rows[b])) for b, _, _ in spans]
      condition_BN = _conditions(
        condition, starts, config.condition.levels, config.condition.size, size
      )
    filled_BFQ = np.asarray(
      fill_window(
        config,
        params,
        jax.random.fold_in(key, number),
        semantic_BS,
        codes_BFQ,
        as_pytree(how.rule),
        how.noise,
        condition_BN,
        None if guidance == 1 else float(guidance),
        iterations=how.iterations,
      )
    )
    fresh = [row[:0] for row in rows]
    for filled_FQ, (b, first, stop) in zip(filled_BFQ, spans):
      fresh[b] = filled_FQ[len(rows[b]) - first : stop - first]
      rows[b] = np.concatenate([rows[b], fresh[b]])
    yield fresh
    number += 1


@functools.partial(jax.jit, static_argnames=('config', 'iterations'))
def fill_window(
  config: soundstorm.Config,
  params: Any,
  key: jax.Array,
  semantic_BS: Int[Array | np.ndarray, 'B S'],
  codes_BFQ: Int[Array | np.ndarray, 'B F Q'],
  rule: Rule | OwnRule,
  noise: float | Array,
  condition_BN: Int[Array | np.ndarray, 'B N'] | None = None,
  guidance: float | Array | None = None,
  *,
  iterations: tuple[int, ...],
) -> Int[Array, 'B F Q']:
  """Returns the codes, with PAD replaced by decoded codes in frames that have a semantic token.

  The condition is optional, guidance is off if it is None; see the module's docstring.

  Args:
    config: config of the SoundStorm model.
    params: its parameters.
    key: PRNG key.
    semantic_BS: semantic tokens; PAD is padding.
    codes_BFQ: known codes; PAD where unknown.
    rule: sampling rule.
    noise: see `ParallelRule`.
    condition_BN: condition of each row; None: there is none.
    guidance: see the module's docstring; None: off.
    iterations: see `ParallelRule`.
  """
  semantic_BS = jnp.asarray(semantic_BS)
  valid_BF = jnp.repeat(semantic_BS != PAD, config.frames_per_semantic, axis=1)

  def logits(codes_BFQ, level):
    if guidance is None:
      return soundstorm.logits(config, params, semantic_BS, codes_BFQ, level, condition_BN)
    twice = lambda array: jnp.concatenate([array] * 2)
    conditions_BN = jnp.concatenate([condition_BN, jnp.full_like(condition_BN, PAD)])
    logits_BFK = soundstorm.logits(
      config, params, twice(semantic_BS), twice(codes_BFQ), level, conditions_BN
    )
    return _guided(logits_BFK, guidance)

  return decode_masked(
    logits, jnp.asarray(codes_BFQ), valid_BF, key, rule, noise=noise, iterations=iterations
  )


def bucket(length: int, crop: int) -> int:
  """Returns `length` rounded up to a multiple of a quarter of the crop.

  Args:
    length: number of columns.
    crop: largest number of columns in a window.
  """
  quarter = max(1, -(-crop // 4))
  return -(-length // quarter) * quarter


def row_bucket(rows: int) -> int:
  """Returns the number of rows rounded up to a power of two, or above 8 to a multiple of 8.

  Args:
    rows: number of rows.
  """
  return 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8


def stack(
  rows: Sequence[np.ndarray], length: int, width: int, size: int | None = None
) -> np.ndarray:
  """Returns rows [N, width] as an array [size, length, width], default size `len(rows)`.

  PAD fills the ends of rows, and rows beyond the last.

  Args:
    rows: codes of each row.
    length: number of columns.
    width: codes per column.
    size: number of rows of the result; None: `len(rows)`.
  """
  stacked = np.full((size or len(rows), length, width), PAD, np.int32)
  for b, row in enumerate(rows):
    stacked[b, : len(row)] = row
  return stacked


def log_likelihoods(
  model: language_model.LanguageModel,
  params: Any,
  rows: Sequence[np.ndarray],
  *,
  crop: int,
  batch_size: int = 32,
  progress: Callable[[int], object] = lambda rows: None,
) -> list[np.ndarray]:
  """Returns the log-probability of each code, in nats, without a prefix.

  In a row that fits the crop, each code is predicted from all earlier ones. In a longer row, codes
  after the first crop are predicted in windows that advance by half a crop, so from at least half a
  crop of the past.

  Args:
    model: language model of the codes.
    params: its parameters.
    rows: codes [F, Q] of each row.
    crop: largest number of frames in a window.
    batch_size: number of windows per batch.
    progress: called with the number of windows after each batch.

  Returns:
    Log-probabilities [F, Q] of each row.

  Raises:
    UserError: if a row has another shape or is empty; if a code is out of range, or PAD.
  """
  vocabulary = model.vocabulary
  for b, row in enumerate(rows):
    if row.ndim != 2 or row.shape[1] != vocabulary.target_levels or not len(row):
      raise UserError(
        f'rows[{b}] has shape {row.shape}: it must be [F, Q] with F >= 1 and '
        f'Q = {vocabulary.target_levels}'
      )
    checks.ids(f'rows[{b}]', row, vocabulary.target_size, padding=False)
  spans = []  # (row, first frame, first scored frame, end)
  for b, row in enumerate(rows):
    spans.append((b, 0, 0, min(len(row), crop)))
    while spans[-1][3] < len(row):
      done = spans[-1][3]
      end = min(len(row), done + max(1, crop // 2))
      spans.append((b, end - crop, done, end))
  spans.sort(key=lambda span: bucket(span[3] - span[1], crop))  # batches of one shape
  found = [np.zeros(row.shape, np.float32) for row in rows]
  for at in range(0, len(spans), batch_size):
    some = spans[at : at + batch_size]
    length = bucket(max(end - first for _, first, _, end in some), crop)
    codes_BFQ = stack(
      [rows[b][first:end] for b, first, _, end in some], length, rows[0].shape[1], batch_size
    )
    scores_BFQ = np.asarray(language_model.log_likelihoods(model, params, None, codes_BFQ))
    for scores_FQ, (b, first, scored, end) in zip(scores_BFQ, some):
      found[b][scored:end] = scores_FQ[scored - first : end - first]
    progress(len(some))
  return found

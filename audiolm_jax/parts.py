"""Runs functions of waveforms on clips of any length, with bounded memory and few compiled shapes.

Clips become rows of a few lengths:

- a clip up to the longest length is one row, padded with zeros to the next length;
- a longer clip is cut into overlapping rows of the longest length, and each frame is taken from the
  row in which at least `context` frames, or an end of the clip, are on both of its sides.

The rows of a batch are independent of one another. A function that looks at no more than `context`
frames around a frame gives the values of the whole clip, except for rounding.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from audiolm_jax.errors import UserError

# Clips that may wait for a clip before them, in batches: then incomplete batches run, too.
_MOST_WAITING = 4


class Part(NamedTuple):
  """Places one row in its clip; all fields count frames.

  Fields:
    start: first frame of the row.
    length: frames of the row, with padding.
    first: first frame that is taken from this row.
    end: end of the frames that are taken from this row.
  """

  start: int
  length: int
  first: int
  end: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
  """Defines how clips are cut into rows.

  Fields:
    frame_length: samples per frame.
    lengths: possible lengths of a row in frames, ascending.
    context: frames on both sides of a cut that its neighbours share.
    silence: samples of silence that follow each clip, for functions that look ahead.

  Raises:
    UserError: if the longest length leaves nothing between two contexts.
  """

  frame_length: int
  lengths: tuple[int, ...]
  context: int
  silence: int = 0

  def __post_init__(self):
    if self.lengths[-1] <= 2 * self.context:
      raise UserError(
        f'rows of {self.lengths[-1]} frames leave nothing between two contexts of {self.context}: '
        'use longer rows, or a model that looks at fewer frames'
      )

  def parts(self, num_samples: int) -> list[Part]:
    """Returns the rows of a clip, in order; together they take each of its frames once."""
    frames = -(-num_samples // self.frame_length)
    needed = -(-(num_samples + self.silence) // self.frame_length)
    longest, step = self.lengths[-1], self.lengths[-1] - 2 * self.context
    if needed <= longest:
      length = next(length for length in self.lengths if needed <= length)
      return [Part(0, length, 0, frames)]
    # The last row ends with the clip, so that it needs no padding.
    starts = [*range(0, needed - longest, step), needed - longest]
    firsts = [0, *(min(start + self.context, frames) for start in starts[1:])]
    ends = [*firsts[1:], frames]
    return [Part(start, longest, *taken) for start, *taken in zip(starts, firsts, ends)]


@dataclasses.dataclass
class _Clip:
  """Collects the results of the rows of one clip."""

  item: Any
  pieces: list[list[np.ndarray] | None]
  num_left: int


def mapped(
  function: Callable[[Float[np.ndarray, 'B T']], Sequence[Any]],
  clips: Iterable[tuple[Any, Float[np.ndarray, 'T']]],
  cut: Cut,
  batch_size: int,
  rates: Sequence[int] = (1,),
) -> Iterator[tuple[Any, list[np.ndarray]]]:
  """Yields the item of each clip, in order, with what a function makes of its waveform.

  The next clips are read, and results are consumed, while a device computes a batch.

  Args:
    function: wave_BT -> arrays [B, rate * frames, ...]; it may return before they are computed.
    clips: pairs of any item and a waveform.
    cut: defines the rows.
    batch_size: rows of wave_BT; rows without a clip are zeros.
    rates: rows of each array per frame of `cut`.
  """
  waiting: collections.deque[_Clip] = collections.deque()
  rows = {length: [] for length in cut.lengths}
  running = collections.deque()

  def launch(length: int):
    batch, rows[length] = rows[length], []
    wave_BT = np.zeros((batch_size, length * cut.frame_length), np.float32)
    for wave_T, (*_, row_T) in zip(wave_BT, batch):
      wave_T[: len(row_T)] = row_T
    running.append((batch, function(wave_BT)))

  def collect(most_running: int):
    while len(running) > most_running:
      batch, results = running.popleft()
      arrays = [np.asarray(result) for result in results]
      for row, (clip, index, part, _) in enumerate(batch):
        first, end = part.first - part.start, part.end - part.start
        clip.pieces[index] = [a[row, r * first : r * end] for a, r in zip(arrays, rates)]
        clip.num_left -= 1

  def finished():
    while waiting and not waiting[0].num_left:
      clip = waiting.popleft()
      yield clip.item, [np.concatenate(pieces) for pieces in zip(*clip.pieces)]

  def launch_all():
    for length in cut.lengths:
      if rows[length]:
        launch(length)
        collect(1)

  for item, wave_T in clips:
    placed = cut.parts(len(wave_T))
    clip = _Clip(item, [None] * len(placed), len(placed))
    waiting.append(clip)
    for index, part in enumerate(placed):
      start = part.start * cut.frame_length
      row_T = wave_T[start : start + part.length * cut.frame_length]
      rows[part.length].append((clip, index, part, row_T))
      if len(rows[part.length]) == batch_size:
        launch(part.length)
        collect(1)
    if len(waiting) > _MOST_WAITING * batch_size:
      launch_all()
    yield from finished()
  launch_all()
  collect(0)
  yield from finished()

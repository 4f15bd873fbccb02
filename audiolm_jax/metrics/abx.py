"""Computes phonetic ABX error rates of features or tokens.

A, B and X are segments of features or tokens: phones in the same context (triphones). A and X are
the same phone, B is another. The distance of two segments is the cost of their cheapest alignment
(dynamic time warping) divided by the length of its path. The error of a comparison is the share of
triplets with d(X, B) < d(X, A); ties count half. Within speakers, A, B and X come from one speaker
and X differs from A. Across speakers, A and B come from one speaker and X from another.

Definitions, averages and random draws follow ZeroSpeech 2021 and Libri-Light (Schatz et al., 2013;
Nguyen et al., 2020, arXiv 2011.11588; Kahn et al., 2020): errors are averaged over contexts
(across: also over speakers of X), then over speakers, then over ordered pairs of phones. Groups
with more than `max_group` segments, or more than `max_speakers` other speakers, are subsampled with
their generator in their order.
"""

import functools
import math
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from audiolm_jax.errors import UserError

SPEAKERS = ('within', 'across')
DISTANCES = ('angular', 'cosine', 'identity')
_BLOCK = 1 << 20  # number of alignment costs held at a time
_BATCH_FRAMES = 1 << 15  # number of frames gathered on each side of a batch of alignments


class Score(NamedTuple):
  """Holds an ABX error and the counts behind it.

  Fields:
    error: in [0, 1]; chance is 0.5.
    comparisons: number of (speaker, phone A, phone B) groups.
    alignments: number of distinct alignments computed.
    phone_pairs: number of ordered phone pairs that `error` averages.
  """

  error: float
  comparisons: int
  alignments: int
  phone_pairs: int


class _Comparison(NamedTuple):
  """Holds the segment indices of one comparison.

  With `symmetric`, X is the same group as A, and no segment is compared with itself.
  """

  key: tuple[int, int, int]  # speaker, phone of A, phone of B
  a: np.ndarray
  b: np.ndarray
  x: np.ndarray
  symmetric: bool


def cut(features_FD: np.ndarray, onset: float, offset: float, rate: float) -> np.ndarray:
  """Returns the frames [N, D] between two times in seconds; the result may be empty.

  A frame belongs to a segment when its centre does, as in Libri-Light: from ceil(rate * onset -
  1/2) up to, excluding, floor(rate * offset - 1/2).

  Args:
    features_FD: features at `rate` frames per second.
    onset: start in seconds.
    offset: end in seconds.
    rate: frames per second.
  """
  return features_FD[
    max(0, math.ceil(rate * onset - 0.5)) : max(0, math.floor(rate * offset - 0.5))
  ]


def score(
  segments: Sequence[np.ndarray],
  phones: Sequence[Hashable],
  contexts: Sequence[Hashable],
  speakers: Sequence[Hashable],
  *,
  speaker: str,
  distance: str = 'angular',
  max_group: int = 10,
  max_speakers: int = 5,
  seed: int = 3459,
  progress: Callable[[int], object] = lambda alignments: None,
) -> Score:
  """Returns the ABX error of labelled segments.

  Args:
    segments: features or tokens [F, D] of each segment; empty segments are ignored.
    phones: the phone of each segment.
    contexts: the context (neighbouring phones) of each segment.
    speakers: the speaker of each segment.
    speaker: 'within' or 'across'.
    distance: distance of two frames. 'angular': angle / pi (named cosine in ZeroSpeech; an all-zero
      frame has distance 1 from every other). 'cosine': 1 - cosine. 'identity': share of columns
      that differ, for tokens.
    max_group: largest number of segments in a group.
    max_speakers: largest number of other speakers X is drawn from.
    seed: seed of the draws.
    progress: called with the number of alignments after each batch.

  Raises:
    UserError: if the lengths differ, a name is unknown, tokens are used with a distance other than
      'identity', features are not finite, or no comparison is possible.
  """
  if speaker not in SPEAKERS or distance not in DISTANCES:
    raise UserError(
      f'speaker={speaker!r}, distance={distance!r}: choose from {SPEAKERS} and {DISTANCES}'
    )
  counts = [len(segments), len(phones), len(contexts), len(speakers)]
  if len(set(counts)) > 1:
    raise UserError(
      f'segments, phones, contexts and speakers have lengths {counts}: give one of each per segment'
    )
  _check_frames(segments, distance)
  labels_N3 = np.stack([_numbered(names) for names in (contexts, speakers, phones)], axis=1)
  lengths_N = np.array([len(segment) for segment in segments], np.int64)
  groups = _groups(labels_N3, np.flatnonzero(lengths_N))
  comparisons = (
    _within(groups, max_group, seed)
    if speaker == 'within'
    else _across(groups, max_group, max_speakers, seed)
  )
  costs = _Alignments(segments, lengths_N, distance, progress)
  keys, errors, alignments = [], [], 0
  for block in _blocks(comparisons):
    found, count = _errors(block, costs, len(segments))
    keys += [comparison.key for comparison in block]
    errors += found
    alignments += count
  if not keys:
    raise UserError(
      f'{np.sum(lengths_N > 0)} stretches, and no {speaker}-speaker comparison among them: there '
      'must be two phones in one context of one speaker, and one of them again by '
      f'{"the same" if speaker == "within" else "another"} speaker'
    )
  by_speaker, over_contexts = _grouped_mean(np.array(keys), np.array(errors))
  by_pair, over_speakers = _grouped_mean(by_speaker[:, 1:], over_contexts)
  return Score(float(over_speakers.mean()), len(keys), alignments, len(by_pair))


def _check_frames(segments: Sequence[np.ndarray], distance: str):
  for number, segment in enumerate(segments):
    segment = np.asarray(segment)
    if distance != 'identity' and np.issubdtype(segment.dtype, np.integer):
      raise UserError(
        f'segments[{number}] is of type {segment.dtype} and distance={distance!r}: tokens have no '
        'angle, take '
        "distance='identity'; features are floats"
      )
    if not np.isfinite(segment).all():
      raise UserError(f'segments[{number}] contains NaN or infinity: check the model that made it')


def _numbered(names: Sequence[Hashable]) -> np.ndarray:
  """Returns numbers in the order of first appearance: ZeroSpeech's draws depend on that order."""
  known = {}
  return np.array([known.setdefault(name, len(known)) for name in names], np.int64)


def _groups(labels_N3: np.ndarray, kept: np.ndarray) -> dict[int, dict[int, dict[int, np.ndarray]]]:
  """Returns segment indices as groups[context][speaker][phone], each level in ascending order."""
  order = kept[np.lexsort(labels_N3[kept].T[::-1])]
  changes = np.flatnonzero(np.any(np.diff(labels_N3[order], axis=0), axis=1)) + 1
  groups = {}
  for members in np.split(order, changes) if len(order) else ():
    context, speaker, phone = map(int, labels_N3[members[0]])
    groups.setdefault(context, {}).setdefault(speaker, {})[phone] = members
  return groups


def _within(groups, max_group: int, seed: int) -> Iterator[_Comparison]:
  generator = random.Random(seed)
  for by_speaker in groups.values():
    for speaker, by_phone in by_speaker.items():
      for phone_a, a in by_phone.items():
        if len(a) < 2:
          continue
        for phone_b, b in by_phone.items():
          if phone_b != phone_a:
            drawn_b, drawn_a = _draw(generator, b, max_group), _draw(generator, a, max_group)
            yield _Comparison((speaker, phone_a, phone_b), drawn_a, drawn_b, drawn_a, True)


def _across(groups, max_group: int, max_speakers: int, seed: int) -> Iterator[_Comparison]:
  generator = random.Random(seed)
  for by_speaker in groups.values():
    for speaker, by_phone in by_speaker.items():
      if len(by_phone) < 2:
        continue
      for phone_a, a in by_phone.items():
        others = [
          own[phone_a] for other, own in by_speaker.items() if other != speaker and phone_a in own
        ]
        for x in generator.sample(others, max_speakers) if len(others) > max_speakers else others:
          for phone_b, b in by_phone.items():
            if phone_b != phone_a:
              drawn = [_draw(generator, group, max_group) for group in (a, b, x)]
              yield _Comparison((speaker, phone_a, phone_b), *drawn, False)


def _draw(generator: random.Random, group: np.ndarray, size: int) -> np.ndarray:
  return np.array(generator.sample(group.tolist(), size)) if len(group) > size else group


def _blocks(comparisons: Iterator[_Comparison]) -> Iterator[list[_Comparison]]:
  """Yields lists of consecutive comparisons with about _BLOCK alignments each.

  Consecutive comparisons share most of their alignments.
  """
  block, count = [], 0
  for comparison in comparisons:
    block.append(comparison)
    count += len(comparison.x) * (len(comparison.a) + len(comparison.b))
    if count >= _BLOCK:
      yield block
      block, count = [], 0
  if block:
    yield block


def _errors(block: list[_Comparison], costs: '_Alignments', size: int) -> tuple[list[float], int]:
  """Returns the error of each comparison and the number of distinct alignments."""
  wanted = []  # pairs (row, column) as one number row * size + column
  for comparison in block:
    rows, columns = comparison.x[:, None], comparison.a[None, :]
    # One alignment serves both directions; the segment that comes first is the row.
    if comparison.symmetric:
      place = np.arange(len(comparison.a))
      first = place[:, None] < place[None, :]
      rows, columns = np.where(first, rows, columns), np.where(first, columns, rows)
    wanted += [
      (rows * size + columns).ravel(),
      (comparison.x[:, None] * size + comparison.b[None, :]).ravel(),
    ]
  unique, inverse = np.unique(np.concatenate(wanted), return_inverse=True)
  cost_P = costs(unique // size, unique % size)[inverse]
  errors, at = [], 0
  for comparison in block:
    num_x, num_a, num_b = len(comparison.x), len(comparison.a), len(comparison.b)
    to_a_XA = cost_P[at : at + num_x * num_a].reshape(num_x, num_a)
    to_b_XB = cost_P[at + num_x * num_a :][: num_x * num_b].reshape(num_x, num_b)
    at += num_x * (num_a + num_b)
    worse_XAB = (to_b_XB[:, None, :] < to_a_XA[:, :, None]) + 0.5 * (
      to_b_XB[:, None, :] == to_a_XA[:, :, None]
    )
    if comparison.symmetric:
      worse_XAB[np.arange(num_a), np.arange(num_a)] = 0
      errors.append(float(worse_XAB.sum() / (num_a * (num_a - 1) * num_b)))
    else:
      errors.append(float(worse_XAB.mean()))
  return errors, len(unique)


def _grouped_mean(keys_NK: np.ndarray, values_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the unique keys and the mean value of each."""
  unique_UK, inverse_N = np.unique(keys_NK, axis=0, return_inverse=True)
  inverse_N = inverse_N.reshape(-1)
  return unique_UK, np.bincount(inverse_N, values_N) / np.bincount(inverse_N)


class _Alignments:
  """Computes alignment costs of segment pairs in batches of few compiled shapes.

  The frames stay on the device.
  """

  def __init__(self, segments, lengths_N: np.ndarray, distance: str, progress):
    frames_FD = np.concatenate([np.asarray(s) for s in segments])
    frames_FD = frames_FD.reshape(len(frames_FD), -1)
    self._frames_FD = jnp.asarray(frames_FD if distance == 'identity' else _normalized(frames_FD))
    self._starts_N = np.cumsum(lengths_N) - lengths_N
    self._lengths_N, self._distance, self._progress = lengths_N, distance, progress

  def __call__(self, rows_P: np.ndarray, columns_P: np.ndarray) -> np.ndarray:
    buckets_P = _bucket(np.maximum(self._lengths_N[rows_P], self._lengths_N[columns_P]))
    costs_P = np.empty(len(rows_P), np.float32)
    for bucket in np.unique(buckets_P):
      chosen = np.flatnonzero(buckets_P == bucket)
      # A power of two for every width limits the number of compilations.
      batch = 1 << int(np.log2(max(64, _BATCH_FRAMES // bucket)))
      pending = []
      for at in range(0, len(chosen), batch):
        some = chosen[at : at + batch]
        padded = np.pad(some, (0, batch - len(some)), mode='edge')
        row_P, column_P = rows_P[padded], columns_P[padded]
        starts = self._starts_N[row_P], self._starts_N[column_P]
        distance_PNM = _gathered_distances(self._frames_FD, *starts, int(bucket), self._distance)
        pending.append(
          (some, _jitted_cost(distance_PNM, self._lengths_N[row_P], self._lengths_N[column_P]))
        )
        if len(pending) > 1:  # prepare the next batch while the device computes this one
          self._store(costs_P, *pending.pop(0))
      for done in pending:
        self._store(costs_P, *done)
    return costs_P

  def _store(self, costs_P, some, result):
    costs_P[some] = np.asarray(result)[: len(some)]
    self._progress(len(some))


def _bucket(lengths_P: np.ndarray) -> np.ndarray:
  """Returns lengths rounded up to a multiple of 8, beyond 32 to a power of two."""
  power = 1 << np.ceil(np.log2(np.maximum(lengths_P, 1))).astype(np.int64)
  return np.where(lengths_P <= 32, -(-lengths_P // 8) * 8, power)


def _normalized(frames_FD: np.ndarray) -> np.ndarray:
  """Returns frames scaled to unit length, with an extra column that marks all-zero frames by 1."""
  frames_FD = np.asarray(frames_FD, np.float32)
  norm_F1 = np.sqrt(np.sum(np.square(frames_FD), axis=1, keepdims=True))
  return np.concatenate(
    [frames_FD / np.where(norm_F1 > 0, norm_F1, 1), norm_F1 == 0], axis=1, dtype=np.float32
  )


@functools.partial(jax.jit, static_argnames=('length', 'distance'))
def _gathered_distances(frames_FD, start_P, other_start_P, length: int, distance: str):
  gather = lambda start_P: frames_FD[
    jnp.minimum(start_P[:, None] + jnp.arange(length), len(frames_FD) - 1)
  ]
  return frame_distances(gather(start_P), gather(other_start_P), distance)


def frame_distances(
  one_PND: Float[Array, 'P N D'] | Int[Array, 'P N D'],
  other_PMD: Float[Array, 'P M D'] | Int[Array, 'P M D'],
  distance: str,
) -> Float[Array, 'P N M']:
  """Returns the distance of each frame of one segment to each frame of the other.

  For 'angular' and 'cosine' the frames have unit length, or are zero except for a last column of 1.

  Args:
    one_PND: features, or tokens, of the first segment of each pair.
    other_PMD: those of the other segment.
    distance: name of the distance, as in `measure`.
  """
  if distance == 'identity':
    return jnp.mean(one_PND[:, :, None, :] != other_PMD[:, None, :, :], axis=-1, dtype=jnp.float32)
  cosine_PNM = jnp.einsum('pnd,pmd->pnm', one_PND, other_PMD, precision='highest')
  if distance == 'cosine':
    return 1 - cosine_PNM
  lonely = (one_PND[:, :, None, -1] == 1) ^ (other_PMD[:, None, :, -1] == 1)
  return jnp.where(lonely, 1, jnp.arccos(jnp.clip(cosine_PNM, -1, 1)) / jnp.pi)


def alignment_cost(
  distance_PNM: Float[Array, 'P N M'], rows_P: Int[Array, 'P'], columns_P: Int[Array, 'P']
) -> Float[Array, 'P']:
  """Returns the cost of the cheapest alignment of each pair, divided by its path length.

  The first `rows_P[p]` rows and `columns_P[p]` columns of matrix p count. A step moves down, right
  or both. Among equal costs, a path ending with a diagonal step wins, then one ending with a step
  right.

  Args:
    distance_PNM: distances of frames.
    rows_P: number of frames of the first segment of each pair.
    columns_P: number of frames of the other segment.
  """
  _, num_rows, num_columns = distance_PNM.shape
  width = num_rows + num_columns - 1
  # Skew the matrix so that an anti-diagonal becomes a column: cell (i, j) moves to (i, i + j).
  padded = jnp.pad(distance_PNM, ((0, 0), (0, 0), (0, num_rows)), constant_values=jnp.inf)
  skewed_PNK = padded.reshape(len(padded), -1)[:, : num_rows * width].reshape(-1, num_rows, width)
  diagonals_KNP = jnp.transpose(skewed_PNK, (2, 1, 0))
  row_N1 = jnp.arange(num_rows)[:, None]
  down = lambda x_NP, fill: jnp.concatenate([jnp.full_like(x_NP[:1], fill), x_NP[:-1]])

  def advance(carry, inputs):
    # The carry holds the last diagonal and the one before it.
    (cost_NP, path_NP), (before_NP, path_before_NP), result_P = carry
    distances_NP, k = inputs
    up_NP, diagonal_NP = down(cost_NP, jnp.inf), down(before_NP, jnp.inf)
    straight_NP = (diagonal_NP <= cost_NP) & (diagonal_NP <= up_NP)
    right_NP = cost_NP <= up_NP
    best_NP = jnp.minimum(jnp.minimum(up_NP, cost_NP), diagonal_NP)
    path = (
      jnp.where(
        straight_NP, down(path_before_NP, 0), jnp.where(right_NP, path_NP, down(path_NP, 0))
      )
      + 1
    )
    first = (k == 0) & (row_N1 == 0)
    cost, path = distances_NP + jnp.where(first, 0, best_NP), jnp.where(first, 1, path)
    ends_NP = (row_N1 == rows_P - 1) & (k == rows_P + columns_P - 2)
    result_P = result_P + jnp.sum(jnp.where(ends_NP, cost / path, 0), axis=0)
    return ((cost, path), (cost_NP, path_NP), result_P), None

  empty = jnp.full(diagonals_KNP.shape[1:], jnp.inf), jnp.zeros(diagonals_KNP.shape[1:], jnp.int32)
  initial = (empty, empty, jnp.zeros(len(distance_PNM)))
  return jax.lax.scan(advance, initial, (diagonals_KNP, jnp.arange(width)))[0][2]


# Jitted apart from the distances, because it does not depend on the frame width.
_jitted_cost = jax.jit(alignment_cost)

"""Turns a source of examples into batches: shuffled, cropped, split over processes, resumable.

A *source* has `len(source)` and `source[i]`, a dict of arrays, or None if example i cannot be read.
A stage's entries `Feature` define the contents of a batch; this module depends on no stage.

A source may also have `source.crop(i, choose)`, which returns `source[i]` with
`waveform[first:stop]` only, where `first, stop = choose(len(waveform))`. It is used if the waveform
is the only time series of a batch; else the whole example is read.

- Order: each epoch is a new permutation of the source. Each example gives one crop per epoch,
  whatever its length; to weight long recordings, a source divides them into several examples.
- Crop: all features start at one time, drawn from the finest grid on which their indices are whole
  (40 ms for 25 Hz).
- Processes: the global batch at a step does not depend on the number of processes; each process
  reads its own rows.
- Position: the number of batches returned; a run may resume on another number of processes.
- Bad examples: replaced by the next readable example, so that processes stay aligned.
"""

import collections
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from fractions import Fraction
from typing import Any

import grain
import numpy as np
from absl import flags

from audiolm_jax import checks
from audiolm_jax.errors import UserError
from audiolm_jax.stages.base import Feature

PAD = -1  # as tokens.PAD
_MOST_BAD_IN_A_ROW = 100
NUM_THREADS = 4  # that read ahead
_MOST_AHEAD = 16  # examples that `read_ahead` holds


class Batches:
  """Iterates over this process's rows of batches; `batches` makes it.

  `get_state` returns a small dict for JSON, and `set_state` resumes from it exactly.
  """

  def __init__(
    self, dataset: grain.MapDataset, identity: dict[str, int], num_threads: int, num_workers: int
  ):
    self._dataset = dataset
    self._identity = identity
    self._num_threads = num_threads
    self._num_workers = num_workers
    self._step = 0
    self._iterator = None

  def __iter__(self) -> 'Batches':
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._iterator is None:
      # Slice instead of using the iterator's state, which depends on the numbers of threads and
      # workers.
      options = grain.ReadOptions(
        num_threads=self._num_threads, prefetch_buffer_size=max(2, 2 * self._num_threads)
      )
      dataset = self._dataset[self._step :].to_iter_dataset(options)
      if self._num_workers:
        if not flags.FLAGS.is_parsed():
          # Grain reads absl flags before starting workers; notebooks do not parse flags.
          flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._num_workers))
      self._iterator = iter(dataset)
    batch = next(self._iterator)
    self._step += 1
    return batch

  def get_state(self) -> dict[str, int]:
    """Returns the position, and the seed, batch size and number of examples it refers to."""
    return {'step': self._step, **self._identity}

  def set_state(self, state: Mapping[str, int]):
    """Resumes after `state['step']` batches.

    Args:
      state: from `get_state`.

    Raises:
      UserError: if the state has another seed, global batch size or number of examples.
    """
    for name, value in self._identity.items():
      if state.get(name) != value:
        raise UserError(
          f'the saved input position has {name}={state.get(name)}, this run has {value}, so it '
          'would get other batches: use the same settings, or start from step 0'
        )
    if self._iterator is not None and hasattr(self._iterator, 'close'):
      self._iterator.close()
    self._step, self._iterator = state['step'], None


def batches(
  source: Any,
  features: Mapping[str, Feature],
  *,
  batch_size: int,
  seed: int,
  num_epochs: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int | None = None,
  num_workers: int = 0,
) -> Batches:
  """Returns an iterator of `{name: array [batch_size / process_count, *features[name].shape]}`.

  The rows of processes 0, 1, ... form the global batch, as `jax.make_array_from_process_local_data`
  expects. Rows of an incomplete batch at the end of `num_epochs` are dropped.

  Args:
    source: random access source.
    features: contents of a batch, by name.
    batch_size: global batch size.
    seed: seed of order and crops.
    num_epochs: number of epochs; None is endless.
    process_index: index of this process.
    process_count: number of processes.
    num_threads: number of threads that read ahead, each a whole batch; None: `source.num_threads`,
      or NUM_THREADS if the source has none.
    num_workers: number of worker processes; if not 0, the source has to be picklable.

  Raises:
    UserError: if the batch size cannot be divided among processes or exceeds a finite source, or
      the first readable example lacks a feature.
  """
  if num_threads is None:
    num_threads = getattr(source, 'num_threads', NUM_THREADS)
  checks.values(
    batch_size=(batch_size, checks.WHOLE),
    seed=(seed, checks.SEED),
    num_epochs=(num_epochs, checks.optional(checks.WHOLE)),
    num_threads=(num_threads, checks.WHOLE),
    num_workers=(num_workers, checks.whole(0)),
    process_count=(process_count, checks.WHOLE),
  )
  if batch_size % process_count:
    raise UserError(
      f'batch_size={batch_size} must be a multiple of process_count={process_count}, because it is '
      'global'
    )
  if not 0 <= process_index < process_count:
    raise UserError(
      f'process_index={process_index} must be from 0 to process_count - 1 = {process_count - 1}'
    )
  if not len(source):
    raise UserError('the source has no examples')
  if num_epochs is not None and num_epochs * len(source) < batch_size:
    raise UserError(
      f'{num_epochs} epochs of {len(source)} examples do not fill a batch of {batch_size}: lower '
      'batch_size'
    )
  _crop_of(source, 0, features)  # raises for missing features here instead of in a thread
  dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(num_epochs)
  dataset = dataset.random_map(lambda i, random: _crop_of(source, i, features, random))
  if num_epochs is not None:
    dataset = dataset[: num_epochs * len(source) // batch_size * batch_size]
  dataset = dataset.batch(batch_size // process_count, drop_remainder=True)[
    process_index::process_count
  ]
  identity = {'seed': seed, 'batch_size': batch_size, 'num_examples': len(source)}
  return Batches(dataset, identity, num_threads, num_workers)


def evaluation_batches(
  source: Any,
  features: Mapping[str, Feature],
  *,
  batch_size: int,
  num_batches: int,
  seed: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> list[dict[str, np.ndarray]]:
  """Returns `num_batches` batches, which are the same on each call; short sources are repeated.

  Args:
    source: examples by index.
    features: what the stage reads, `stage.batch`.
    batch_size: global number of examples per batch.
    num_batches: number of batches.
    seed: seed of the order and of the crops.
    process_index: number of this process.
    process_count: number of processes, each of which gets its rows of every batch.

  Raises:
    UserError: as `batches`.
  """
  checks.values(num_batches=(num_batches, checks.WHOLE))
  endless = batches(
    source,
    features,
    batch_size=batch_size,
    seed=seed,
    process_index=process_index,
    process_count=process_count,
  )
  return [next(endless) for _ in range(num_batches)]


def crop(
  example: Mapping[str, Any],
  features: Mapping[str, Feature],
  random: np.random.Generator | None = None,
) -> dict[str, np.ndarray]:
  """Returns the features of an example, cropped at the same start time (0 s if `random` is None).

  An example shorter than the crop starts at 0 s and is padded: floats with 0, integers with -1.
  Lengths of features may differ by a frame; no feature is padded if all are long enough. Trailing
  axes are truncated.

  Args:
    example: arrays by name; a superset of `features`.
    features: what to return.
    random: draws the start time; None starts at 0 s.

  Raises:
    UserError: if a feature is missing, has the wrong shape, or contains illegal ids.
  """
  for name in features:
    if name not in example:
      raise UserError(f'the stage needs {name!r}; the source has {sorted(example)}')
  arrays = {name: np.asarray(example[name]) for name in features}
  for name, feature in features.items():
    _check_shape(name, arrays[name].shape, feature)
  grid = grid_rate([feature.rate for feature in features.values() if feature.rate is not None])
  starts = [  # grid points followed by a whole crop
    math.floor((len(arrays[name]) - feature.shape[0]) / (Fraction(feature.rate) / grid))
    for name, feature in features.items()
    if feature.rate is not None
  ]
  start = _draw(min(starts, default=0), random)
  cut = {name: _cut(arrays[name], feature, start, grid) for name, feature in features.items()}
  for name, feature in features.items():
    if feature.num_ids is not None:
      checks.ids(repr(name), cut[name], feature.num_ids)
  return cut


def _draw(last: int, random: np.random.Generator | None) -> int:
  return int(random.integers(max(0, last) + 1)) if random is not None else 0


def grid_rate(rates: Iterable[float | int]) -> Fraction:
  """Returns the rate in Hz of the finest grid of times that are whole frames at all rates.

  It is their greatest common divisor, as rational numbers.

  Args:
    rates: rates in Hz.
  """
  fractions = [Fraction(rate) for rate in rates]
  denominator = math.lcm(*(fraction.denominator for fraction in fractions))
  return Fraction(
    math.gcd(*(int(fraction * denominator) for fraction in fractions)) or 1, denominator
  )


def read_ahead(source: Any, indices: Iterable[int]) -> Iterator[Mapping[str, Any] | None]:
  """Yields source[index] for each index, in order, while threads read the next examples.

  Args:
    source: examples by index.
    indices: which ones, in which order.
  """
  with futures.ThreadPoolExecutor(NUM_THREADS, 'audiolm read') as pool:
    ahead: collections.deque[futures.Future] = collections.deque()
    try:
      for index in indices:
        ahead.append(pool.submit(source.__getitem__, index))
        if len(ahead) == _MOST_AHEAD:
          yield ahead.popleft().result()
      while ahead:
        yield ahead.popleft().result()
    finally:
      for each in ahead:
        each.cancel()


def _check_shape(name: str, shape: tuple[int, ...], feature: Feature):
  if feature.rate is None:
    fits = shape == tuple(feature.shape)
  else:
    fits = len(shape) == len(feature.shape) and all(
      has >= wanted for has, wanted in zip(shape[1:], feature.shape[1:], strict=True)
    )
  if not fits:
    raise UserError(
      f'{name!r} has shape {shape} in the source; the stage needs {tuple(feature.shape)}'
    )


def _cut(array: np.ndarray, feature: Feature, start: int, grid: Fraction) -> np.ndarray:
  if feature.rate is None:
    return array.astype(feature.dtype)
  first = int(start * Fraction(feature.rate) / grid)
  trailing = tuple(slice(size) for size in feature.shape[1:])
  part = array[(slice(first, first + feature.shape[0]), *trailing)].astype(feature.dtype)
  missing = feature.shape[0] - len(part)
  padding = PAD if np.issubdtype(part.dtype, np.integer) else 0
  return np.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1), constant_values=padding)


def _crop_of(
  source: Any, i: int, features: Mapping[str, Feature], random: np.random.Generator | None = None
) -> dict[str, np.ndarray]:
  """Returns the crop of example i; decodes only the crop if possible, with the same result."""
  timed = [name for name, feature in features.items() if feature.rate is not None]
  if timed != ['waveform'] or not hasattr(source, 'crop'):
    return crop(_read(source.__getitem__, len(source), i), features, random)
  wanted = features['waveform'].shape[0]

  def choose(length: int) -> tuple[int, int]:
    # Copy the generator, so that the start is its first draw even if another example replaces a
    # damaged one.
    start = _draw(length - wanted, copy.deepcopy(random))  # the grid of one rate is that rate
    return start, min(length, start + wanted)

  return crop(_read(lambda at: source.crop(at, choose), len(source), i), features)


def _read(
  read: Callable[[int], Mapping[str, Any] | None], num_examples: int, i: int
) -> Mapping[str, Any]:
  attempts = min(num_examples, _MOST_BAD_IN_A_ROW)
  for offset in range(attempts):
    example = read((i + offset) % num_examples)
    if example is not None:
      return example
  raise UserError(
    f'{attempts} examples in a row, from example {i}, could not be read: see the list of '
    'unreadable examples'
  )

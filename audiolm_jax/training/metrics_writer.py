"""Writes metrics as JSON lines and TensorBoard events; failed writes never stop training."""

import json
import os
import time
import warnings
from collections.abc import Mapping
from typing import SupportsFloat

import numpy as np
from jaxtyping import Array, Float

from audiolm_jax import storage
from audiolm_jax.storage import growing, lines

FILE = 'metrics.jsonl'


class MetricsWriter:
  """Appends metrics to `directory`/metrics.jsonl, and to event files in `directory`/tensorboard.

  A line is {'step': ..., 'time': seconds since the epoch, name: value, ...}. A resumed run appends
  the steps after the restored checkpoint again; `read` takes the last value of each name at each
  step. The first error of a writer is reported as a warning and ends its output. In a bucket,
  metrics.jsonl is a folder (storage/lines.py).
  """

  def __init__(self, directory: str | os.PathLike, *, tensorboard: bool = True):
    self._path = storage.path(directory) / FILE
    self._lines = self._events = None
    self._lines = self._try(lambda: lines.opened(self._path))
    if tensorboard:
      self._events = self._try(self._open_events)

  def _open_events(self):
    import tensorboardX  # needed for training only
    from tensorboardX import record_writer

    record_writer.register_writer_factory('gs', growing.EventFiles())
    return tensorboardX.SummaryWriter(str(self._path.parent / 'tensorboard'))

  def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
    """Writes one line of numbers; NaN and Infinity are written as Python's json module does."""
    values = {name: float(value) for name, value in values.items()}
    if self._lines is not None:
      self._try(
        lambda: self._write_line({'step': int(step), 'time': time.time(), **values}), '_lines'
      )
    for name, value in values.items():
      self._event(lambda: self._events.add_scalar(name, value, step))

  def audio(
    self, step: int, name: str, wave_T: Float[Array | np.ndarray, 'T'], sample_rate: int
  ) -> None:
    """Writes a waveform in [-1, 1] to TensorBoard."""
    samples_by_channels = np.asarray(wave_T)[:, None]
    self._event(
      lambda: self._events.add_audio(name, samples_by_channels, step, sample_rate=sample_rate)
    )

  def image(
    self, step: int, name: str, image_HWC: Float[Array | np.ndarray, 'height width channels']
  ) -> None:
    """Writes an image with values in [0, 1] and 1 or 3 channels to TensorBoard."""
    self._event(
      lambda: self._events.add_image(name, np.asarray(image_HWC), step, dataformats='HWC')
    )

  def last_step(self) -> int:
    """Returns the largest step in the file; 0 if there is none."""
    try:
      return max(read(self._path), default=0)
    except FileNotFoundError:
      return 0

  def flush(self) -> None:
    """Makes sure that no line is lost if this process is killed."""
    if self._lines is not None:
      self._try(self._lines.flush, '_lines')

  def close(self) -> None:
    for file in (self._lines, self._events):
      if file is not None:
        self._try(file.close)
    self._lines = self._events = None

  def _write_line(self, line):
    self._lines.write(json.dumps(line))

  def _event(self, write):
    if self._events is not None:
      self._try(write, '_events')

  def _try(self, action, give_up: str | None = None):
    try:
      return action()
    except Exception as error:  # a full disk or a missing package must not stop training
      warnings.warn(f'metrics are no longer written to {self._path.parent}: {error!r}')
      if give_up:
        setattr(self, give_up, None)
      return None


def read(path: str | os.PathLike) -> dict[int, dict[str, float]]:
  """Returns {step: {name: last value}} of a metrics file, or of the directory that contains it.

  Other lines, such as those truncated by a kill, are skipped; a warning gives their number.

  Raises:
    FileNotFoundError: if there is no file.
  """
  path = storage.path(path)
  path = path / FILE if path.name != FILE and path.is_dir() else path
  found, num_bad = lines.read(path)
  steps = {}
  for line in found:
    step = line.pop('step', None)
    is_step = type(step) is int and 0 <= step < 2**53
    if not is_step or not all(type(value) in (int, float) for value in line.values()):
      num_bad += 1
      continue
    steps.setdefault(step, {}).update(line)
  if num_bad:
    warnings.warn(f'{path}: {num_bad} lines that are not metrics of a step were skipped')
  return {step: steps[step] for step in sorted(steps)}

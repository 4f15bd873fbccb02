"""Publishes metrics and messages of a run to its files and its caller."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from audiolm_jax.training import evaluation, metrics_writer, monitor


class Reporter:
  """Writes metrics, compares them with expectations, and calls `report`.

  Args:
    writer: writer of metrics; None on all processes except 0, where nothing is published.
    report: receives the events described in `loop.train`.
    expected_metrics: expected metrics.
    log_every: steps between logs, for expected_metrics.
    eval_every: steps between evaluations, for expected_metrics.

  Attributes:
    last: newest value of each metric.
    asked_to_stop: whether `report` has returned a true value.
  """

  def __init__(
    self,
    writer: metrics_writer.MetricsWriter | None,
    report: Callable[[Mapping[str, Any]], Any],
    expected_metrics: Sequence[monitor.ExpectedMetric],
    *,
    log_every: int,
    eval_every: int | None,
  ):
    self._writer, self._report = writer, report
    self._expected_metrics, self._rhythm = (
      expected_metrics,
      {'log_every': log_every, 'eval_every': eval_every},
    )
    self.last: dict[str, float] = {}
    self.asked_to_stop = False
    self._since, self._since_step = time.monotonic(), 0

  def start_clock(self, step: int) -> None:
    """Starts to measure the speed, from now and from `step`."""
    self._since, self._since_step = time.monotonic(), step

  @contextlib.contextmanager
  def clock_stopped(self) -> Iterator[None]:
    """Excludes the time of the block from the speed."""
    began = time.monotonic()
    yield
    self._since += time.monotonic() - began

  def training(self, step: int, metrics: Mapping[str, float]) -> None:
    """Publishes metrics of training with the speed since the previous call, in steps per second."""
    speed = (step - self._since_step) / max(time.monotonic() - self._since, 1e-9)
    self.start_clock(step)
    self.publish(step, metrics, speed={'steps_per_second': speed})

  def evaluation(
    self, step: int, metrics: Mapping[str, float], summary: evaluation.Summary
  ) -> None:
    """Publishes metrics, audio and images of held-out data, under 'eval/<name>'."""
    scalars = metrics | dict(summary.scalars)
    self.publish(step, {f'eval/{name}': float(value) for name, value in scalars.items()})
    if self._writer is not None:
      for name, (wave_T, sample_rate) in summary.audio.items():
        self._writer.audio(step, f'eval/{name}', wave_T, sample_rate)
      for name, image_HWC in summary.images.items():
        self._writer.image(step, f'eval/{name}', image_HWC)

  def publish(
    self,
    step: int,
    metrics: Mapping[str, float],
    message: str | None = None,
    *,
    speed: Mapping[str, float] = {},
  ) -> None:
    """Publishes metrics, their comparison with expectations, and a message for the user."""
    outside, lines = monitor.compare_with_expected(
      self._expected_metrics, step, metrics, **self._rhythm
    )
    metrics = metrics | outside
    self.last = self.last | metrics
    if self._writer is None:
      return
    self._writer.scalars(step, metrics | speed)
    self._call(step, metrics, lines if message is None else [message, *lines], speed)

  def say(self, step: int, message: str) -> None:
    """Passes a message to `report` without writing a file."""
    if self._writer is not None:
      self._call(step, {}, [message], {})

  def last_logged(self) -> int:
    """Returns the largest step in the metrics file; 0 if there is none, and without a writer."""
    return 0 if self._writer is None else self._writer.last_step()

  def flush(self) -> None:
    """Makes sure that no metrics are lost if this process is killed."""
    if self._writer is not None:
      self._writer.flush()

  def _call(self, step: int, metrics, lines: Sequence[str], speed) -> None:
    messages = {'message': '\n'.join(lines)} if lines else {}
    if not self._report({'step': step, 'metrics': metrics, **speed, **messages}):
      return
    self.asked_to_stop = True
    if jax.process_count() > 1:
      # All processes must stop at the same step; after this signal JAX chooses one.
      os.kill(os.getpid(), signal.SIGTERM)

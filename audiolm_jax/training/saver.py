"""Saving that outlives a full disk or a storage that errs for a while: a failed save is a warning,
and tried again.
"""

import time
import warnings
from collections.abc import Callable

import jax

from audiolm_jax.errors import UserError
from audiolm_jax.training import checkpoints

BACK_OFF_SECONDS, MOST_SECONDS = 1.0, 60.0


class Saver:
  """Counts the saves that failed in a row; the one after `max_failures` raises its OSError.

  Training goes on meanwhile: a save that failed is made up for by a later one of a later state,
  after a pause that doubles each time. Under several processes that is the next regular one,
  because their clocks differ.
  """

  def __init__(self, checkpointer: checkpoints.Checkpointer, max_failures: int):
    if max_failures < 0:
      raise UserError(
        f'max_failed_saves={max_failures}: must be 0 (the first stops the run) or more'
      )
    self._checkpointer, self._max_failures = checkpointer, max_failures
    self._failures, self._retry_at = 0, None

  def save(self, *arguments) -> None:
    """Starts a save, as `Checkpointer.save`."""
    self._try(self.wait_once)
    self._retry_at = None
    self._try(lambda: self._checkpointer.save(*arguments))

  def due(self) -> bool:
    """Returns whether a save failed and it is time to try again."""
    if jax.process_count() > 1:
      return False
    if self._retry_at is None:
      self._try(self._checkpointer.check)
    return self._retry_at is not None and time.monotonic() >= self._retry_at

  def settle(self, save: Callable[[], None]) -> None:
    """Waits until the save in progress is whole; where it failed, makes another by `save()`."""
    while not self._try(self.wait_once) or self._retry_at is not None:
      time.sleep(max(self._retry_at - time.monotonic(), 0.0))
      save()

  def wait_once(self) -> None:
    """Waits for the save in progress. Raises OSError when it failed."""
    if self._checkpointer.wait():
      self._failures, self._retry_at = 0, None

  def _try(self, action: Callable[[], None]) -> bool:
    try:
      action()
      return True
    except OSError as error:
      self._failures += 1
      if self._failures > self._max_failures:
        raise
      pause = min(BACK_OFF_SECONDS * 2 ** (self._failures - 1), MOST_SECONDS)
      self._retry_at = time.monotonic() + pause
      warnings.warn(
        f'{error}: failure {self._failures} of {self._max_failures} in a row; training goes on'
      )
      return False

"""Saves and restores the train state of a run; failed saves are reported and retried later.

training/checkpoints.py defines the format.
"""

import contextlib
import functools
import json
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import audiolm_jax
from audiolm_jax import arrays_file, storage
from audiolm_jax.errors import UserError
from audiolm_jax.stages import base
from audiolm_jax.storage import folders
from audiolm_jax.training import checkpoints, configs, processes, sharding

BACK_OFF_SECONDS, MOST_SECONDS = 1.0, 60.0
_TEMPORARY = '.orbax-checkpoint-tmp'
_OF_PROCESS = 'ocdbt.process_'  # Orbax's name, before the index, of the folders of each process
_DIGESTS_OF = 'digest-{:05d}.json'  # in a draft: the digests of the files of one process


class Restored(NamedTuple):
  """Holds the contents of a checkpoint."""

  step: int
  parts: dict[str, Any]
  data_position: Any  # what the data iterator's get_state returned
  metadata: dict[str, Any]


class Checkpointer:
  """Saves and restores the parts of a train state in a directory.

  This process must hold the lock of the run (training/lock.py). With several processes, all must
  make the same calls. Temporary directories of killed saves are deleted.

  Args:
    directory: checkpoint directory, created if missing.
    max_to_keep: number of newest steps to keep; older ones are deleted after the next save.
    keep_every: steps that are multiples of this are never deleted.

  Raises:
    UserError: if the directory has files but was not made by a Checkpointer, or a number is not
      positive.
  """

  def __init__(
    self, directory: str | os.PathLike, *, max_to_keep: int = 3, keep_every: int | None = None
  ):
    if max_to_keep < 1:
      raise UserError(f'max_to_keep={max_to_keep}: must be at least 1')
    if keep_every is not None and keep_every < 1:
      raise UserError(f'keep_every={keep_every}: must be a positive number of steps, or None')
    self._directory = storage.absolute(directory)
    self._folders = folders.of(self._directory, _nonce())
    self._max_to_keep, self._keep_every = max_to_keep, keep_every
    self._saving: int | None = None
    if jax.process_index() == 0:
      _claim(self._directory)
    _sync('checkpoints claimed')
    self._digests: dict[str, list] = {}  # of the files that this process wrote, by their names
    self._orbax = ocp.AsyncCheckpointer(
      _Handler(self._digest_own),
      async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digest),
    )

  def save(
    self, step: int, parts: Mapping[str, Any], data_position: Any, metadata: Mapping[str, Any]
  ) -> None:
    """Starts a save; arrays may be donated after this returns. An existing step is not changed.

    Args:
      step: number of the step.
      parts: trees of arrays by name.
      data_position: JSON-compatible position in the data.
      metadata: JSON-compatible entries, including 'config'.

    Raises:
      OSError: if this save or the previous one could not be written.
      UserError: if metadata or data position are not JSON-compatible.
    """
    self.wait()
    # Listings of a shared file system may differ between processes for a while.
    if processes.decided(lambda: step in checkpoints.steps(self._directory)):
      return
    flat = {name: arrays_file.flatten(tree) for name, tree in parts.items()}
    described = dict(
      metadata,
      format=checkpoints.FORMAT,
      version=audiolm_jax.__version__,
      step=step,
      data_position=data_position,
      structure=checkpoints.structure(parts),
    )
    try:
      json.dumps(described)
    except TypeError as error:
      raise UserError(f'metadata and data position of step {step} must be JSON: {error}') from error
    items = {name: ocp.args.StandardSave(leaves) for name, leaves in flat.items() if leaves}
    if jax.process_index() == 0:
      # Threads of a failed save may have written files after the failure.
      # Not those of others: one of them may have taken over this run.
      self._folders.clear(own=True)
    self._saving = step  # read by _write_digest
    with self._in_save():
      self._orbax.save(
        self._folders.draft(step),
        args=_Items(**items, **{checkpoints.METADATA: ocp.args.JsonSave(described)}),
      )

  def check(self) -> None:
    """Checks the save in progress without waiting for it.

    Raises:
      OSError: if it has failed.
    """
    if self._saving is not None:
      with self._in_save():
        self._orbax.check_for_errors()

  def wait(self) -> bool:
    """Waits until the save in progress is complete, then deletes old steps.

    Returns:
      Whether there was a save in progress.

    Raises:
      OSError: if the save failed.
    """
    if self._saving is None:
      return False
    with self._in_save():
      self._orbax.wait_until_finished()
    self._saving = None
    if jax.process_index() == 0:
      for old in checkpoints.steps(self._directory)[: -self._max_to_keep]:
        if self._keep_every is not None and old % self._keep_every == 0:
          continue
        self._folders.remove(old)
    return True

  def close(self) -> None:
    """Waits for the save in progress, and ends the threads that write."""
    self.wait()
    self._orbax.close()

  def restore(self, targets: Mapping[str, Any], config: Mapping[str, Any]) -> Restored | None:
    """Restores the newest undamaged step; returns None if there are no steps.

    Args:
      targets: trees of shapes with dtypes and shardings, by part.
      config: stage config, converted by `configs.describe`.

    Returns:
      Parts, data position and metadata of the step.

    Raises:
      UserError: if the config or the arrays differ from those of the checkpoint, or all steps are
        damaged.
    """
    step = self._newest_good()
    if step is None:
      return None
    metadata = checkpoints.read_metadata(self._folders.folder(step))
    differing = configs.differences(metadata['config'], config)
    if differing:
      raise UserError(
        f'{self._directory} was trained with another config; use that one, or another workdir:\n  '
        + '\n  '.join(differing)
      )
    parts = checkpoints.restore_parts(self._folders.folder(step), targets, metadata)
    return Restored(step, parts, metadata['data_position'], metadata)

  @contextlib.contextmanager
  def _in_save(self) -> Iterator[None]:
    """Replaces errors of Orbax by an OSError with the directory and its complete steps."""
    try:
      yield
    except Exception as error:
      step, self._saving = self._saving, None
      # Failed saves leave files, which would keep a full disk full.
      if jax.process_index() == 0:
        with contextlib.suppress(OSError):  # where this fails, the next save clears
          self._folders.clear_draft(step)
      try:
        complete = checkpoints.steps(self._directory)
      except OSError:
        complete = 'unknown'
      raise OSError(
        f'checkpoint {step} could not be written to {self._directory} ({error}); complete steps: '
        f'{complete}'
      ) from error

  def _newest_good(self) -> int | None:
    return processes.decided(lambda: _reject_bad(self._directory))

  def _digest_own(self, draft: storage.Path) -> None:
    """Digests the files of a draft that this process has written, which its host still caches.

    Called by Orbax in the thread that saves, after this process has written its part.
    """
    index, self._digests = jax.process_index(), {}
    for item in draft.iterdir():  # their names have an end of Orbax until the draft is whole
      own = f'{_OF_PROCESS}{index}'
      for name in storage.files_below(item / own):
        digest = storage.digest(item / own / name)
        self._digests[f'{item.name.partition(_TEMPORARY)[0]}/{own}/{name}'] = list(digest)
    if index:
      storage.write_text(draft / _DIGESTS_OF.format(index), json.dumps({'files': self._digests}))

  def _write_digest(self) -> None:
    """Writes the digest; Orbax calls this on process 0, after the data and before the rename.

    Only what no other process has digested is read here: its own files, and what Orbax merges.
    """
    written = self._folders.written(self._saving)
    digests = dict(self._digests)
    for index in range(1, jax.process_count()):
      path = written / _DIGESTS_OF.format(index)
      digests |= storage.read_json(path, 'save again')['files']
      path.unlink()
    files = {
      name: digests[name] if name in digests else list(storage.digest(written / name))
      for name in storage.files_below(written)
      if name not in checkpoints.UNDIGESTED
    }
    self._folders.seal(self._saving, {'format': checkpoints.FORMAT, 'files': files})


class _Handler(ocp.CompositeCheckpointHandler):
  """Calls `digest(draft)` on each process, once it has written its part of a draft."""

  def __init__(self, digest: Callable[[storage.Path], None]):
    super().__init__()
    self._digest = digest

  async def async_save(self, directory, args):
    commits = await super().async_save(directory, args)
    return [*(commits or ()), _Last(functools.partial(self._digest, storage.path(directory)))]


@ocp.args.register_with_handler(_Handler, for_save=True, for_restore=True)
class _Items(ocp.args.Composite):
  """The arguments of `_Handler`, by item."""


class _Last:
  """A future of Orbax, which asks for the results of all futures in order, in its own thread."""

  def __init__(self, function: Callable[[], None]):
    self._function = function

  def result(self, timeout: float | None = None) -> None:
    self._function()

  def cancel(self) -> None:
    pass


class Saver:
  """Saves with a `Checkpointer`, and retries failed saves.

  Failed saves are retried later, with the then-current state, after a pause that doubles each time.
  With several processes, whose clocks differ, the retry is the next regular save.

  Args:
    checkpointer: writes the checkpoints.
    max_failures: consecutive failures that are reported as warnings; the next one raises OSError.

  Raises:
    UserError: if `max_failures` is negative.
  """

  def __init__(self, checkpointer: Checkpointer, max_failures: int):
    if max_failures < 0:
      raise UserError(
        f'max_failed_saves={max_failures}: must be 0 (the first stops the run) or more'
      )
    self._checkpointer, self._max_failures = checkpointer, max_failures
    self._failures, self._retry_at = 0, None
    self._saved_at = time.monotonic()

  @property
  def seconds_since_save(self) -> float:
    """Seconds since the last save started, or since this object was made."""
    return time.monotonic() - self._saved_at

  def save(
    self,
    step: int,
    parts: Mapping[str, Any],
    data_position: Any,
    metadata: Mapping[str, Any],
    *,
    whole: bool = False,
  ) -> None:
    """Starts a save, as `Checkpointer.save`.

    If `whole`, retries and waits until this state is saved.

    Args:
      step: number of the step.
      parts: trees of arrays by name.
      data_position: of the batches, as JSON.
      metadata: further facts about the run, as JSON.
      whole: whether to wait until this state is saved.
    """
    start = functools.partial(self._checkpointer.save, step, parts, data_position, metadata)
    self._start(start)
    while whole and (not self._try(self.wait) or self._retry_at is not None):
      time.sleep(max(self._retry_at - time.monotonic(), 0.0))
      self._start(start)
    self._saved_at = time.monotonic()

  def due(self) -> bool:
    """Returns whether a save failed and its retry is due."""
    if jax.process_count() > 1:
      return False
    if self._retry_at is None:
      self._try(self._checkpointer.check)
    return self._retry_at is not None and time.monotonic() >= self._retry_at

  def wait(self) -> None:
    """Waits for the save in progress.

    Raises:
      OSError: if it failed.
    """
    if self._checkpointer.wait():
      self._failures, self._retry_at = 0, None

  def _start(self, start: Callable[[], None]) -> None:
    self._try(self.wait)
    self._retry_at = None
    self._try(start)

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
        f'{error}: failure {self._failures} of {self._max_failures} in a row; training continues'
      )
      return False


def _claim(directory: storage.Path) -> None:
  """Marks a new directory as made by a Checkpointer, or deletes remains of killed saves."""
  storage.make_folder(directory)
  marker = directory / checkpoints.MARKER
  if not marker.is_file():
    there = directory.iterdir() if directory.is_dir() else []
    if found := sorted(path.name for path in there if path.suffix != '.partial'):
      raise UserError(
        f'{directory} holds {found[:3]} but no {checkpoints.MARKER}: choose an empty directory'
      )
    storage.write_text(marker, json.dumps({'format': checkpoints.FORMAT}))
  folders.of(directory).clear()


def _nonce() -> str:
  """Returns hexadecimal digits of this start, the same on all processes."""
  nonce = secrets.randbits(31)
  if jax.process_count() > 1:
    nonce = int(multihost_utils.broadcast_one_to_all(np.int32(nonce)))
  return f'{nonce:08x}'


def _reject_bad(directory: storage.Path) -> int | None:
  """Returns the newest undamaged step, after renaming newer damaged ones to free their names."""
  bad, good = {}, None
  there = folders.of(directory)
  for step in reversed(there.numbers(damaged=True)):
    reason = checkpoints.step_fault(directory, step)
    if reason is None:
      good = step
      break
    bad[step] = reason
  if good is None and bad:
    raise UserError(
      f'no good checkpoint in {directory}: '
      + '; '.join(f'{step}: {reason}' for step, reason in bad.items())
    )
  for step, reason in bad.items():
    kept = there.reject(step)
    warnings.warn(
      f'checkpoint {step} in {directory} is bad ({reason}): kept as {kept}, continuing '
      f'from step {good}'
    )
  return good


def _sync(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def save_variables(
  directory: str | os.PathLike,
  config: Any,
  variables: base.Variables,
  metadata: Mapping[str, Any] | None = None,
) -> None:
  """Writes a model as step 0 of a new checkpoint directory, for `checkpoints.load_variables`.

  Args:
    directory: checkpoint directory, created if missing.
    config: frozen dataclass with `make()`.
    variables: arrays of the model.
    metadata: JSON-compatible entries, such as 'fingerprints' of the models that made the training
      data.

  Raises:
    UserError: if `directory` has files, or `metadata` is not JSON-compatible.
    OSError: if the checkpoint could not be written.
  """
  if found := checkpoints.steps(directory):
    raise UserError(
      f'{directory} already holds a checkpoint (step {found[-1]}): choose another folder'
    )
  described = {'fingerprints': {}, **(metadata or {}), 'config': configs.describe(config)}
  checkpointer = Checkpointer(directory)
  try:
    checkpointer.save(0, sharding.unbox(variables)._asdict(), None, described)
  finally:
    checkpointer.close()

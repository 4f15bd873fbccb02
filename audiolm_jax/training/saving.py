"""Saves and restores the train state of a run; a failed save is a warning, and is retried later.

What a checkpoint is and how others read it: training/checkpoints.py.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import audiolm_jax
from audiolm_jax import files
from audiolm_jax.errors import UserError
from audiolm_jax.stages import base
from audiolm_jax.training import checkpoints, configs, sharding

BACK_OFF_SECONDS, MOST_SECONDS = 1.0, 60.0
_TEMPORARY = re.compile(r'^\d+\.(orbax-checkpoint-tmp.*|pruned)$')  # half-saved, half-deleted


class Restored(NamedTuple):
  step: int
  parts: dict[str, Any]
  data_position: Any  # what the data iterator's get_state returned
  metadata: dict[str, Any]


class Checkpointer:
  """Saves and restores the parts of a train state in `directory`, which this process must hold
  (training/lock.py).

  The newest `max_to_keep` steps stay, and all multiples of `keep_every`; the others go once a newer
  one is whole. Temporary directories of killed saves are deleted, in directories that a
  Checkpointer made. Under several processes every one makes the same calls.

  Raises ValueError where `directory` holds something but was not made by a Checkpointer.
  """

  def __init__(
    self, directory: str | pathlib.Path, *, max_to_keep: int = 3, keep_every: int | None = None
  ):
    if max_to_keep < 1:
      raise UserError(f'max_to_keep={max_to_keep}: at least one checkpoint must stay')
    if keep_every is not None and keep_every < 1:
      raise UserError(f'keep_every={keep_every}: a number of steps, or None')
    self._directory = pathlib.Path(directory).absolute()
    self._max_to_keep, self._keep_every = max_to_keep, keep_every
    self._saving: int | None = None
    if jax.process_index() == 0:
      _claim(self._directory)
    _sync('checkpoints claimed')
    self._orbax = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(),
      async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digest),
    )

  def save(
    self, step: int, parts: Mapping[str, Any], data_position: Any, metadata: Mapping[str, Any]
  ) -> None:
    """Starts saving `step`; arrays may be donated once this returns. A step that is already there
    is left alone.

    Raises OSError when this save, or the one before, could not be written.
    """
    self.wait()
    if step in checkpoints.steps(self._directory):
      return
    flat = {name: checkpoints.flatten(tree) for name, tree in parts.items()}
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
      # of saves that failed: what some of their threads wrote after the failure
      _clear(self._directory)
    self._saving = step  # read by _write_digest
    with self._in_save():
      self._orbax.save(
        self._directory / str(step),
        args=ocp.args.Composite(**items, **{checkpoints.METADATA: ocp.args.JsonSave(described)}),
      )

  def check(self) -> None:
    """Raises OSError when the save in progress is known to have failed; waits for nothing
    otherwise.
    """
    if self._saving is not None:
      with self._in_save():
        self._orbax.check_for_errors()

  def wait(self) -> bool:
    """Waits until the save in progress is whole, then deletes the steps that need not stay; False:
    there was none.

    Raises OSError when the save failed.
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
        # a name that is no step: a kill in between leaves no half step
        pruned = self._directory / f'{old}.pruned'
        (self._directory / str(old)).rename(pruned)
        shutil.rmtree(pruned)
    return True

  def close(self) -> None:
    self.wait()
    self._orbax.close()

  def restore(self, targets: Mapping[str, Any], config: Mapping[str, Any]) -> Restored | None:
    """Restores the newest good step into the shapes, dtypes and shardings of `targets`; None when
    there is no step.

    `config` is the described stage config. Raises ValueError when it differs from the checkpoint's,
    when the trees differ, or when steps exist and none is good.
    """
    step = self._newest_good()
    if step is None:
      return None
    metadata = checkpoints.read_metadata(self._directory / str(step))
    differing = configs.differences(metadata['config'], config)
    if differing:
      raise UserError(
        f'{self._directory} was trained with another config; use that one, or another workdir:\n  '
        + '\n  '.join(differing)
      )
    parts = checkpoints.restore_parts(self._directory / str(step), targets, metadata)
    return Restored(step, parts, metadata['data_position'], metadata)

  @contextlib.contextmanager
  def _in_save(self) -> Iterator[None]:
    """Turns what Orbax raises when storage fails into an OSError that names the directory and what
    is left.
    """
    try:
      yield
    except Exception as error:
      step, self._saving = self._saving, None
      # every failed attempt leaves its files: the disk would stay full
      if jax.process_index() == 0:
        for path in self._directory.glob(f'{step}.orbax-checkpoint-tmp*'):
          shutil.rmtree(path, ignore_errors=True)
      raise OSError(
        f'checkpoint {step} could not be written to {self._directory} ({error}); whole steps there: '
        f'{checkpoints.steps(self._directory)}'
      ) from error

  def _newest_good(self) -> int | None:
    step, error = None, ''
    if jax.process_index() == 0:
      try:
        step = _reject_bad(self._directory)
      except ValueError as caught:
        error = str(caught)
    if jax.process_count() > 1:
      code = {None: -1}.get(step, step) if not error else -2
      code = int(multihost_utils.broadcast_one_to_all(np.int64(code)))
      step, error = (
        (None if code < 0 else code),
        error or ('no good checkpoint' if code == -2 else ''),
      )
    if error:
      raise UserError(error)
    return step

  def _write_digest(self) -> None:
    """Runs in Orbax's thread on the primary process, between the last data file and the final
    name.
    """
    [temporary] = self._directory.glob(f'{self._saving}.orbax-checkpoint-tmp*')
    digests = {
      str(path.relative_to(temporary)): [path.stat().st_size, files.sha256(path)]
      for path in sorted(temporary.rglob('*'))
      if path.is_file() and str(path.relative_to(temporary)) not in checkpoints.UNDIGESTED
    }
    with (temporary / checkpoints.DIGEST).open('w') as file:
      json.dump({'format': checkpoints.FORMAT, 'files': digests}, file, indent=1)
      file.flush()
      os.fsync(file.fileno())


class Saver:
  """Saves by a `Checkpointer`, and retries: only the failure after `max_failures` in a row raises
  its OSError.

  Training goes on meanwhile. A failed save is retried later, with the then-current state, after a
  pause that doubles each time. Under several processes the retry is the next regular save, because
  their clocks differ.
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
    """Seconds since the last save began, or since this object was made."""
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
    """Starts a save, as `Checkpointer.save`; `whole`: returns when one of this state is whole."""
    start = functools.partial(self._checkpointer.save, step, parts, data_position, metadata)
    self._start(start)
    while whole and (not self._try(self.wait) or self._retry_at is not None):
      time.sleep(max(self._retry_at - time.monotonic(), 0.0))
      self._start(start)
    self._saved_at = time.monotonic()

  def due(self) -> bool:
    """Returns whether a save failed and it is time to try again."""
    if jax.process_count() > 1:
      return False
    if self._retry_at is None:
      self._try(self._checkpointer.check)
    return self._retry_at is not None and time.monotonic() >= self._retry_at

  def wait(self) -> None:
    """Waits for the save in progress. Raises OSError when it failed."""
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
        f'{error}: failure {self._failures} of {self._max_failures} in a row; training goes on'
      )
      return False


def _claim(directory: pathlib.Path) -> None:
  """Marks a new directory as ours, and clears what killed saves left in one that is."""
  directory.mkdir(parents=True, exist_ok=True)
  marker = directory / checkpoints.MARKER
  if not marker.is_file():
    if found := sorted(path.name for path in directory.iterdir() if path.suffix != '.partial'):
      raise UserError(
        f'{directory} holds {found[:3]} but no {checkpoints.MARKER}: choose an empty directory'
      )
    files.write_text(marker, json.dumps({'format': checkpoints.FORMAT}))
  _clear(directory)


def _clear(directory: pathlib.Path) -> None:
  """Deletes what killed or failed saves left."""
  for path in directory.iterdir():
    if _TEMPORARY.match(path.name):
      shutil.rmtree(path, ignore_errors=True)


def _reject_bad(directory: pathlib.Path) -> int | None:
  """Returns the newest good step and renames newer bad ones, so that their step numbers are free
  again.
  """
  bad = {}
  names = sorted(
    (int(path.name) for path in directory.iterdir() if path.name.isdigit()), reverse=True
  )
  good = None
  for step in names:
    reason = checkpoints.fault(directory / str(step))
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
    rejected = directory / f'{step}.rejected'
    while rejected.exists():
      rejected = rejected.with_name(rejected.name + '+')
    (directory / str(step)).rename(rejected)
    warnings.warn(
      f'checkpoint {step} in {directory} is bad ({reason}): kept as {rejected.name}, continuing from step {good}'
    )
  return good


def _sync(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def save_variables(
  directory: str | pathlib.Path,
  config: Any,
  variables: base.Variables,
  metadata: Mapping[str, Any] | None = None,
) -> None:
  """Writes a model as step 0 of a new checkpoint directory, from which `load_variables` reads it.

  config: a frozen dataclass with `make()`. metadata: JSON; 'fingerprints' of the models that made
  the training data belong there.

  Raises UserError where `directory` holds a checkpoint, or something else.
  """
  directory = pathlib.Path(directory)
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

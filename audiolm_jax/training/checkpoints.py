"""Checkpoints: asynchronous, atomic, and digested, so that a flipped bit never becomes a wrong
weight.

`directory`/<step>/ holds one Orbax item for each part of the train state (params, state, opt_state,
ema_params; empty parts are left out), a JSON item `metadata`, and `digest.json` with the SHA-256 of
every other file. The digest is written after the data and before Orbax renames the temporary
directory to its final name: what carries a step's name is whole. On restore the digest is checked;
a bad step is set aside as <step>.rejected and the one before is used.

Every part is stored as a flat {path: array}: empty containers and NamedTuples of optax need no
special care, and a change of structure is reported as a difference of paths.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import audiolm_jax
from audiolm_jax import files
from audiolm_jax.errors import UserError
from audiolm_jax.stages import base
from audiolm_jax.training import configs, sharding

FORMAT = 1
DIGEST, METADATA, MARKER = 'digest.json', 'metadata', 'audiolm_jax.json'
_REMEDY = 'it is damaged, or no checkpoint of this package'
_TEMPORARY = re.compile(r'^\d+\.(orbax-checkpoint-tmp.*|pruned)$')  # half-saved, half-deleted
# Orbax's stamps, made after the digest: no weights
UNDIGESTED = ('_CHECKPOINT_METADATA', 'commit_success.txt')


class Restored(NamedTuple):
  step: int
  parts: dict[str, Any]
  data_position: Any  # what the data iterator's get_state returned
  metadata: dict[str, Any]


class Checkpointer:
  """Saves and restores the parts of a train state in `directory`, which this process must hold
  (training.workdir).

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
    if step in steps(self._directory):
      return
    flat = {name: _flatten(tree) for name, tree in parts.items()}
    described = dict(
      metadata,
      format=FORMAT,
      version=audiolm_jax.__version__,
      step=step,
      data_position=data_position,
      structure=structure(parts),
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
        args=ocp.args.Composite(**items, **{METADATA: ocp.args.JsonSave(described)}),
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
      for old in steps(self._directory)[: -self._max_to_keep]:
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
    metadata = _read_metadata(self._directory / str(step))
    differing = configs.differences(metadata['config'], config)
    if differing:
      raise UserError(
        f'{self._directory} was trained with another config; use that one, or another workdir:\n  '
        + '\n  '.join(differing)
      )
    parts = _restore_parts(self._directory / str(step), targets, metadata)
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
        f'{steps(self._directory)}'
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
      if path.is_file() and str(path.relative_to(temporary)) not in UNDIGESTED
    }
    with (temporary / DIGEST).open('w') as file:
      json.dump({'format': FORMAT, 'files': digests}, file, indent=1)
      file.flush()
      os.fsync(file.fileno())


def steps(directory: str | pathlib.Path) -> list[int]:
  """Returns the steps in `directory` that were saved to the end, in order (their digests are not
  checked here).
  """
  directory = pathlib.Path(directory)
  names = (
    [path.name for path in directory.iterdir() if path.name.isdigit()] if directory.is_dir() else []
  )
  return sorted(int(name) for name in names if (directory / name / DIGEST).is_file())


def structure(parts: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
  """Returns the shape and dtype of every array (or shape) in each part, by its dotted path."""
  return {
    name: {
      path: [list(x.shape), str(x.dtype)] for path, x in _flatten(sharding.unbox(tree)).items()
    }
    for name, tree in parts.items()
  }


def fault(directory: pathlib.Path) -> str | None:
  """Returns what is wrong with one step's files, or None when every digest matches."""
  try:
    digests = files.read_json(directory / DIGEST, 'it was saved in vain').get('files')
  except ValueError as error:
    return f'{DIGEST} cannot be read: {error}'
  is_entry = lambda x: isinstance(x, list) and len(x) == 2
  if not (isinstance(digests, dict) and all(map(is_entry, digests.values()))):
    return f'{DIGEST} does not list files'
  for name, (size, digest) in digests.items():
    path, name = directory / name, files.printable(name, 200)
    if '..' in path.parts or not path.is_relative_to(directory):
      return f'{DIGEST} lists {name}, which is elsewhere'
    if not path.is_file():
      return f'{name} is missing'
    if path.stat().st_size != size:
      return f'{name} has {path.stat().st_size} bytes, not {size}'
    if files.sha256(path) != digest:
      return f'{name} differs from its digest'
  return None


def load_variables(
  directory: str | pathlib.Path,
  step: int | None = None,
  *,
  use_ema: bool = True,
  config: Any = None,
) -> base.Model:
  """Loads a trained stage for inference, on the default device, without optimizer or trainer.

  Args:
    directory: a run's checkpoint directory, or its workdir.
    step: which one; None takes the newest good one.
    use_ema: take the averaged parameters where training kept them.
    config: of a stage from outside of this package, which a checkpoint may name but not import; it
      must be the one that was trained. None: the checkpoint's own.

  Returns:
    The config, Variables of plain arrays, and metadata with 'step', 'version', 'fingerprints' and
    what else was saved.

  Raises:
    ValueError: no good checkpoint, an unknown config class or field, another config than that of
      the checkpoint, or another structure than `config.make()` has.
  """
  directory = _checkpoints(directory)
  if step is None:
    step = _newest_readable(directory)
  elif reason := fault(directory / str(step)):
    raise UserError(f'checkpoint {directory / str(step)}: {reason}')
  metadata = _read_metadata(directory / str(step))
  if config is None:
    config = configs.rebuild(metadata['config'], metadata['version'])
  elif differing := configs.differences(metadata['config'], configs.describe(config)):
    raise UserError(f'{directory} was trained with another config:\n  ' + '\n  '.join(differing))
  try:
    variables = sharding.unbox(jax.eval_shape(config.make().init, jax.random.key(0)))
  except (TypeError, AttributeError, ArithmeticError, LookupError) as error:
    raise UserError(
      f'checkpoint {directory / str(step)}: its config makes no model ({error!r}): {_REMEDY}'
    ) from error
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  params_name = 'ema_params' if use_ema and metadata['structure'].get('ema_params') else 'params'
  targets = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    {params_name: variables.params, 'state': variables.state},
  )
  parts = _restore_parts(directory / str(step), targets, metadata)
  return base.Model(config, base.Variables(parts[params_name], parts['state']), metadata)


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
  if found := steps(directory):
    raise UserError(
      f'{directory} already holds a checkpoint (step {found[-1]}): choose another folder'
    )
  described = {'fingerprints': {}, **(metadata or {}), 'config': configs.describe(config)}
  checkpointer = Checkpointer(directory)
  try:
    checkpointer.save(0, sharding.unbox(variables)._asdict(), None, described)
  finally:
    checkpointer.close()


def load_parts(directory: str | pathlib.Path, targets: Mapping[str, Any]) -> dict[str, Any]:
  """Loads parts of another run's newest good step into the shapes, dtypes and shardings of
  `targets`, to begin with.

  The configs may differ, the arrays not. `directory` is a checkpoint directory, or a workdir that
  holds one.

  Raises ValueError for no good checkpoint, and where arrays are missing, superfluous or of another
  shape, with a line for each.
  """
  directory = _checkpoints(directory)
  step = _newest_readable(directory)
  return _restore_parts(directory / str(step), targets, _read_metadata(directory / str(step)))


def _checkpoints(directory: str | pathlib.Path) -> pathlib.Path:
  """Returns the checkpoint directory that is meant: itself, or that of a run's workdir."""
  directory = pathlib.Path(directory).absolute()
  if not (directory / MARKER).is_file() and (directory / 'checkpoints').is_dir():
    return directory / 'checkpoints'
  return directory


def _claim(directory: pathlib.Path) -> None:
  """Marks a new directory as ours, and clears what killed saves left in one that is."""
  directory.mkdir(parents=True, exist_ok=True)
  marker = directory / MARKER
  if not marker.is_file():
    if found := sorted(path.name for path in directory.iterdir() if path.suffix != '.partial'):
      raise UserError(f'{directory} holds {found[:3]} but no {MARKER}: choose an empty directory')
    files.write_text(marker, json.dumps({'format': FORMAT}))
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
    reason = fault(directory / str(step))
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


def _newest_readable(directory: pathlib.Path) -> int:
  """Returns the newest good step without touching the directory, which a trainer may be using."""
  newer = {}
  for step in reversed(steps(directory)):
    reason = fault(directory / str(step))
    if reason is None:
      for bad, why in newer.items():
        warnings.warn(f'checkpoint {bad} in {directory} is bad ({why}): using step {step}')
      return step
    newer[step] = reason
  raise UserError(
    f'no good checkpoint in {directory}: ' + ('; '.join(newer.values()) or 'it holds no step')
  )


def _restore_parts(
  directory: pathlib.Path, targets: Mapping[str, Any], metadata: Mapping[str, Any]
) -> dict[str, Any]:
  """Restores the parts that `targets` names after comparing their paths and shapes with what was
  saved.
  """
  flat = {name: _flatten(tree) for name, tree in targets.items()}
  lines = []
  for name, leaves in flat.items():
    saved = {
      path: (tuple(shape), dtype)
      for path, (shape, dtype) in metadata['structure'].get(name, {}).items()
    }
    wanted = {path: (tuple(x.shape), str(x.dtype)) for path, x in leaves.items()}
    lines += [
      f'{name}.{files.printable(path, 200)}: '
      f'checkpoint {saved.get(path, "(absent)")}, now {wanted.get(path, "(absent)")}'
      for path in sorted(saved.keys() | wanted.keys())
      if saved.get(path) != wanted.get(path)
    ]
  if lines:
    raise UserError(
      f'{directory} (audiolm_jax {metadata["version"]}) holds other arrays:\n  '
      + '\n  '.join(lines)
    )
  items = {name: ocp.args.StandardRestore(leaves) for name, leaves in flat.items() if leaves}
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as orbax:
    restored = orbax.restore(directory, args=ocp.args.Composite(**items)) if items else {}
  return {
    name: jax.tree.unflatten(
      jax.tree.structure(tree), [restored[name][path] for path in flat[name]]
    )
    for name, tree in targets.items()
  }


def _flatten(tree: Any) -> dict[str, Any]:
  """Returns {dotted path: array} in the order of the tree's leaves."""
  leaves, _ = jax.tree.flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}


def _read_metadata(directory: pathlib.Path) -> dict[str, Any]:
  """Reads what was saved beside the arrays. Raises ValueError for a format that this version does
  not know.
  """
  path = directory / METADATA / METADATA  # the JSON item names its file so
  metadata = files.read_json(path, _REMEDY)
  metadata.setdefault('fingerprints', {})
  kinds = {'format': int, 'version': str, 'config': dict, 'structure': dict, 'fingerprints': dict}
  bad = [name for name, kind in kinds.items() if not isinstance(metadata.get(name), kind)]
  if not bad and not all(map(_lists_arrays, metadata['structure'].values())):
    bad = ['structure']
  if bad:
    raise UserError(f'{path} has no {bad[0]} as audiolm_jax writes it: {_REMEDY}')
  if metadata['format'] != FORMAT:
    raise UserError(
      f'{directory} has format {metadata["format"]}, '
      f'written by audiolm_jax {files.printable(metadata["version"], 80)}; '
      f'audiolm_jax {audiolm_jax.__version__} reads format {FORMAT}'
    )
  return metadata


def _lists_arrays(leaves: Any) -> bool:
  """Returns whether this is {path: [shape, dtype]}."""
  is_pair = lambda leaf: isinstance(leaf, list) and list(map(type, leaf)) == [list, str]
  return isinstance(leaves, dict) and all(map(is_pair, leaves.values()))


def _sync(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)

"""Defines the format of checkpoints and reads them; training/saving.py writes them.

  DIRECTORY/<step>/
    params/ state/ opt_state/ ema_params/   Orbax items: the nonempty parts of the train state
    metadata/                               JSON: config, step, data position, fingerprints, ...
    digest.json                             size and SHA-256 of each file

The digest is written last, before Orbax renames the temporary directory to <step>: a directory with
the name of a step is complete. In a bucket, the same files are in data/<step>-<nonce>/, and the
digest is <step>.json (storage/folders.py). Digests are checked before a step is restored. If a step
is damaged, the trainer renames it to <step>.rejected and uses the previous one.

Parts are stored as flat {dotted path: array}, so that optax's empty containers and NamedTuples need
no special treatment, and errors can list the paths that differ.
"""

import functools
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

import audiolm_jax
from audiolm_jax import arrays_file, files, storage
from audiolm_jax.errors import UserError
from audiolm_jax.stages import base
from audiolm_jax.storage import folders
from audiolm_jax.training import configs, exports, processes, sharding

FORMAT = 1
DIGEST, METADATA, MARKER = folders.LISTING, 'metadata', 'audiolm_jax.json'
_REMEDY = 'it is damaged, or was not written by audiolm_jax'
# Written by Orbax after the digest; they contain no weights.
UNDIGESTED = ('_CHECKPOINT_METADATA', folders.STAMP)


def steps(directory: str | os.PathLike) -> list[int]:
  """Returns the complete steps in `directory`, ascending; digests are not checked.

  Args:
    directory: checkpoint directory or workdir.
  """
  return folders.of(storage.path(directory)).numbers()


def step_folder(directory: str | os.PathLike, step: int) -> storage.Path:
  """Returns the folder of a step.

  Args:
    directory: checkpoint directory.
    step: number of the step.
  """
  return folders.of(storage.path(directory)).folder(step)


def structure(parts: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
  """Returns {part: {dotted path: [shape, dtype]}} of trees of arrays or shapes.

  Args:
    parts: trees by name.
  """
  return {
    name: {
      path: [list(x.shape), str(x.dtype)]
      for path, x in arrays_file.flatten(sharding.unbox(tree)).items()
    }
    for name, tree in parts.items()
  }


def step_fault(
  directory: storage.Path, step: int, items: Collection[str] | None = None
) -> str | None:
  """Returns why the files of a step are damaged; None if all digests match.

  Args:
    directory: checkpoint directory.
    step: number of the step.
    items: Orbax items to check; None: all.
  """
  there = folders.of(directory)
  return fault(there.folder(step), there.listing(step), items)


def fault(
  directory: storage.Path, listing: storage.Path | None = None, items: Collection[str] | None = None
) -> str | None:
  """Returns why the files in the folder of a step are damaged; None if all digests match.

  Args:
    directory: folder of the step.
    listing: file of the digests; None: DIGEST in that folder.
    items: Orbax items to check, which are the folders in that folder; None: all files.
  """
  listing = directory / DIGEST if listing is None else listing
  try:
    digests = storage.read_json(listing, 'the checkpoint is damaged').get('files')
  except ValueError as error:
    return f'{listing.name} cannot be read: {error}'
  is_entry = lambda x: isinstance(x, list) and len(x) == 2
  if not (isinstance(digests, dict) and all(map(is_entry, digests.values()))):
    return f'{listing.name} does not list files'
  for name, (size, digest) in digests.items():
    if items is not None and name.split('/')[0] not in items:
      continue
    path, name = directory / name, files.printable(name, 200)
    if '..' in path.parts or not path.is_relative_to(directory):
      return f'{listing.name} lists {name}, which is outside of the checkpoint'
    try:
      found_size, found = storage.digest(path, size)
    except FileNotFoundError:
      return f'{name} is missing'
    if found_size != size:
      return f'{name} has {found_size} bytes, not {size}'
    if found != digest:
      return f'{name} differs from its digest'
  return None


def load_variables(
  directory: str | os.PathLike, step: int | None = None, *, use_ema: bool = True, config: Any = None
) -> base.Model:
  """Loads a trained stage for inference, onto the default device.

  Digests are compared of the files that are read only; among several processes, which must all make
  the same call, by process 0 for all.

  Args:
    directory: checkpoint directory or workdir of a run, or folder of a stage in a release.
    step: step to load; None takes the newest undamaged one.
    use_ema: whether to take the averaged parameters, if the run kept an average.
    config: config the stage was trained with; required for stages from outside of this package,
      whose classes are never imported. None takes the stored config.

  Returns:
    Config, variables as plain arrays, and metadata ('step', 'version', 'fingerprints', ...).

  Raises:
    UserError: if there is no undamaged checkpoint; if the stored config has an unknown class or
      field, or differs from `config`; if the arrays are not those of the config.
  """
  if exports.holds(directory):
    return _exported(directory, config)
  directory = _checkpoints(directory)
  fault_of = lambda step: step_fault(directory, step, _inference_items(directory, step, use_ema))
  if step is None:
    step = _newest_readable(directory, fault_of)
  else:
    processes.decided(functools.partial(_check_step, directory, step, fault_of))
  folder = step_folder(directory, step)
  metadata = read_metadata(folder)
  if config is None:
    config = configs.rebuild(metadata['config'], metadata['version'])
  else:
    _check_config(directory, metadata['config'], config)
  try:
    variables = sharding.unbox(jax.eval_shape(config.make().init, jax.random.key(0)))
  except (TypeError, AttributeError, ArithmeticError, LookupError) as error:
    raise UserError(
      f'checkpoint {directory / str(step)}: no model can be made from its config ({error!r}): '
      f'{_REMEDY}'
    ) from error
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  params_name = 'ema_params' if use_ema and metadata['structure'].get('ema_params') else 'params'
  targets = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    {params_name: variables.params, 'state': variables.state},
  )
  parts = restore_parts(folder, targets, metadata)
  return base.Model(config, base.Variables(parts[params_name], parts['state']), metadata)


def _exported(directory: str | os.PathLike, config: Any) -> base.Model:
  model = exports.read_stage(directory)
  if config is not None:
    _check_config(directory, configs.describe(model.config), config)
  return model


def _check_config(directory: str | os.PathLike, described: Mapping[str, Any], config: Any) -> None:
  """Compares the config of a checkpoint with the given one.

  Raises:
    UserError: with one line per field that differs.
  """
  if differing := configs.differences(described, configs.describe(config)):
    raise UserError(f'{directory} was trained with another config:\n  ' + '\n  '.join(differing))


def load_parts(directory: str | os.PathLike, targets: Mapping[str, Any]) -> dict[str, Any]:
  """Loads parts of the train state of another run, such as the params for fine-tuning.

  The config of that run may differ; the arrays must match.

  Args:
    directory: checkpoint directory or workdir of the run; its newest undamaged step is read.
    targets: trees of shapes with dtypes and shardings, by part.

  Returns:
    The parts, by name.

  Raises:
    UserError: if there is no undamaged checkpoint; if arrays are missing, superfluous or of another
      shape, with one line for each.
  """
  directory = _checkpoints(directory)
  items = {METADATA, *targets}
  step = _newest_readable(directory, lambda step: step_fault(directory, step, items))
  folder = step_folder(directory, step)
  return restore_parts(folder, targets, read_metadata(folder))


def _checkpoints(directory: str | os.PathLike) -> storage.Path:
  """Returns the checkpoint directory, given it or its workdir."""
  directory = storage.absolute(directory)
  if not (directory / MARKER).is_file() and (directory / 'checkpoints').is_dir():
    return directory / 'checkpoints'
  return directory


def _inference_items(directory: storage.Path, step: int, use_ema: bool) -> set[str]:
  """Returns the Orbax items that `load_variables` reads: no state of an optimizer."""
  try:
    names = storage.read_json(folders.of(directory).listing(step), _REMEDY).get('files')
    averaged = any(name.startswith('ema_params/') for name in names)
  except (ValueError, TypeError, AttributeError):  # which `fault` names
    averaged = False
  return {METADATA, 'state', 'ema_params' if use_ema and averaged else 'params'}


def _check_step(directory: storage.Path, step: int, fault_of: Callable[[int], str | None]) -> int:
  if reason := fault_of(step):
    raise UserError(f'checkpoint {directory / str(step)}: {reason}')
  return step


def _newest_readable(directory: storage.Path, fault_of: Callable[[int], str | None]) -> int:
  """Returns the newest step without a fault, on all processes, of which process 0 looks for it.

  Renames nothing, because a trainer may use the directory.
  """
  return processes.decided(functools.partial(_find_readable, directory, fault_of))


def _find_readable(directory: storage.Path, fault_of: Callable[[int], str | None]) -> int:
  newer = {}
  for step in reversed(steps(directory)):
    reason = fault_of(step)
    if reason is None:
      for bad, why in newer.items():
        warnings.warn(f'checkpoint {bad} in {directory} is bad ({why}): using step {step}')
      return step
    newer[step] = reason
  raise UserError(
    f'no good checkpoint in {directory}: ' + ('; '.join(newer.values()) or 'it has no steps')
  )


def restore_parts(
  directory: storage.Path, targets: Mapping[str, Any], metadata: Mapping[str, Any]
) -> dict[str, Any]:
  """Restores the parts named in `targets` from the directory of one step.

  Args:
    directory: folder of the step.
    targets: trees of shapes with dtypes and shardings, by part.
    metadata: of the step, from `read_metadata`.

  Returns:
    The parts, by name.

  Raises:
    UserError: if paths, shapes or dtypes differ from those of the checkpoint, with one line for
      each.
  """
  flat = {name: arrays_file.flatten(tree) for name, tree in targets.items()}
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
      f'arrays in {directory}, saved by audiolm_jax {metadata["version"]}, differ:\n  '
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


def read_metadata(directory: storage.Path) -> dict[str, Any]:
  """Returns the metadata of a step, with its config in the form of this version.

  Args:
    directory: folder of the step.

  Raises:
    UserError: if the metadata are damaged, or have a format that this version cannot read.
  """
  path = directory / METADATA / METADATA  # Orbax gives the file the name of the item
  metadata = storage.read_json(path, _REMEDY)
  metadata.setdefault('fingerprints', {})
  kinds = {'format': int, 'version': str, 'config': dict, 'structure': dict, 'fingerprints': dict}
  bad = [name for name, kind in kinds.items() if not isinstance(metadata.get(name), kind)]
  if not bad and not all(map(_lists_arrays, metadata['structure'].values())):
    bad = ['structure']
  if bad:
    raise UserError(f'{path} has no valid entry {bad[0]}: {_REMEDY}')
  if metadata['format'] != FORMAT:
    raise UserError(
      f'{directory} has format {metadata["format"]}, '
      f'written by audiolm_jax {files.printable(metadata["version"], 80)}; '
      f'audiolm_jax {audiolm_jax.__version__} reads format {FORMAT}'
    )
  metadata['config'] = configs.upgraded(metadata['config'])
  return metadata


def _lists_arrays(leaves: Any) -> bool:
  """Returns whether `leaves` is {path: [shape, dtype]}."""
  is_pair = lambda leaf: isinstance(leaf, list) and list(map(type, leaf)) == [list, str]
  return isinstance(leaves, dict) and all(map(is_pair, leaves.values()))

"""What a checkpoint is, and how it is read: atomic and digested, so that a flipped bit never becomes
a wrong weight. training/saving.py writes it.

`directory`/<step>/ holds one Orbax item for each part of the train state (params, state, opt_state,
ema_params; empty parts are left out), a JSON item `metadata`, and `digest.json` with the SHA-256 of
every other file. The digest is written after the data and before Orbax renames the temporary
directory to its final name: what carries a step's name is whole. On restore the digest is checked;
a bad step is set aside as <step>.rejected and the one before is used.

Every part is stored as a flat {path: array}: empty containers and NamedTuples of optax need no
special care, and a change of structure is reported as a difference of paths.
"""

import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

import audiolm_jax
from audiolm_jax import files
from audiolm_jax.errors import UserError
from audiolm_jax.stages import base
from audiolm_jax.training import configs, exports, sharding

FORMAT = 1
DIGEST, METADATA, MARKER = 'digest.json', 'metadata', 'audiolm_jax.json'
_REMEDY = 'it is damaged, or no checkpoint of this package'
# Orbax's stamps, made after the digest: no weights
UNDIGESTED = ('_CHECKPOINT_METADATA', 'commit_success.txt')


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
    name: {path: [list(x.shape), str(x.dtype)] for path, x in flatten(sharding.unbox(tree)).items()}
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
    directory: a run's checkpoint directory, its workdir, or the folder of a stage in a release.
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
  if exports.holds(directory):
    return _exported(directory, config)
  directory = _checkpoints(directory)
  if step is None:
    step = _newest_readable(directory)
  elif reason := fault(directory / str(step)):
    raise UserError(f'checkpoint {directory / str(step)}: {reason}')
  metadata = read_metadata(directory / str(step))
  if config is None:
    config = configs.rebuild(metadata['config'], metadata['version'])
  else:
    _check_config(directory, metadata['config'], config)
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
  parts = restore_parts(directory / str(step), targets, metadata)
  return base.Model(config, base.Variables(parts[params_name], parts['state']), metadata)


def _exported(directory: str | pathlib.Path, config: Any) -> base.Model:
  model = exports.read_stage(directory)
  if config is not None:
    _check_config(directory, configs.describe(model.config), config)
  return model


def _check_config(directory: str | pathlib.Path, described: Mapping[str, Any], config: Any) -> None:
  """Compares the config of a checkpoint with the given one.

  Raises:
    UserError: with a line for each field that differs.
  """
  if differing := configs.differences(described, configs.describe(config)):
    raise UserError(f'{directory} was trained with another config:\n  ' + '\n  '.join(differing))


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
  return restore_parts(directory / str(step), targets, read_metadata(directory / str(step)))


def _checkpoints(directory: str | pathlib.Path) -> pathlib.Path:
  """Returns the checkpoint directory that is meant: itself, or that of a run's workdir."""
  directory = pathlib.Path(directory).absolute()
  if not (directory / MARKER).is_file() and (directory / 'checkpoints').is_dir():
    return directory / 'checkpoints'
  return directory


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


def restore_parts(
  directory: pathlib.Path, targets: Mapping[str, Any], metadata: Mapping[str, Any]
) -> dict[str, Any]:
  """Restores the parts that `targets` names after comparing their paths and shapes with what was
  saved.
  """
  flat = {name: flatten(tree) for name, tree in targets.items()}
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


def flatten(tree: Any) -> dict[str, Any]:
  """Returns {dotted path: array} in the order of the tree's leaves."""
  leaves, _ = jax.tree.flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}


def read_metadata(directory: pathlib.Path) -> dict[str, Any]:
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
  metadata['config'] = configs.upgraded(metadata['config'])
  return metadata


def _lists_arrays(leaves: Any) -> bool:
  """Returns whether this is {path: [shape, dtype]}."""
  is_pair = lambda leaf: isinstance(leaf, list) and list(map(type, leaf)) == [list, str]
  return isinstance(leaves, dict) and all(map(is_pair, leaves.values()))

"""Models in the format of a release: safetensors without what only training needs.

  FOLDER/
    config.json                   type, format, version; config, fingerprints, step of each stage
    <stage>/model.safetensors     the arrays that inference reads, by dotted path
    digests.json                  SHA-256 of every file

`checkpoints.load_variables` reads FOLDER/<stage> as it reads a stage's checkpoints, so a release
can be used wherever a workdir of trained models can. Orbax checkpoints are for training.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

import audiolm_jax
from audiolm_jax import arrays_file, files, storage
from audiolm_jax.errors import UserError
from audiolm_jax.stages import base
from audiolm_jax.training import configs, sharding

MODEL_TYPE, FORMAT = 'audiolm_jax', 1
CONFIG, WEIGHTS, DIGESTS = 'config.json', 'model.safetensors', 'digests.json'
DTYPES = ('float32', 'float16')
_REMEDY = 'fetch or export it again'


def holds(directory: str | os.PathLike) -> bool:
  """Returns whether `directory` is the folder of a stage in a release.

  Args:
    directory: path of a folder.
  """
  return (storage.path(directory) / WEIGHTS).is_file()


def rounded(model: base.Model, dtype: str) -> base.Model:
  """Returns the model as an export in `dtype` holds it: rounded, as float32, for inference only.

  Args:
    model: trained model.
    dtype: one of DTYPES.

  Raises:
    UserError: for a dtype other than DTYPES, or a value that is not finite in it.
  """
  if dtype not in DTYPES:
    raise UserError(f'dtype={dtype!r}: choose one of {", ".join(DTYPES)}')
  variables = model.config.make().inference(sharding.unbox(model.variables))

  def round_trip(path, array):
    if array.dtype != np.float32:
      return array
    with np.errstate(over='ignore'):
      result = np.asarray(array).astype(dtype).astype(np.float32)
    if not np.isfinite(result).all():
      raise UserError(f'{jax.tree_util.keystr(path)} holds values that {dtype} cannot: use float32')
    return result

  return model._replace(variables=jax.tree.map_with_path(round_trip, variables))


def write_stages(
  folder: pathlib.Path, models: Mapping[str, base.Model], dtype: str, settings: Mapping[str, Any]
) -> None:
  """Writes config.json and the weights of models, which `rounded` made, into an existing folder.

  Args:
    folder: existing folder.
    models: from `rounded`, by stage.
    dtype: one of DTYPES.
    settings: further entries of config.json.
  """
  entries = {}
  for name, model in models.items():
    arrays = {
      path: np.asarray(array).astype(dtype if array.dtype == np.float32 else array.dtype)
      for path, array in arrays_file.flatten(model.variables._asdict()).items()
    }
    (folder / name).mkdir()
    arrays_file.write(folder / name / WEIGHTS, arrays)
    entries[name] = {
      'config': configs.describe(model.config),
      'fingerprints': dict(model.metadata.get('fingerprints', {})),
      'step': model.metadata.get('step', 0),
    }
  described = {
    'model_type': MODEL_TYPE,
    'format': FORMAT,
    'version': audiolm_jax.__version__,
    'dtype': dtype,
    **settings,
    'stages': entries,
  }
  files.write_text(folder / CONFIG, json.dumps(described, indent=1) + '\n')


def write_digests(folder: pathlib.Path) -> None:
  """Writes digests.json for all files in the folder.

  Args:
    folder: folder of the release.
  """
  found = sorted(path for path in folder.rglob('*') if path.is_file() and path.name != DIGESTS)
  digests = {path.relative_to(folder).as_posix(): files.sha256(path) for path in found}
  files.write_text(folder / DIGESTS, json.dumps({'files': digests}, indent=1) + '\n')


def check_digest(folder: storage.Path, name: str) -> None:
  """Compares one file of a release with its digest.

  Args:
    folder: folder of the release.
    name: path of the file in it.

  Raises:
    UserError: if it is missing, not listed, or differs.
  """
  digests = storage.read_json(folder / DIGESTS, _REMEDY).get('files')
  if not isinstance(digests, dict) or not isinstance(digests.get(name), str):
    raise UserError(f'{folder / DIGESTS} does not list {name}: {_REMEDY}')
  if not (folder / name).is_file():
    raise UserError(f'{folder / name} does not exist: {_REMEDY}')
  if storage.digest(folder / name)[1] != digests[name]:
    raise UserError(f'{folder / name} differs from its digest: {_REMEDY}')


def check_all(folder: str | os.PathLike) -> None:
  """Compares every file of a release with its digest.

  Args:
    folder: folder of the release.

  Raises:
    UserError: as `check_digest`, and for a file without a digest.
  """
  folder = storage.path(folder)
  for name in storage.files_below(folder):
    if name != DIGESTS:
      check_digest(folder, name)


def read_config(folder: storage.Path) -> dict[str, Any]:
  """Returns the contents of config.json.

  Args:
    folder: folder of the release.

  Raises:
    UserError: if it is damaged, no release of this package, or of another format.
  """
  path = folder / CONFIG
  data = storage.read_json(path, _REMEDY)
  if data.get('model_type') != MODEL_TYPE:
    shown = files.printable(data.get('model_type'), 80)
    raise UserError(f'{path} describes a model of type {shown}, not {MODEL_TYPE}')
  if data.get('format') != FORMAT:
    raise UserError(
      f'{path} has format {str(data.get("format"))[:80]}; audiolm_jax {audiolm_jax.__version__} '
      f'reads format {FORMAT}: install the version that wrote it'
    )
  stages = data.get('stages')
  if not isinstance(stages, dict) or not all(map(_is_entry, stages.values())):
    raise UserError(f'{path} has no stages as audiolm_jax writes them: {_REMEDY}')
  check_digest(folder, CONFIG)
  return data


def _is_entry(entry: Any) -> bool:
  kinds = {'config': dict, 'fingerprints': dict, 'step': int}
  return isinstance(entry, dict) and all(
    isinstance(entry.get(name), kind) for name, kind in kinds.items()
  )


def read_stage(directory: str | os.PathLike) -> base.Model:
  """Returns the model in the folder of a stage, its arrays in float32.

  Args:
    directory: folder of the stage in a release.

  Raises:
    UserError: if a file is missing or damaged, the config is of no known stage, or the arrays are
      not those of the config.
  """
  if not storage.in_bucket(directory):
    directory = os.path.abspath(directory)  # 'run/..' has the name of its parent
  directory = storage.path(directory)
  folder, name = directory.parent, directory.name
  described = read_config(folder)
  if name not in described['stages']:
    raise UserError(f'{folder / CONFIG} has no stage {name!r}: {_REMEDY}')
  entry = described['stages'][name]
  check_digest(folder, f'{name}/{WEIGHTS}')
  version = str(described.get('version'))
  config = configs.rebuild(configs.upgraded(entry['config']), version)
  stage = config.make()
  template = jax.eval_shape(lambda: stage.inference(sharding.unbox(stage.init(jax.random.key(0)))))
  arrays = _read_arrays(directory / WEIGHTS, arrays_file.flatten(template._asdict()))
  variables = jax.tree.unflatten(jax.tree.structure(template), arrays)
  metadata = {'fingerprints': entry['fingerprints'], 'step': entry['step'], 'version': version}
  return base.Model(config, variables, metadata)


def _read_arrays(path: storage.Path, template: Mapping[str, Any]) -> list[jax.Array]:
  """Returns the arrays of a file in the order and the dtypes of `template`."""
  try:
    with storage.local(path) as local, safe_open(local, 'numpy') as file:
      found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
      wanted = {name: tuple(leaf.shape) for name, leaf in template.items()}
      if found != wanted:
        differing = sorted(set(found.items()) ^ set(wanted.items()))[:3]
        raise UserError(f'{path} holds other arrays than its config, as {differing}: {_REMEDY}')
      return [
        jax.numpy.asarray(file.get_tensor(name), leaf.dtype) for name, leaf in template.items()
      ]
  except (SafetensorError, OSError) as error:
    reason = files.printable(error, 200)
    raise UserError(f'{path} is damaged ({reason}): {_REMEDY}') from error

"""Reads safetensors of other publishers and converts them to this project's variables.

Files are not trusted: declared shapes are compared with those of the model before any weight is
read, so that a bad file costs no memory. The modules of a source are named as its tensors: the path
`encoder.block_0.conv1.kernel` is the tensor `encoder.block.0.conv1.weight`. Weight normalization is
folded.
"""

import pathlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from audiolm_jax import files
from audiolm_jax.errors import UserError

CONFIG, WEIGHTS, INDEX = 'config.json', 'model.safetensors', 'model.safetensors.index.json'
MAX_JSON_BYTES = 2**20  # of config.json and the index; real ones have kilobytes
MAX_HEADER_BYTES = 2**23  # of a safetensors file; that of w2v-BERT 2.0, the largest, has 0.2 MB
MAX_INTEGER = 2**20  # of sizes and rates in config.json
MAX_LAYERS = 256  # of layers and codebooks, which are created one by one
# All are converted to float32, the precision in which the models are tested.
DTYPES = ('F32', 'BF16', 'F16', 'F64')
NORM_NAMES = (
  ('parametrizations.weight.original0', 'parametrizations.weight.original1'),
  ('weight_g', 'weight_v'),
)
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.msgpack', '.h5')


class Entry(NamedTuple):
  """Holds a safetensors header's entry of one tensor."""

  path: pathlib.Path
  shape: tuple[int, ...]
  dtype: str


class Layout(NamedTuple):
  """Describes how a parameter is stored: name, shape from ours, and conversion to ours."""

  name: str
  shape: Callable[[tuple[int, ...]], tuple[int, ...]]
  convert: Callable[[np.ndarray], np.ndarray]


def _split_taps(weight_IOK: np.ndarray) -> np.ndarray:
  """Converts [in, out, 2 * stride] to the taps of `OverlapAdd`, [2, in, stride, out].

  The newer input is last.
  """
  num_inputs, num_outputs, kernel_size = weight_IOK.shape
  return weight_IOK.reshape(num_inputs, num_outputs, 2, kernel_size // 2)[:, :, ::-1].transpose(
    2, 0, 3, 1
  )


# By leaf name. PyTorch stores the axes of convolutions and linear layers in reverse order.
LAYOUTS = {
  'kernel': Layout('weight', lambda shape: shape[::-1], lambda x: x.T),
  'taps': Layout('weight', lambda shape: (shape[1], shape[3], 2 * shape[2]), _split_taps),
  'scale': Layout('weight', lambda shape: shape, lambda x: x),
  'embedding': Layout('weight', lambda shape: shape, lambda x: x),
  'depthwise': Layout('weight', lambda shape: (shape[1], 1, shape[0]), lambda x: x[:, 0].T),
  'factors': Layout('scale', lambda shape: shape, lambda x: x),
  'alpha': Layout('alpha', lambda shape: (1, *shape, 1), lambda x: x.reshape(-1)),
}


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a small JSON file.

  Raises:
    UserError: if it is missing, too large, or no object.
  """
  remedy = f'a pretrained model is a folder with {CONFIG} and {WEIGHTS}, fetch it again'
  return files.read_json(path, remedy, max_bytes=MAX_JSON_BYTES)


def integer(data: Mapping[str, Any], name: str, default: int, high: int = MAX_INTEGER) -> int:
  """Returns the integer `name`, from 1 to `high`, of a config.json; `default` if absent.

  Raises:
    UserError: if it is anything else.
  """
  value = data.get(name, default)
  if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
    raise UserError(f'{CONFIG}: {name}={str(value)[:80]}; expected an integer from 1 to {high:,}')
  return value


def integers(data: Mapping[str, Any], name: str, default: Collection[int]) -> tuple[int, ...]:
  """Returns the short list of positive integers `name` of a config.json; `default` if absent.

  Raises:
    UserError: if it is anything else.
  """
  values = data.get(name, list(default))
  if not isinstance(values, list) or not 1 <= len(values) <= 16:
    raise UserError(f'{CONFIG}: {name}={str(values)[:80]}; expected a list of 1 to 16 integers')
  return tuple(integer({name: value}, name, 1) for value in values)


def positive(data: Mapping[str, Any], name: str, default: float, high: float) -> float:
  """Returns the number `name`, above 0 and below `high`, of a config.json; `default` if absent.

  Raises:
    UserError: if it is anything else.
  """
  value = data.get(name, default)
  if type(value) not in (int, float) or not 0 < value < high:
    raise UserError(f'{CONFIG}: {name}={str(value)[:80]}; expected a number between 0 and {high:g}')
  return float(value)


def bounded(name: str, value: int) -> int:
  """Returns a size derived from several numbers of a config.json.

  Raises:
    UserError: if it exceeds MAX_INTEGER.
  """
  if value > MAX_INTEGER:
    raise UserError(f'{CONFIG}: {name} would be {value:,}, more than {MAX_INTEGER:,}')
  return value


def require(data: Mapping[str, Any], expected: Mapping[str, Any]):
  """Checks that fields of a config.json have the implemented values; absent fields are accepted.

  Raises:
    UserError: naming the fields that do not.
  """
  lines = [
    f'{name}={str(data[name])[:80]}, only {value!r} is implemented'
    for name, value in expected.items()
    if data.get(name, value) != value
  ]
  if lines:
    raise UserError(f'{CONFIG}: ' + '; '.join(lines))


def declared(folder: pathlib.Path) -> dict[str, Entry]:
  """Returns the header entries of all tensors in `folder`, by name, without reading weights.

  Raises:
    UserError: if there are no safetensors (pickles are never opened), an index leads out of the
      folder, a file is truncated or malformed, or a header exceeds MAX_HEADER_BYTES.
  """
  result = {}
  for path in _weight_files(folder):
    _check_header_size(path)
    try:
      with safe_open(path, 'numpy') as file:
        for name in file.keys():
          part = file.get_slice(name)
          if name in result:
            other = result[name].path
            raise UserError(f'{path} and {other} both hold {files.printable(name, 200)}')
          result[name] = Entry(path, tuple(part.get_shape()), part.get_dtype())
    except (SafetensorError, OSError) as error:
      reason = files.printable(error, 200)
      raise UserError(f'{path} is damaged: {reason}; fetch it again') from error
  return result


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  if (folder / WEIGHTS).is_file():
    return [folder / WEIGHTS]
  if (folder / INDEX).is_file():
    names = read_json(folder / INDEX).get('weight_map')
    if not isinstance(names, dict) or not names:
      raise UserError(f'{folder / INDEX} has no weight_map')
    names = sorted({str(name) for name in names.values()})
    for name in names:
      if not re.fullmatch(r'[A-Za-z0-9][\w.-]*\.safetensors', name):
        raise UserError(
          f'{folder / INDEX} names the file {name[:80]!r}: only *.safetensors in its folder are '
          'read'
        )
    if missing := [name for name in names if not (folder / name).is_file()]:
      raise UserError(f'{folder} lacks {missing[:3]}, which {INDEX} names: fetch the folder again')
    return [folder / name for name in names]
  pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
  if pickles:
    raise UserError(
      f'{folder} has {pickles[:3]} but no {WEIGHTS}: such files are not opened, since reading them '
      'can run code (unpickling). Take a revision with safetensors, or convert with '
      '`transformers` (`model.save_pretrained(folder, safe_serialization=True)`) where you trust '
      'the file'
    )
  raise UserError(f'{folder} has neither {WEIGHTS} nor {INDEX}')


def _check_header_size(path: pathlib.Path):
  """Checks the 8 bytes that declare the header's length, before it is allocated."""
  try:
    size = path.stat().st_size
    with path.open('rb') as file:
      header = int.from_bytes(file.read(8), 'little')
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}') from error
  if size < 8 or header > size - 8:
    raise UserError(
      f'{path} has {size:,} bytes but declares a header of {header:,}: truncated, or no safetensors'
    )
  if header > MAX_HEADER_BYTES:
    raise UserError(
      f'{path} declares a header of {header:,} bytes, more than {MAX_HEADER_BYTES:,}: no model '
      'needs it'
    )


def load(folder: pathlib.Path, template: Any, unused: str = '') -> Any:
  """Returns the tensors in `folder` as a tree of float32 arrays like `template`.

  Args:
    folder: contains `model.safetensors`, or several files with an index.
    template: tree of ShapeDtypeStruct whose paths name the tensors.
    unused: regular expression of tensors that inference does not need, present or absent.

  Raises:
    UserError: as `declared`; with a parameter diff, if tensors are missing, unexpected, or of
      another shape or dtype; if a weight is not finite.
  """
  entries = declared(folder)
  leaves, structure = jax.tree.flatten_with_path(template)
  sources, lines, used = [], [], set()
  for path, leaf in leaves:
    stem, _, name = jax.tree_util.keystr(path, simple=True, separator='.').rpartition('.')
    layout = LAYOUTS.get(name) or Layout(name, lambda shape: shape, lambda x: x)
    names = _names(entries, re.sub(r'_(\d+)(?=\.|$)', r'.\1', stem), layout.name)
    lines += _faults(entries, names, layout.shape(tuple(leaf.shape)))
    used |= set(names)
    sources.append((names, layout))
  lines += [
    f'{files.printable(name, 200)}: {list(entries[name].shape)} in the file, (absent) in the model'
    for name in sorted(entries.keys() - used)
    if not re.fullmatch(unused, name)
  ]
  if lines:
    more = [f'and {len(lines) - 20} more'] if len(lines) > 20 else []
    raise UserError(
      f'{folder} does not hold the tensors that its {CONFIG} asks for:\n  '
      + '\n  '.join(lines[:20] + more)
    )
  arrays = [jnp.asarray(layout.convert(_weight(entries, names))) for names, layout in sources]
  return jax.tree.unflatten(structure, arrays)


def _names(entries: Mapping[str, Entry], stem: str, leaf: str) -> tuple[str, ...]:
  """Returns the tensor of a parameter, or (magnitude, direction) of a weight-normalized one."""
  if leaf == 'weight' and f'{stem}.weight' not in entries:
    for pair in NORM_NAMES:
      names = tuple(f'{stem}.{name}' for name in pair)
      if all(name in entries for name in names):
        return names
  return (f'{stem}.{leaf}' if stem else leaf,)


def _faults(
  entries: Mapping[str, Entry], names: tuple[str, ...], shape: tuple[int, ...]
) -> list[str]:
  """Returns one line per tensor of a parameter that is missing or has another shape or dtype."""
  lines = []
  for name in names:
    if name not in entries:
      lines.append(f'{name}: (absent) in the file, {list(shape)} in the model')
      continue
    entry = entries[name]
    if entry.dtype not in DTYPES:
      lines.append(f'{name}: {entry.dtype} in the file, a weight is one of {DTYPES}')
    is_magnitude = len(names) == 2 and name == names[0]
    matches = entry.shape == shape or (
      is_magnitude
      and len(entry.shape) == len(shape)
      and all(n in (1, m) for n, m in zip(entry.shape, shape))
    )
    if not matches:
      lines.append(f'{name}: {list(entry.shape)} in the file, {list(shape)} in the model')
  return lines


def _weight(entries: Mapping[str, Entry], names: tuple[str, ...]) -> np.ndarray:
  """Reads one parameter as float32, folding weight normalization."""
  arrays = []
  for name in names:
    with safe_open(entries[name].path, 'numpy') as file:
      array = np.asarray(file.get_tensor(name)).astype(np.float32)
    if not np.isfinite(array).all():
      raise UserError(f'{entries[name].path}: {name} holds NaN or infinity')
    arrays.append(array)
  if len(arrays) == 1:
    return arrays[0]
  magnitude, direction = arrays
  axes = tuple(axis for axis, size in enumerate(magnitude.shape) if size == 1)
  return magnitude * direction / np.sqrt(np.sum(np.square(direction), axis=axes, keepdims=True))

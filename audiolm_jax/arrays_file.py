"""Named arrays and text about them in one safetensors file, with a digest over both.

A file is written whole or not at all, and a flipped bit in it is refused when it is read.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from audiolm_jax import storage
from audiolm_jax.errors import UserError


def fingerprint(arrays: Any) -> str:
  """Returns the SHA-256 of a tree of arrays, 16 hex digits: names, shapes, types and values."""
  digest = hashlib.sha256()
  for path, leaf in sorted(
    jax.tree_util.tree_leaves_with_path(arrays), key=lambda item: str(item[0])
  ):
    digest.update(f'{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}'.encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:16]


def flatten(tree: Any) -> dict[str, Any]:
  """Returns {dotted path: array} in the order of the tree's leaves."""
  leaves, _ = jax.tree.flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}


def save(path: str | os.PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
  """Writes arrays and metadata; a file of that name is replaced, missing folders are made.

  The fingerprint of the arrays is stored in the metadata as 'digest'.
  """
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  metadata = {**metadata, 'digest': fingerprint(arrays)}
  storage.make_folder(storage.path(path).parent)
  with storage.atomically(path) as partial:
    write(partial, arrays, metadata | {'check': _check(metadata)})


def write(
  path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
  """Writes arrays and metadata as a safetensors file; equal contents give equal bytes.

  `safetensors.numpy.save_file` would write the metadata in a random order, to a new file that only
  its owner can read.

  Args:
    path: path of the file; an existing one is overwritten and keeps its mode.
    arrays: arrays by name.
    metadata: texts by name.
  """
  data = memoryview(serialize(dict(arrays), metadata and dict(metadata)))
  start = 8 + int.from_bytes(data[:8], 'little')
  header = json.loads(bytes(data[8:start]))
  if metadata:
    header['__metadata__'] = dict(sorted(metadata.items()))
  text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
  text += b' ' * (-len(text) % 8)  # the format aligns the arrays to 8 bytes
  with open(path, 'wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    file.write(data[start:])


def load(
  path: str | os.PathLike, names: Iterable[str], remedy: str, optional: Iterable[str] = ()
) -> tuple[dict[str, jax.Array], dict[str, str]]:
  """Returns the arrays of these names, those of `optional` if there, and metadata with 'digest'.

  Raises UserError where the file is damaged; its message ends with `remedy`.
  """
  try:
    with storage.local(path) as local, safe_open(local, 'numpy') as file:
      metadata = file.metadata()
      there = [*names, *(name for name in optional if name in file.keys())]
      arrays = {name: file.get_tensor(name) for name in there}
    whole = fingerprint(arrays) == metadata['digest'] and metadata.get(
      'check', _check(metadata)
    ) == _check(metadata)
  except (SafetensorError, KeyError, TypeError) as error:
    raise UserError(f'{path} is damaged ({error!r}): delete it and {remedy}') from error
  if not whole:
    raise UserError(f'{path} is damaged (its digest differs): delete it and {remedy}')
  return {name: jax.numpy.asarray(array) for name, array in arrays.items()}, metadata


def _check(metadata: Mapping[str, str]) -> str:
  """Returns the digest of the metadata without its own entry."""
  text = sorted(item for item in metadata.items() if item[0] != 'check')
  return hashlib.sha256(json.dumps(text).encode()).hexdigest()

"""Named arrays come back as they were, or are refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from audiolm_jax import arrays_file
from audiolm_jax.errors import UserError


def test_arrays_and_metadata_come_back_and_nothing_else_is_left(tmp_path):
  path = str(tmp_path / 'folder' / 'a.safetensors')
  arrays = {'b': np.arange(6, dtype=np.int32).reshape(2, 3), 'a': jnp.ones(4)}
  for scale in (1, 2):  # the second takes the place of the first
    arrays_file.save(path, {name: scale * array for name, array in arrays.items()}, {'x': 'y'})
  found, metadata = arrays_file.load(path, ('a', 'b'), 'make it again')
  np.testing.assert_array_equal(found['b'], [[0, 2, 4], [6, 8, 10]])
  np.testing.assert_array_equal(found['a'], [2, 2, 2, 2])
  assert metadata['x'] == 'y' and metadata['digest'] == arrays_file.fingerprint(found)
  assert [file.name for file in (tmp_path / 'folder').iterdir()] == ['a.safetensors']


def test_equal_contents_are_equal_bytes_in_any_order(tmp_path):
  """safetensors itself has 40,320 orders for this metadata, and draws one at each call."""
  arrays = {'b': np.ones((3, 5), np.float16), 'a': np.arange(3), 'ä"': np.zeros((), np.float32)}
  metadata = {f'key {n}': f'value "{n}" ü' for n in range(8)}
  written = set()
  for order in (1, -1):
    given, texts = (dict([*mapping.items()][::order]) for mapping in (arrays, metadata))
    arrays_file.write(tmp_path / 'a.safetensors', given, texts)
    written.add((tmp_path / 'a.safetensors').read_bytes())
  assert len(written) == 1
  with safe_open(tmp_path / 'a.safetensors', 'numpy') as file:
    assert file.metadata() == metadata and set(file.keys()) == set(arrays)
    for name, array in arrays.items():
      np.testing.assert_array_equal(file.get_tensor(name), array, strict=True)


@pytest.mark.parametrize('at', [-1, 20])
def test_a_flipped_bit_is_refused_with_the_remedy(tmp_path, at):
  path = tmp_path / 'a.safetensors'
  arrays_file.save(path, {'a': np.ones(4, np.float32)}, {'x': 'y'})
  content = bytearray(path.read_bytes())
  content[at] ^= 1
  path.write_bytes(content)
  with pytest.raises(UserError, match='a.safetensors is damaged .*: delete it and make it again'):
    arrays_file.load(path, ('a',), 'make it again')


def test_fingerprints_see_values_names_and_types():
  trees = [
    {'a': np.zeros(2)},
    {'a': np.ones(2)},
    {'b': np.zeros(2)},
    {'a': np.zeros(2, np.float32)},
  ]
  prints = [arrays_file.fingerprint(tree) for tree in trees]
  assert len(set(prints)) == 4 and prints[0] == arrays_file.fingerprint({'a': np.zeros(2)})

"""What the project leans on in the pinned tensorstore and Orbax: an update that changes it fails here.

Each test names the code that would have to change with it.
"""

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from audiolm_jax import storage
from audiolm_jax.storage import folders
from audiolm_jax.training import checkpoints
from tests import bucket_server


@pytest.fixture
def kv(bucket):
  """Returns the store of tensorstore, and a key in it."""
  return storage.client()._split(bucket / 'a')


def test_orbax_calls_back_after_the_arrays_and_before_its_stamp(place):
  """saving.Checkpointer: the digests cover all arrays; on disks the folder has no name yet."""
  folder, seen = place / 'step', []
  listed = lambda: seen.append(set(storage.files_below(folder)))
  options = ocp.AsyncOptions(post_finalization_callback=listed)
  orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)
  arrays = ocp.args.StandardSave({'w': jnp.arange(4.0)})
  orbax.save(folder, args=ocp.args.Composite(params=arrays, metadata=ocp.args.JsonSave({})))
  orbax.wait_until_finished()
  orbax.close()
  [before], after = seen, set(storage.files_below(folder))
  if storage.in_bucket(place):
    assert folders.STAMP in after - before and after - before <= set(checkpoints.UNDIGESTED)
    assert any(name.startswith('params/') for name in before) and 'metadata/metadata' in before
  else:
    assert not before and 'metadata/metadata' in after


def test_a_conditional_write_tells_by_its_generation_whether_it_was_done(kv):
  """bucket.swap."""
  store, key = kv
  absent = store.read(key).result().stamp.generation
  first = store.write(key, b'1', if_equal=absent).result().generation
  assert first and first == store.read(key).result().stamp.generation
  assert store.write(key, b'2', if_equal=absent).result().generation == b''
  second = store.write(key, b'2', if_equal=first).result().generation
  assert second not in (b'', first, absent)
  assert store.write(key, None, if_equal=first).result().generation == b''
  assert store.write(key, None, if_equal=second).result().generation == absent
  assert store.read(key).result().stamp.generation == absent


def test_a_refused_listing_is_empty_and_a_refused_read_is_an_error(kv, faults):
  """bucket.keys, which reads after a listing: if a listing raises, it need not."""
  store, key = kv
  store.write(key, b'1').result()
  faults({'status': 403})
  assert store.list().result() == []
  with pytest.raises(ValueError, match='PERMISSION_DENIED'):
    store.read(key).result()


def test_errors_are_told_by_their_words(kv):
  """bucket._explained and bucket.of_other_size."""
  store, key = kv
  store.write(key, b'12').result()
  with pytest.raises(ValueError, match='OUT_OF_RANGE'):
    store.read(key, byte_range=slice(2, None)).result()
  missing = storage.client()._opened(bucket_server.MISSING)
  with pytest.raises(ValueError, match='NOT_FOUND|404'):
    missing.write('a', b'').result()

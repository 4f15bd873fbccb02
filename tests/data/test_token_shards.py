import errno
import itertools
import os
import pathlib
import resource

import numpy as np
import pytest

from audiolm_jax import files
from audiolm_jax.data import pipeline, token_shards
from audiolm_jax.stages.base import Feature

METADATA = {'codec': 'c0dec', 'codec_rate': 50.0}


def example(i):
  random = np.random.default_rng(i)
  return {
    'semantic': random.integers(0, 1024, 20 + i),
    'codes': random.integers(0, 70_000 if i == 2 else 1024, (2 * (20 + i), 3)).astype(np.int32),
    'label': i,
    'level': np.float32(0.5),
  }


@pytest.fixture
def folder(tmp_path):
  for shard in (1, 0):
    token_shards.write_shard(tmp_path, 'train', shard, 2, (example(i) for i in range(shard, 7, 2)))
  token_shards.write_manifest(tmp_path, 'train', 2, METADATA)
  return tmp_path


def test_what_was_written_is_read(folder):
  source = token_shards.TokenShards(folder, 'train', expected={'codec': 'c0dec'}, verify=True)
  assert len(source) == 7 and source.metadata == METADATA
  for read, i in zip((source[k] for k in range(7)), [0, 2, 4, 6, 1, 3, 5], strict=True):
    for name, value in example(i).items():
      np.testing.assert_array_equal(read[name], value)
    assert (
      read['codes'].dtype == read['semantic'].dtype == np.int32
      and read['level'].dtype == np.float32
    )
  assert sorted(path.name for path in folder.iterdir()) == [
    'train-00000-of-00002.array_record',
    'train-00001-of-00002.array_record',
    'train.json',
  ]


def test_batches_of_tokens(folder):
  features = {'codes': Feature((10, 2), np.int32, 50.0), 'semantic': Feature((5,), np.int32, 25.0)}
  batch = next(
    pipeline.batches(token_shards.TokenShards(folder, 'train'), features, batch_size=3, seed=0)
  )
  assert batch['codes'].shape == (3, 10, 2) and batch['semantic'].shape == (3, 5)


def test_codes_take_two_bytes():
  codes = np.zeros((500, 12), np.int32)
  assert len(token_shards.encode({'codes': codes})) < 2 * codes.size + 100


def test_missing_and_cut_shards_are_named(folder):
  shard = folder / 'train-00001-of-00002.array_record'
  data = shard.read_bytes()
  shard.write_bytes(data[:-100])
  with pytest.raises(ValueError, match='train-00001-of-00002.* bytes, the manifest says'):
    token_shards.TokenShards(folder, 'train')
  shard.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
  with pytest.raises(ValueError, match='train-00001-of-00002.*SHA-256'):
    token_shards.TokenShards(folder, 'train', verify=True)
  shard.unlink()
  with pytest.raises(ValueError, match='train-00001-of-00002.*is missing'):
    token_shards.TokenShards(folder, 'train')
  with pytest.raises(ValueError, match='train-00001-of-00002.*every shard'):
    token_shards.write_manifest(folder, 'train', 2, METADATA)
  with pytest.raises(ValueError, match='test.json is missing'):
    token_shards.TokenShards(folder, 'test')


def test_a_damaged_record_is_none_and_never_wrong(folder):
  shard = folder / 'train-00000-of-00002.array_record'
  data = shard.read_bytes()
  order, num_bad = [0, 2, 4, 6, 1, 3, 5], 0
  # between the records the file is zeros
  content = [at for at in range(len(data)) if any(data[at : at + 4])]
  for at in content[200 :: len(content) // 12]:
    shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    try:
      source = token_shards.TokenShards(folder, 'train', max_bad_fraction=1.0)
      read = [source[k] for k in range(7)]
    except RuntimeError:  # the index of the whole file is gone
      continue
    assert sorted(source.bad) == [k for k in range(7) if read[k] is None]
    num_bad += len(source.bad)
    for got, i in zip(read, order, strict=True):
      assert got is None or all((got[name] == value).all() for name, value in example(i).items())
  assert num_bad >= 4


def test_the_manifest_reads_no_shard_that_its_writer_has_digested(tmp_path, monkeypatch):
  for shard in range(3):
    token_shards.write_shard(tmp_path, 'train', shard, 3, [example(shard)])
  paths = token_shards.written(tmp_path, 'train')
  shared = lambda: token_shards.write_manifest(tmp_path, 'train', 3, METADATA)
  entries = [pathlib.Path(f'{path}.json') for path in paths]
  entries[1].unlink()  # as of an earlier version
  entries[2].write_text('{"file": "other"}')
  digested = []
  sha256 = files.sha256
  monkeypatch.setattr(files, 'sha256', lambda path: digested.append(path) or sha256(path))
  shared()
  assert [str(path) for path in digested] == paths[1:]
  assert not any(entry.exists() for entry in entries)
  first = (tmp_path / 'train.json').read_text()
  shared()  # of all shards, read once more
  assert (tmp_path / 'train.json').read_text() == first
  assert len(token_shards.TokenShards(tmp_path, 'train', verify=True)) == 3


def test_shards_in_a_bucket(bucket, faults, folder):
  for shard in (1, 0):
    token_shards.write_shard(bucket, 'train', shard, 2, (example(i) for i in range(shard, 7, 2)))
  token_shards.write_manifest(bucket, 'train', 2, METADATA)
  assert (bucket / 'train.json').read_bytes() == (folder / 'train.json').read_bytes()
  paths = token_shards.written(bucket, 'train')
  assert [os.path.basename(path) for path in paths] == [
    os.path.basename(path) for path in token_shards.written(folder, 'train')
  ]
  assert token_shards.count(paths) == 7
  source = token_shards.TokenShards(bucket, 'train', verify=True, max_bad_fraction=0.5)
  on_disk = token_shards.TokenShards(folder, 'train')
  for index in range(7):
    for name, value in on_disk[index].items():
      np.testing.assert_array_equal(source[index][name], value)
  assert source.num_threads > on_disk.num_threads
  faults({'match': 'GET', 'status': 403})
  with pytest.raises(OSError, match='record 3: .*403.*mend the storage'):
    source[3]
  with pytest.raises(OSError, match='no access to bucket'):
    token_shards.count(paths)
  faults()
  assert source[3] is not None and source.bad == {}
  shard = bucket / 'train-00001-of-00002.array_record'
  data = bytearray(shard.read_bytes())
  at = next(at for at in range(300, len(data)) if all(data[at : at + 8]))
  data[at] ^= 1
  for cut in (data[:-1], data + b'0', data[:0]):
    shard.write_bytes(bytes(cut))
    with pytest.raises(ValueError, match=f'00001.* has {len(cut)} bytes, the manifest says'):
      token_shards.TokenShards(bucket, 'train')
  shard.write_bytes(bytes(data))
  damaged = token_shards.TokenShards(bucket, 'train', max_bad_fraction=1.0)
  assert None in [damaged[index] for index in range(7)] and damaged.bad
  with pytest.raises(ValueError, match='train-00001-of-00002.*SHA-256'):
    token_shards.TokenShards(bucket, 'train', verify=True)
  shard.unlink()
  with pytest.raises(ValueError, match='train-00001-of-00002.*is missing: encode or copy'):
    token_shards.TokenShards(bucket, 'train')
  with pytest.raises(ValueError, match='train-00001-of-00002.*every shard'):
    token_shards.write_manifest(bucket, 'train', 2, METADATA)


@pytest.fixture
def many(tmp_path):
  for shard in range(40):
    token_shards.write_shard(tmp_path, 'train', shard, 40, [example(shard)])
  token_shards.write_manifest(tmp_path, 'train', 40, METADATA)
  return tmp_path


@pytest.fixture
def few_open_files():
  """Sets the soft limit so that eight more files can be opened."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

  def lower():
    # The limit is one of the numbers of descriptors, which may have gaps.
    opened = set(map(int, os.listdir('/dev/fd')))
    free = (number for number in itertools.count() if number not in opened)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, 8, None)), hard))

  yield lower
  resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_opening_more_shards_than_the_soft_limit_raises_it(many, few_open_files):
  few_open_files()
  limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  source = token_shards.TokenShards(many, 'train')
  assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == limit + 40
  assert [int(source[k]['label']) for k in range(40)] == list(range(40))


def test_too_many_open_files_are_no_damage(many, few_open_files):
  source = token_shards.TokenShards(many, 'train', max_bad_fraction=1.0)
  few_open_files()
  match = r'record \d+: open.. failed: Too many open files.*ulimit -n'
  with pytest.raises(OSError, match=match) as error:
    [source[k] for k in range(40)]
  assert error.value.errno == errno.EMFILE
  assert source.bad == {}


@pytest.mark.parametrize(
  'message, number',
  [
    ('pread() failed: Input/output error; reading x', errno.EIO),
    ('open() failed: Stale file handle', errno.ESTALE),
  ],
)
def test_errors_of_the_storage_are_no_damage(folder, message, number):
  source = token_shards.TokenShards(folder, 'train', max_bad_fraction=1.0)

  class Failing:
    def __len__(self):
      return 7

    def __getitem__(self, i):
      raise RuntimeError(message)

  source._source = Failing()
  with pytest.raises(OSError, match='mend the storage') as error:
    source[0]
  assert error.value.errno == number
  assert source.bad == {}


def test_tokens_of_another_codec_are_refused(folder):
  with pytest.raises(ValueError, match="codec is 'c0dec', this run has 'other'"):
    token_shards.TokenShards(folder, 'train', expected={'codec': 'other'})


def test_a_failed_shard_leaves_nothing(tmp_path):
  with pytest.raises(ValueError, match="'text' is of type"):
    token_shards.write_shard(tmp_path, 'train', 0, 1, [example(0), {'text': 'no'}])
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'record', [b'', b'\xff\xff\xff\x7f', b'\x02\x00\x00\x00{}x', b'\x02\x00\x00\x00[]']
)
def test_foreign_bytes_are_refused(record):
  with pytest.raises(ValueError, match='encode the data again'):
    token_shards.decode(record)


def test_objects_are_never_decoded():
  header = b'{"a": ["|O", [1]]}'
  with pytest.raises(ValueError, match=r"'\|O'"):
    token_shards.decode(len(header).to_bytes(4, 'little') + header + bytes(8))


@pytest.mark.parametrize(
  'text',
  [
    '{"metadata": {}',
    '[]',
    '{}',
    '{"metadata": [], "shards": []}',
    '{"metadata": {}, "shards": [3]}',
    '{"metadata": {}, "shards": [{"num_bytes": "9", "sha256": ""}]}',
    '[' * 100_000,
  ],
)
def test_torn_and_hostile_manifests_are_named(folder, text):
  (folder / 'train.json').write_text(text)
  with pytest.raises(ValueError, match='train.json .*: encode the data again'):
    token_shards.TokenShards(folder, 'train')


@pytest.mark.parametrize(
  'header',
  [
    '[' * 10_000,
    '[]',
    '{"a": 3}',
    '{"a": ["<i2", [-1]]}',
    '{"a": ["<i2", [99999999999]]}',
    '{"a": ["O", [1]]}',
    '{"a": ["<i2", [true]]}',
    '{"a": ["<i2", [0.5]]}',
    '{"a": [["<i2"], [1]]}',
    '{"a": ["<i2", 1]}',
  ],
)
def test_hostile_records_are_named(header):
  record = len(header).to_bytes(4, 'little') + header.encode() + bytes(2)
  with pytest.raises(ValueError, match='not a record of encoded examples'):
    token_shards.decode(record)

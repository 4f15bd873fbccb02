"""F5 to F7, F9, F14, F15, F17 to F19, F21: damaged files, full disks, failing storage, two runs in
one place.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import pathlib
import resource
import shutil
import subprocess
import time

import jax
import numpy as np
import pytest
import soundfile
from safetensors import SafetensorError

from audiolm_jax import kmeans, storage
from audiolm_jax.data import token_shards
from audiolm_jax.storage import folders
from audiolm_jax.tokenizer import clusters_path
from audiolm_jax.training import checkpoints, configs, metrics_writer, saving, sharding
from tests import test_tokenizer
from tests.faults import runs
from tests.stages import test_contract
from tests.training import toy, toy_run

QUANTIZER = test_contract.SOUNDSTREAM.quantizer
GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.fixture(scope='module')
def half_way(tmp_path_factory):
  """A run cut at step 32: its checkpoints are of steps 24 and 30."""
  directory = tmp_path_factory.mktemp('half_way') / 'run'
  with pytest.raises(runs.Cut):
    toy_run.train(directory, runs.cut_at(32))
  assert checkpoints.steps(directory / 'checkpoints') == [24, 30]
  return directory


@pytest.fixture
def half_way_there(request, place):
  """A copy of `half_way`, or the same in a bucket."""
  if not storage.in_bucket(place):
    return shutil.copytree(request.getfixturevalue('half_way'), place / 'run')
  with pytest.raises(runs.Cut):
    toy_run.train(place / 'run', runs.cut_at(32))
  return place / 'run'


@pytest.mark.parametrize('damage', [runs.flip, runs.truncate, runs.delete])
def test_f5_every_damaged_file_is_found(damage, half_way_there, outcome):
  """Whatever file of the newest step is damaged: it is refused by name, and the step before is
  used.
  """
  random = np.random.default_rng(5)
  directory = half_way_there / 'checkpoints'
  listing = folders.of(directory).listing(30)
  found = runs.files_of(checkpoints.step_folder(directory, 30))
  silent = 0
  for path in dict.fromkeys([*found, listing]):
    if path == listing and storage.in_bucket(path) and damage is not runs.truncate:
      continue  # a step is there by what its listing says: without it, or with another name, none is
    whole = path.read_bytes()
    damage(path, random)
    named = path.name
    if path == listing:
      if checkpoints.step_fault(directory, 30) is None:
        path.write_bytes(whole)
        continue  # a flip between its values changes nothing that it says
      named = ''  # a flip in what it says of another file looks like one in that
    with pytest.warns(
      UserWarning, match=r'checkpoint 30 .*' + named + r'.* continuing from step 24'
    ):
      silent += saving._reject_bad(directory) != 24
    _undo_rejection(directory)
    path.write_bytes(whole)
  assert len(found) > 20 and not silent
  outcome(
    'F5', f'{damage.__name__}: {len(found)} files, each refused by name, 0 restored in silence'
  )


def _undo_rejection(directory):
  if storage.in_bucket(directory):
    rejected = directory / '30.rejected.json'
    (directory / '30.json').write_bytes(rejected.read_bytes())
    rejected.unlink()
  else:
    (directory / '30.rejected').rename(directory / '30')


def test_f5_the_run_goes_on_from_the_step_before(half_way_there, reference, outcome):
  newest = checkpoints.step_folder(half_way_there / 'checkpoints', 30)
  largest = max(runs.files_of(newest), key=lambda path: len(path.read_bytes()))
  runs.flip(largest, np.random.default_rng(0))
  with pytest.warns(UserWarning, match='checkpoint 30 .* continuing from step 24'):
    result = toy_run.train(half_way_there)
  runs.assert_same_run(half_way_there, result, reference)
  outcome('F5', 'resumed from 24 instead of 30, bitwise')


def test_f6_damaged_clusters_are_refused(place, outcome):
  """Every byte of the safetensors file matters: no flip of it is read as other centroids."""

  quantizer = test_tokenizer.save_clusters(place)
  path = clusters_path(place)
  whole, refused, same = path.read_bytes(), 0, 0
  random = np.random.default_rng(6)
  for at in random.choice(len(whole), 200, replace=False):
    damaged = bytearray(whole)
    damaged[at] ^= 1 << int(random.integers(8))
    path.write_bytes(damaged)
    try:
      found = kmeans.load(path)
    except ValueError as error:
      assert str(path) in str(error)
      refused += 1
    else:  # a name of something that nobody reads
      same += 1
      assert (found.layer, found.model) == (7, 'abc')
      for one, other in zip(found.quantizer, quantizer, strict=True):
        np.testing.assert_array_equal(one, other)
  assert refused > 150
  outcome(
    'F6',
    f'clusters: {refused} of 200 flipped bits refused with the path; {same} changed nothing that is read',
  )


class SmallDisk:
  """Full from `fill` to `empty`: a tmpfs of 2 MiB for the checkpoints of a run."""

  name = 'tmpfs of 2 MiB full'
  reason = 'No space left'  # in messages

  def __init__(self, run, faults):
    del faults
    self._directory = run / 'checkpoints'
    self._filler = self._directory / '..filler'

  def fill(self):
    self._filler.write_bytes(bytes(shutil.disk_usage(self._directory).free))

  def empty(self):
    self._filler.unlink()

  def __enter__(self):
    self._directory.mkdir(parents=True)
    options = ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs']
    if subprocess.run(['mount', *options, str(self._directory)]).returncode:
      pytest.skip('a tmpfs cannot be mounted here')
    return self

  def __exit__(self, *unused):
    subprocess.run(['umount', '-l', str(self._directory)], check=True)


class ReadOnlyBucket:
  """The same of a bucket, which has no limit, but may refuse writes: GCS does so by 403 where the
  project is not paid for, or the account lost its role.
  """

  name = 'writes refused (403)'
  reason = '(no access to bucket|PERMISSION_DENIED)'  # of our client, of Orbax's

  def __init__(self, run, faults):
    self._faults = faults

  def fill(self):
    self._faults({'match': 'POST', 'status': 403})

  def empty(self):
    self._faults()

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._faults()


@pytest.fixture
def limited(place, request):
  """Returns a run in a storage that can be full."""
  in_bucket = storage.in_bucket(place)
  faults = request.getfixturevalue('faults') if in_bucket else None
  with (ReadOnlyBucket if in_bucket else SmallDisk)(place / 'run', faults) as found:
    yield found


def _wait_for_step_of(run, step):
  while step not in checkpoints.steps(run / 'checkpoints'):
    time.sleep(0.01)


def test_f7_full_disk(reference, place, limited, monkeypatch, outcome):
  """The storage fills up before the save of step 18 and has room again at batch 33: bitwise, and
  nothing half left.
  """
  monkeypatch.setattr(toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, max_failed_saves=100))
  monkeypatch.setattr(saving, 'BACK_OFF_SECONDS', 0.05)
  run, meanwhile = place / 'run', []

  class Filling(toy_run.SlowBatches):
    def __next__(self):
      index = self.get_state()['next_index']
      if index == 16 and not meanwhile:
        _wait_for_step_of(run, 12)
        limited.fill()
      if index == 33 and not meanwhile:
        meanwhile.append(checkpoints.steps(run / 'checkpoints'))
        limited.empty()
      return super().__next__()

  with pytest.warns(UserWarning, match=f'{limited.reason}.*training continues') as found:
    result = toy_run.train(run, Filling)
  failures = sum('training continues' in str(warning.message) for warning in found)
  assert meanwhile == [[6, 12]] and failures > 0
  assert checkpoints.steps(run / 'checkpoints') == [42, 48] and runs.num_remains(run) == 0
  runs.assert_same_run(run, result, reference)
  outcome(
    'F7',
    f'{limited.name} from step 16 to 33: {failures} warnings, steps {meanwhile[0]} kept, then saved again; bitwise',
  )


def test_f7_a_disk_that_stays_full_stops_the_run(place, limited, monkeypatch, outcome):
  monkeypatch.setattr(saving, 'BACK_OFF_SECONDS', 0.01)
  run = place / 'run'

  class Filling(toy.Batches):
    def __next__(self):
      if self.get_state()['next_index'] == 8:
        _wait_for_step_of(run, 6)
        limited.fill()
      return super().__next__()

  with pytest.warns(UserWarning, match='training continues'):
    with pytest.raises(
      OSError, match=rf'could not be written .*{limited.reason}.* complete steps: \[6\]'
    ):
      toy_run.train(run, Filling)
  limited.empty()
  assert checkpoints.steps(run / 'checkpoints') == [6]
  if not storage.in_bucket(place):  # where deletions are refused, too, the next start makes them
    assert runs.num_remains(run) == 0
  outcome('F7', f'{limited.name} for good: OSError after 3 retries, step 6 whole')


def test_f15_a_checkpoint_of_the_committed_format(place, outcome):
  """Format 1, written once and committed, is read to the bit; another format is refused with the
  versions named.
  """
  directory = place / 'checkpoints'
  folder, digest = _golden(directory)
  config = toy.Config(width=2, widths=(2, 1))
  values = {'hidden': np.arange(6.0, dtype=np.float32).reshape(2, 3), 'output': np.float32(0.1)}
  checkpointer = saving.Checkpointer(directory)
  targets = {
    'params': jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.float32), values)
  }
  restored = checkpointer.restore(targets, configs.describe(config))
  jax.tree.map(np.testing.assert_array_equal, restored.parts['params'], values)
  assert restored.data_position == {'next_index': 3} and restored.metadata['version'] == '0.1.0'
  checkpointer.close()

  path = folder / 'metadata' / 'metadata'
  path.write_text(
    path.read_text().replace('"format": 1', '"format": 2').replace('"0.1.0"', '"7.0.0"')
  )
  listed = json.loads(digest.read_text())
  listed['files']['metadata/metadata'] = list(storage.digest(path))
  digest.write_text(json.dumps(listed))
  checkpointer = saving.Checkpointer(directory)
  with pytest.raises(
    ValueError, match='format 2, written by audiolm_jax 7.0.0; audiolm_jax .* reads format 1'
  ):
    checkpointer.restore(targets, configs.describe(config))
  checkpointer.close()
  outcome(
    'F15',
    'committed checkpoint of format 1 read to the bit; format 2 of "7.0.0" refused with both versions',
  )


def _golden(directory):
  """Copies the checkpoint, and returns its folder and the file of its digests."""
  if not storage.in_bucket(directory):
    runs.copy(GOLDEN / 'format_1', directory)
    return directory / '3', directory / '3' / checkpoints.DIGEST
  folder = runs.copy(GOLDEN / 'format_1' / '3', directory / 'data' / '3-0abc-1')
  listed = json.loads((folder / checkpoints.DIGEST).read_text())
  (folder / checkpoints.DIGEST).unlink()
  storage.write_text(folder / folders.STAMP, '')
  storage.write_text(directory / '3.json', json.dumps({'folder': folder.name, **listed}))
  marker = (GOLDEN / 'format_1' / checkpoints.MARKER).read_text()
  storage.write_text(directory / checkpoints.MARKER, marker)
  return folder, directory / '3.json'


FAILING_IO = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* One in EVERY writes, syncs and renames of checkpoint files fails, as long as the file SICK exists. */
static int fails(int fd, const char *path) {
  static unsigned long state = 88172645463325252UL;
  char link[64], name[4096];
  if (!path) {
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, name, sizeof name - 1);
    if (n < 0) return 0;
    name[n] = 0;
    path = name;
  }
  if (!strstr(path, "orbax-checkpoint-tmp") || access(getenv("SICK"), F_OK)) return 0;
  unsigned long x = __atomic_add_fetch(&state, 0x9E3779B97F4A7C15UL, __ATOMIC_SEQ_CST);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9UL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBUL;
  if ((x ^ (x >> 31)) % strtoul(getenv("EVERY"), 0, 10)) return 0;
  errno = EIO;
  return 1;
}
#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))
ssize_t write(int fd, const void *b, size_t n) { return fails(fd, 0) ? -1 : \
REAL(ssize_t, write, int, const void *, size_t)(fd, b, n); }
ssize_t pwrite64(int fd, const void *b, size_t n, off_t o) { return fails(fd, 0) ? -1 : \
REAL(ssize_t, pwrite64, int, const void *, size_t, off_t)(fd, b, n, o); }
int fsync(int fd) { return fails(fd, 0) ? -1 : REAL(int, fsync, int)(fd); }
int fdatasync(int fd) { return fails(fd, 0) ? -1 : REAL(int, fdatasync, int)(fd); }
int rename(const char *a, const char *b) { return fails(-1, a) ? -1 : \
REAL(int, rename, const char *, const char *)(a, b); }
int mkdir(const char *a, unsigned m) { return fails(-1, a) ? -1 : REAL(int, mkdir, const char *, unsigned)(a, m); }
"""


@pytest.mark.parametrize('every', [10, 200])
def test_f17_storage_that_errs(every, reference, tmp_path, outcome):
  """One in `every` calls into the file system fails with EIO up to batch 30, below Python: saves
  are tried again.
  """
  compiler = shutil.which('cc')
  if compiler is None:
    pytest.skip('no C compiler')
  (tmp_path / 'fail.c').write_text(FAILING_IO)
  library, sick = tmp_path / 'fail.so', tmp_path / 'sick'
  subprocess.run(
    [compiler, '-shared', '-fPIC', '-w', '-O1', '-o', library, tmp_path / 'fail.c', '-ldl'],
    check=True,
  )
  sick.touch()
  environment = os.environ | {'LD_PRELOAD': str(library), 'SICK': str(sick), 'EVERY': str(every)}
  program = 'import sys; from tests.faults import test_storage; test_storage.train_while_sick(*sys.argv[1:])'
  done = subprocess.run(
    [runs.sys.executable, '-c', program, str(tmp_path / 'run'), str(sick)],
    cwd=GOLDEN.parents[2],
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  failures, meanwhile = done.stdout.split()[-2:]
  assert int(failures) > 0
  result = toy_run.train(tmp_path / 'run')  # nothing left to do: it loads what was saved
  runs.assert_same_run(tmp_path / 'run', result, reference)
  outcome(
    'F17',
    f'1 in {every} calls EIO up to step 30: {failures} failed saves, {meanwhile} whole meanwhile; bitwise',
  )


def train_while_sick(workdir, sick):
  import warnings

  jax.config.update('jax_num_cpu_devices', 8)
  saving.BACK_OFF_SECONDS = 0.05
  toy_run.TRAIN = dataclasses.replace(toy_run.TRAIN, max_failed_saves=100)
  whole = set()

  class Sick(toy.Batches):
    def __next__(self):
      if pathlib.Path(sick).exists():
        whole.update(checkpoints.steps(pathlib.Path(workdir) / 'checkpoints'))
        if self.get_state()['next_index'] == 30:
          pathlib.Path(sick).unlink()
      time.sleep(0.03)
      return super().__next__()

  with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter('always')
    toy_run.train(workdir, Sick)
  print(sum('training continues' in str(warning.message) for warning in found), len(whole))


def test_f18_telemetry_never_stops_training(reference, place, monkeypatch, outcome):
  """The log's disk is full, TensorBoard raises, and the clock jumps back a day."""
  monkeypatch.setattr(toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, tensorboard=True))
  now = time.time

  def full(self, line):
    raise OSError(errno.ENOSPC, 'No space left on device')

  class Broken:
    def __init__(self, *unused):
      pass

    def __getattr__(self, name):
      raise RuntimeError('TensorBoard fails')

  import tensorboardX

  monkeypatch.setattr(tensorboardX, 'SummaryWriter', Broken)
  monkeypatch.setattr(metrics_writer.MetricsWriter, '_write_line', full)
  calls = []
  monkeypatch.setattr(
    time, 'time', lambda: now() - (86_400 if calls.append(0) or len(calls) > 3 else 0)
  )
  with pytest.warns(UserWarning, match='metrics are no longer written'):
    result = toy_run.train(place)
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.device_get(result.variables),
    jax.device_get(reference[0].variables),
  )
  outcome(
    'F18',
    'full log disk, TensorBoard that raises, clock a day back: one warning each, state bitwise',
  )


def test_f19_the_second_run_refuses(place, tmp_path, outcome):
  log = tmp_path / 'log'
  first = runs.start(runs.slow_toy, place / 'run', log=log)
  runs.wait_for_step(first, place / 'run', 1)
  began = time.monotonic()
  with pytest.raises(
    ValueError, match=rf'in use by process {first.pid} on .*: choose another workdir, or, if that'
  ):
    toy_run.train(place / 'run')
  seconds = time.monotonic() - began
  first.kill()
  first.join()
  result = toy_run.train(place / 'run')  # the lock of a dead process is taken over
  assert result.step == 48
  outcome(
    'F19',
    f'refused in {seconds:.2f} s with process and host; the lock of a killed one is taken over',
  )


def test_f9_shards_are_refused_before_the_first_step(place, outcome):
  for shard in range(2):
    rows = [{'semantic': np.arange(20) + i} for i in range(3)]
    token_shards.write_shard(place, 'train', shard, 2, rows)
  token_shards.write_manifest(place, 'train', 2, {})
  path = storage.path(token_shards.shard_path(place, 'train', 1, 2))
  whole = path.read_bytes()
  for size in np.random.default_rng(9).integers(0, len(whole), 50):
    path.write_bytes(whole[:size])
    with pytest.raises(
      ValueError, match=f'{path.name} has {size} bytes, the manifest says {len(whole)}'
    ):
      token_shards.TokenShards(place, 'train')
  path.unlink()
  with pytest.raises(ValueError, match=f'{path.name} is missing'):
    token_shards.TokenShards(place, 'train')
  outcome('F9', 'a shard cut at 50 places, and a missing one: refused by name when opened')


@pytest.mark.parametrize(
  'name, changes',
  [
    ('semantic', {'num_clusters': 21}),
    ('semantic', {'transformer': dataclasses.replace(test_contract.TRANSFORMER, num_layers=3)}),
    ('soundstream', {'quantizer': dataclasses.replace(QUANTIZER, codebook_size=16)}),
  ],
)
def test_f14_another_config_names_what_differs(name, changes, place, outcome):
  """The config's field where the configs differ; the leaves, where only what they make does."""
  config = test_contract.CASES[name][0]
  other = dataclasses.replace(config, **changes)
  variables = [jax.eval_shape(c.make().init, jax.random.key(0)) for c in (config, other)]
  saved, targets = ({'params': v.params, 'state': v.state} for v in map(sharding.unbox, variables))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), saved)
  directory = place / 'checkpoints'
  checkpointer = saving.Checkpointer(directory)
  checkpointer.save(1, zeros, None, {'config': configs.describe(config), 'fingerprints': {}})
  checkpointer.close()
  checkpointer = saving.Checkpointer(directory)
  field = next(iter(changes))
  with pytest.raises(
    ValueError, match=rf'(?s)was trained with another config.*{field}.*: checkpoint .*, now '
  ):
    checkpointer.restore(targets, configs.describe(other))
  with pytest.raises(
    ValueError, match=r'(?s)differ:\n  (params|state)\.\S+: checkpoint \(\(.*, now \('
  ) as caught:
    checkpointer.restore(targets, configs.describe(config))
  checkpointer.close()
  outcome('F14', f'{name} {field}: field named; {str(caught.value).count(chr(10))} leaves listed')


@contextlib.contextmanager
def _no_more_than_4_kib():
  """Lets longer files fail below Python (RLIMIT_FSIZE), as a disk that fills up."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  previous = runs.signal.signal(runs.signal.SIGXFSZ, runs.signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    runs.signal.signal(runs.signal.SIGXFSZ, previous)


@contextlib.contextmanager
def _no_writes(faults):
  faults({'match': 'POST', 'status': 403})
  yield
  faults()


def test_f21_an_interrupted_export_leaves_nothing_half(request, place, outcome):
  """Clusters, JSON, and on disks codes and audio: nothing under the final name, then whole."""
  from audiolm_jax import audio, codes_file

  test_tokenizer.save_clusters(place)
  clusters = clusters_path(place).read_bytes()
  random = np.random.default_rng(21)
  header = codes_file.Header(16_000, 320, 12, 1024, 320 * 500, '0' * 16)
  writers = {
    'kmeans.safetensors': _save_large_clusters,
    'text.json': lambda path: storage.write_text(path, 'x' * 10_000),
  }
  if storage.in_bucket(place):
    broken = functools.partial(_no_writes, request.getfixturevalue('faults'))
  else:
    broken = _no_more_than_4_kib
    writers |= {
      'codes.alm': lambda path: codes_file.save(path, header, random.integers(0, 1024, (500, 12))),
      'wave.wav': lambda path: audio.save(
        path, random.normal(size=16_000).astype(np.float32) / 9, 16_000
      ),
    }
  storage.make_folder(place / 'out')
  for name, write in writers.items():
    path = place / 'out' / name
    with broken(), pytest.raises((OSError, SafetensorError, soundfile.SoundFileError)):
      write(path)
    assert not storage.is_there(path), name
    write(path)  # with room again the same call makes it
    assert len(path.read_bytes()) > 4096
  assert clusters_path(place).read_bytes() == clusters
  assert storage.files_below(place / 'out') == sorted(writers)
  outcome('F21', f'{", ".join(writers)}: nothing under the final name, then whole')


def _save_large_clusters(path):
  from audiolm_jax import kmeans

  quantizer = kmeans.SemanticQuantizer(
    np.zeros(64, np.float32), np.ones(64, np.float32), np.ones((64, 64), np.float32)
  )
  kmeans.save(path, quantizer, layer=7, frames_per_token=2, model='abc')

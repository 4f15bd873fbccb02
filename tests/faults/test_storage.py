"""F5 to F7, F9, F14, F15, F17 to F19, F21: damaged files, full disks, failing storage, two runs in
one place.
"""

import contextlib
import dataclasses
import errno
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

from audiolm_jax import files, kmeans
from audiolm_jax.data import token_shards
from audiolm_jax.tokenizer import clusters_path
from audiolm_jax.training import checkpoints, configs, metrics_writer, saving, sharding
from tests import test_tokenizer
from tests.faults import runs
from tests.stages import test_contract
from tests.training import toy, toy_run

GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.fixture(scope='module')
def half_way(tmp_path_factory):
  """A run cut at step 32: its checkpoints are of steps 24 and 30."""
  directory = tmp_path_factory.mktemp('half_way') / 'run'
  with pytest.raises(runs.Cut):
    toy_run.train(directory, runs.cut_at(32))
  assert checkpoints.steps(directory / 'checkpoints') == [24, 30]
  return directory


@pytest.mark.parametrize('damage', [runs.flip, runs.truncate, runs.delete])
def test_f5_every_damaged_file_is_found(damage, half_way, tmp_path, outcome):
  """Whatever file of the newest step is damaged: it is refused by name, and the step before is
  used.
  """
  random = np.random.default_rng(5)
  directory = shutil.copytree(half_way / 'checkpoints', tmp_path / 'checkpoints')
  names = [path.relative_to(directory / '30') for path in runs.files_of(directory / '30')]
  silent = 0
  for name in names:
    shutil.rmtree(directory / '30', ignore_errors=True)
    shutil.copytree(half_way / 'checkpoints' / '30', directory / '30')
    damage(directory / '30' / name, random)
    named = name.name
    if named == checkpoints.DIGEST:
      if checkpoints.fault(directory / '30') is None:
        continue  # a flip between its values changes nothing that it says
      named = ''  # a flip in what it says of another file looks like one in that
    with pytest.warns(
      UserWarning, match=r'checkpoint 30 .*' + named + r'.* continuing from step 24'
    ):
      silent += saving._reject_bad(directory) != 24
    shutil.rmtree(directory / '30.rejected')
  assert len(names) > 20 and not silent
  outcome(
    'F5', f'{damage.__name__}: {len(names)} files, each refused by name, 0 restored in silence'
  )


def test_f5_the_run_goes_on_from_the_step_before(half_way, reference, tmp_path, outcome):
  directory = shutil.copytree(half_way, tmp_path / 'run')
  largest = max(
    runs.files_of(directory / 'checkpoints' / '30'), key=lambda path: path.stat().st_size
  )
  runs.flip(largest, np.random.default_rng(0))
  with pytest.warns(UserWarning, match='checkpoint 30 .* continuing from step 24'):
    result = toy_run.train(directory)
  runs.assert_same_run(directory, result, reference)
  outcome('F5', 'resumed from 24 instead of 30, bitwise')


def test_f6_damaged_clusters_are_refused(tmp_path, outcome):
  """Every byte of the safetensors file matters: no flip of it is read as other centroids."""

  quantizer = test_tokenizer.save_clusters(tmp_path)
  path = clusters_path(tmp_path)
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


@contextlib.contextmanager
def small_disk(directory, megabytes):
  directory.mkdir(parents=True)
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', str(directory)]
  )
  if mounted.returncode:
    pytest.skip('a tmpfs cannot be mounted here')
  try:
    yield
  finally:
    subprocess.run(['umount', '-l', str(directory)], check=True)


def test_f7_full_disk(reference, tmp_path, monkeypatch, outcome):
  """The disk fills up before the save of step 18 and has room again at batch 33: bitwise, and
  nothing half left.
  """
  monkeypatch.setattr(toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, max_failed_saves=100))
  run = tmp_path / 'run'
  filler = run / 'checkpoints' / '..filler'
  seen = []

  class Filling(toy.Batches):
    def __next__(self):
      index = self.get_state()['next_index']
      if index == 16 and not seen:
        _fill(run / 'checkpoints', filler, 12)
      if index == 33 and filler.exists():
        seen.append(
          [path.name for path in (run / 'checkpoints').iterdir() if path.name[0].isdigit()]
        )
        filler.unlink()
      return super().__next__()

  with (
    small_disk(run / 'checkpoints', 2),
    pytest.warns(UserWarning, match=r'No space left.*training continues') as found,
  ):
    result = toy_run.train(run, Filling)
    whole = checkpoints.steps(run / 'checkpoints')
    shutil.copytree(run / 'checkpoints', tmp_path / 'kept')
  failures = sum('training continues' in str(warning.message) for warning in found)
  meanwhile = sorted(int(name) for [names] in [seen] for name in names if name.isdigit())
  assert meanwhile == [6, 12] and failures > 0
  assert whole == [42, 48] and sorted(p.name for p in (tmp_path / 'kept').iterdir()) == [
    '42',
    '48',
    checkpoints.MARKER,
  ]
  runs.assert_same_run(run, result, reference)
  outcome(
    'F7',
    f'tmpfs of 2 MiB full from step 16 to 33: {failures} warnings, steps {meanwhile} kept, then saved again; bitwise',
  )


def _fill(directory, filler, step):
  """Fills the disk once `step` is whole."""
  while step not in checkpoints.steps(directory):
    time.sleep(0.01)
  filler.write_bytes(bytes(shutil.disk_usage(directory).free))


def test_f7_a_disk_that_stays_full_stops_the_run(tmp_path, monkeypatch, outcome):
  monkeypatch.setattr(saving, 'BACK_OFF_SECONDS', 0.01)
  run = tmp_path / 'run'

  class Filling(toy.Batches):
    def __next__(self):
      if self.get_state()['next_index'] == 8:
        _fill(run / 'checkpoints', run / 'checkpoints' / '..filler', 6)
      return super().__next__()

  with small_disk(run / 'checkpoints', 2), pytest.warns(UserWarning, match='training continues'):
    with pytest.raises(
      OSError, match=r'could not be written .*No space left.* complete steps: \[6\]'
    ):
      toy_run.train(run, Filling)
    assert sorted(path.name for path in (run / 'checkpoints').iterdir())[1:] == [
      '6',
      'audiolm_jax.json',
    ]
  outcome('F7', 'for good: OSError after 3 retries, step 6 whole, no temporary files')


def test_f15_a_checkpoint_of_the_committed_format(tmp_path, outcome):
  """Format 1, written once and committed, is read to the bit; another format is refused with the
  versions named.
  """
  directory = shutil.copytree(GOLDEN / 'format_1', tmp_path / 'checkpoints')
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

  path = directory / '3' / 'metadata' / 'metadata'
  path.write_text(
    path.read_text().replace('"format": 1', '"format": 2').replace('"0.1.0"', '"7.0.0"')
  )
  digest = directory / '3' / checkpoints.DIGEST
  listed = json.loads(digest.read_text())
  listed['files']['metadata/metadata'] = [path.stat().st_size, files.sha256(path)]
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


def test_f18_telemetry_never_stops_training(reference, tmp_path, monkeypatch, outcome):
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
    result = toy_run.train(tmp_path)
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.device_get(result.variables),
    jax.device_get(reference[0].variables),
  )
  outcome(
    'F18',
    'full log disk, TensorBoard that raises, clock a day back: one warning each, state bitwise',
  )


def test_f19_the_second_run_refuses(tmp_path, outcome):
  log = tmp_path / 'log'
  first = runs.start(runs.slow_toy, tmp_path / 'run', log=log)
  runs.wait_for_step(first, tmp_path / 'run', 1)
  began = time.monotonic()
  with pytest.raises(
    ValueError, match=rf'in use by process {first.pid} on .*: choose another workdir, or, if that'
  ):
    toy_run.train(tmp_path / 'run')
  seconds = time.monotonic() - began
  first.kill()
  first.join()
  result = toy_run.train(tmp_path / 'run')  # the lock of a dead process is taken over
  assert result.step == 48
  outcome(
    'F19',
    f'refused in {seconds:.2f} s with process and host; the lock of a killed one is taken over',
  )


def test_f9_shards_are_refused_before_the_first_step(tmp_path, outcome):
  for shard in range(2):
    rows = [{'semantic': np.arange(20) + i} for i in range(3)]
    token_shards.write_shard(tmp_path, 'train', shard, 2, rows)
  token_shards.write_manifest(tmp_path, 'train', 2, {})
  path = pathlib.Path(token_shards.shard_path(tmp_path, 'train', 1, 2))
  whole = path.read_bytes()
  for size in np.random.default_rng(9).integers(0, len(whole), 50):
    path.write_bytes(whole[:size])
    with pytest.raises(
      ValueError, match=f'{path.name} has {size} bytes, the manifest says {len(whole)}'
    ):
      token_shards.TokenShards(tmp_path, 'train')
  path.unlink()
  with pytest.raises(ValueError, match=f'{path.name} is missing'):
    token_shards.TokenShards(tmp_path, 'train')
  outcome('F9', 'a shard cut at 50 places, and a missing one: refused by name when opened')


@pytest.mark.parametrize(
  'name, changes',
  [
    ('semantic', {'num_clusters': 21}),
    ('semantic', {'transformer': dataclasses.replace(test_contract.TRANSFORMER, num_layers=3)}),
    ('soundstream', {'codebook_size': 16}),
  ],
)
def test_f14_another_config_names_what_differs(name, changes, tmp_path, outcome):
  """The config's field where the configs differ; the leaves, where only what they make does."""
  config = test_contract.CASES[name][0]
  other = dataclasses.replace(config, **changes)
  variables = [jax.eval_shape(c.make().init, jax.random.key(0)) for c in (config, other)]
  saved, targets = ({'params': v.params, 'state': v.state} for v in map(sharding.unbox, variables))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), saved)
  directory = tmp_path / 'checkpoints'
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


def test_f21_an_interrupted_export_leaves_nothing_half(tmp_path, outcome):
  """Files over 4 KiB fail below Python (RLIMIT_FSIZE, as a disk that fills up): clusters, codes and
  audio.
  """
  from audiolm_jax import audio, codes_file

  test_tokenizer.save_clusters(tmp_path)
  clusters = clusters_path(tmp_path).read_bytes()
  random = np.random.default_rng(21)
  header = codes_file.Header(16_000, 320, 12, 1024, 320 * 500, '0' * 16)
  writers = {
    'codes.alm': lambda path: codes_file.save(path, header, random.integers(0, 1024, (500, 12))),
    'wave.wav': lambda path: audio.save(
      path, random.normal(size=16_000).astype(np.float32) / 9, 16_000
    ),
    'kmeans.safetensors': lambda path: _save_large_clusters(path),
    'text.json': lambda path: files.write_text(path, 'x' * 10_000),
  }
  (tmp_path / 'out').mkdir()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  previous = runs.signal.signal(runs.signal.SIGXFSZ, runs.signal.SIG_IGN)
  try:
    for name, write in writers.items():
      resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
      with pytest.raises((OSError, SafetensorError, soundfile.SoundFileError)):
        write(tmp_path / 'out' / name)
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
      assert not (tmp_path / 'out' / name).exists(), name
      write(tmp_path / 'out' / name)  # with room again the same call makes it
      assert (tmp_path / 'out' / name).stat().st_size > 4096
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    runs.signal.signal(runs.signal.SIGXFSZ, previous)
  assert clusters_path(tmp_path).read_bytes() == clusters
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == sorted(writers)
  outcome('F21', f'{", ".join(writers)}: nothing under the final name, then whole')


def _save_large_clusters(path):
  from audiolm_jax import kmeans

  quantizer = kmeans.SemanticQuantizer(
    np.zeros(64, np.float32), np.ones(64, np.float32), np.ones((64, 64), np.float32)
  )
  kmeans.save(path, quantizer, layer=7, frames_per_token=2, model='abc')

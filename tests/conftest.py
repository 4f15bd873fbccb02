"""Eight fake CPU devices, jaxtyping annotations checked at run time, and one compilation cache for
all test runs of a user.
"""

import gc
import importlib.metadata
import importlib.util
import os
import uuid

# In the environment, so that subprocesses agree bitwise. Compiling takes most of the tests' time,
# running little of it: LLVM does not optimize; fused loops are emitted without MLIR, which takes
# 1.7 s of processor time instead of 4.6 s for the gradient of a two-layer language model; and a
# program is one LLVM module instead of 32, which takes three quarters of the time. By XLA's other
# scheduler for CPUs each device may come to another collective first, and all wait forever
# (docs/log.md). Eight devices on a busy core wait long for one another, and XLA would abort the
# process after 40 s. A flag that XLA, or that of libtpu, does not know ends the process without a word.
HAS_OTHER_EMITTERS = importlib.metadata.version('jaxlib').startswith('0.10.') and (
  importlib.util.find_spec('libtpu') is None
)
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 '
  + '--xla_cpu_use_fusion_emitters=false ' * HAS_OTHER_EMITTERS
  + '--xla_cpu_parallel_codegen_split_count=1 '
  '--xla_cpu_enable_concurrency_optimized_scheduler=false '
  '--xla_cpu_collective_call_terminate_timeout_seconds=300',
)
# JAX keeps by default only what took a second to compile; almost nothing here does.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
# Programs that a test runs without the folder below must not write into the user's other folder.
os.environ.setdefault('AUDIOLM_COMPILATION_CACHE', '0')

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook('audiolm_jax', 'beartype.beartype')
from experiments.cli import compilation_cache

# Shared through the environment by the workers of pytest-xdist, by the programs that tests start
# and by later runs: each program is compiled once, until it or the version of JAX changes.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  folder = compilation_cache.user_folder().with_name('compiled_by_tests')
  compilation_cache.keep(str(folder))
  compilation_cache.shrink(folder, compilation_cache.MAX_BYTES)

jax.config.update('jax_num_cpu_devices', 8)
# Two guards of JAX are set where they prove something, not for all tests. The transfer guard is on in
# tests/training/test_step.py; public functions take numpy arrays, which JAX moves implicitly.
# `numpy_rank_promotion` raises in tests/stages/test_contract.py, for the losses of all stages; tests
# themselves, and metrics, write numpy's short forms.


def pytest_collection_modifyitems(items):
  """The longest test begins first, or at the end one worker waits for the other."""
  items.sort(key=lambda item: 'test_full_run' not in item.nodeid)


def pytest_collection_finish():
  """Modules live as long as the process: no collection of garbage looks at their objects again."""
  gc.collect()
  gc.freeze()


@pytest.fixture
def umask():
  """Sets the umask 027: members of the group may read new files, others may not."""
  previous = os.umask(0o027)
  yield
  os.umask(previous)


@pytest.fixture(scope='session')
def bucket_address():
  """Runs a bucket on this machine and returns its address (tests/bucket_server.py)."""
  from tests import bucket_server

  with bucket_server.running() as address:
    yield address


@pytest.fixture
def bucket(bucket_address):
  """Returns an empty folder of a bucket, and ends the faults of the test."""
  from audiolm_jax import storage
  from tests import bucket_server

  yield storage.path(f'gs://bucket/{uuid.uuid4().hex[:8]}')
  bucket_server.set_faults(bucket_address)


@pytest.fixture(params=['disk', 'bucket'])
def place(request, tmp_path):
  """Returns an empty folder, once on a disk and once in a bucket."""
  if request.param == 'bucket':
    return request.getfixturevalue('bucket')
  folder = tmp_path / 'disk'
  folder.mkdir()
  return folder


@pytest.fixture
def faults(bucket_address):
  """Returns a function that sets the faults of the bucket."""
  from tests import bucket_server

  return lambda *faults: bucket_server.set_faults(bucket_address, *faults)

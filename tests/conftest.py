"""Eight fake CPU devices, and jaxtyping annotations checked at run time."""

import os

# In the environment, so that subprocesses agree bitwise. Compiling takes most of the tests' time,
# running little of it. By XLA's other scheduler for CPUs each device may come to another collective
# first, and all wait forever (docs/log.md). Eight devices on a busy core wait long for one another,
# and XLA would abort the process after 40 s.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 --xla_cpu_enable_concurrency_optimized_scheduler=false '
  '--xla_cpu_collective_call_terminate_timeout_seconds=300',
)

import jax
from jaxtyping import install_import_hook

jax.config.update('jax_num_cpu_devices', 8)
install_import_hook('audiolm_jax', 'beartype.beartype')


def pytest_collection_modifyitems(items):
  """The longest test begins first, or at the end one worker waits for the other."""
  items.sort(key=lambda item: 'test_full_run' not in item.nodeid)

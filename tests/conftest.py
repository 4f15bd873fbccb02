"""Eight fake CPU devices, and jaxtyping annotations checked at run time."""

import os

# Compiling takes most of the tests' time, running little of it. In the environment, so that subprocesses agree bitwise.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import jax
from jaxtyping import install_import_hook

jax.config.update('jax_num_cpu_devices', 8)
install_import_hook('audiolm_jax', 'beartype.beartype')

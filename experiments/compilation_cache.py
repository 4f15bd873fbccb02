"""Keeps compiled programs between runs: the next one with the same shapes compiles nothing."""

import os
import shlex
import stat

from audiolm_jax.errors import UserError


def keep(directory: str | None):
  """Caches what XLA compiles in `directory`, for this program, those it starts, and later runs."""
  if directory is not None:
    import jax  # slow, and not needed by `check`

    check(directory)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = directory
    jax.config.update('jax_compilation_cache_dir', directory)


def check(directory: str):
  """Creates a folder for compiled programs, if missing.

  Raises:
    UserError: if other users can write to it, because the programs in it are executed.
  """
  if '://' in directory:
    return
  os.makedirs(directory, mode=0o755, exist_ok=True)
  status = os.stat(directory)
  if status.st_uid not in (os.geteuid(), 0):
    raise UserError(
      f'compilation cache {directory} belongs to user {status.st_uid}, whose programs would be '
      'executed: choose a folder of your own'
    )
  if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
    raise UserError(
      f'others can write to the compilation cache {directory}, and their programs would be '
      f'executed: empty it and run `chmod go-w {shlex.quote(directory)}`, or choose another'
    )

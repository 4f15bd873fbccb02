"""Keeps compiled programs between runs: the next one with the same shapes compiles nothing."""

import os
import pathlib
import shlex
import stat
import sys

from audiolm_jax import storage
from audiolm_jax.errors import UserError

OFF = 'AUDIOLM_COMPILATION_CACHE'  # environment variable; 0: `keep_for_user` keeps nothing
MAX_BYTES = 2 * 2**30  # of the user's folder, when a program starts


def keep_for_user():
  """Keeps what XLA compiles in the user's cache folder, which shrinks to MAX_BYTES first.

  The environment can choose another folder, JAX_COMPILATION_CACHE_DIR, whose size JAX limits, or
  none, AUDIOLM_COMPILATION_CACHE=0. Where the folder cannot be written, a line on stderr says so.
  """
  if os.environ.get('JAX_COMPILATION_CACHE_DIR') or os.environ.get(OFF) == '0':
    return
  import jax

  try:
    folder = user_folder()
    check(str(folder))
    shrink(folder, MAX_BYTES)
  except (OSError, RuntimeError) as error:
    print(f'compiled programs are not kept: {error} ({OFF}=0 turns this off)', file=sys.stderr)
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  # One clip needs many small programs, which take less than JAX's minimum of a second each.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def user_folder() -> pathlib.Path:
  """Returns the folder of compiled programs in XDG_CACHE_HOME, or else in ~/.cache."""
  root = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '')
  # A relative path is invalid by the XDG specification.
  root = root if root.is_absolute() else pathlib.Path.home() / '.cache'
  return root / 'audiolm_jax' / 'compiled'


def shrink(folder: pathlib.Path, max_bytes: int):
  """Deletes the files that were read longest ago, until the others have at most `max_bytes`."""
  found = []
  for path in folder.rglob('*'):
    try:
      status = path.lstat()
    except FileNotFoundError:  # deleted by another program
      continue
    if stat.S_ISREG(status.st_mode):
      found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
  kept = 0
  for _, size, path in sorted(found, reverse=True):
    kept += size
    if kept > max_bytes:
      path.unlink(missing_ok=True)


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
    storage.path(directory)  # prepares the client of a bucket
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

"""Compiled programs are kept where nobody else can write."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments import command_line, compilation_cache

ROOT = pathlib.Path(__file__).parents[2]


def test_what_was_compiled_is_found_again(tmp_path):
  """In processes of their own: the first fills the cache that is cold, the second takes from it."""
  program = (
    'import sys, jax, jax.monitoring; from experiments import compilation_cache; seen = []\n'
    'jax.monitoring.register_event_listener(lambda name, **more: seen.append(name))\n'
    'compilation_cache.keep(sys.argv[1]); jax.jit(lambda x: x * 3 + 1)(2.0)\n'
    'print(*(sum(name.endswith(kind) for name in seen) for kind in ("/cache_hits", "/cache_misses")))'
  )
  environment = os.environ | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  counts = []
  for _ in range(2):
    command = [sys.executable, '-c', program, str(tmp_path / 'cache')]
    done = subprocess.run(
      command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True
    )
    counts.append([int(number) for number in done.stdout.split()])
  (cold_hits, cold_misses), (warm_hits, warm_misses) = counts
  assert cold_hits == 0 and cold_misses > 0 and warm_hits == cold_misses and warm_misses == 0


@pytest.mark.parametrize('mode', [0o777, 0o1777, 0o775, 0o757])
def test_a_compilation_cache_that_others_can_write_is_refused(tmp_path, mode):
  cache = tmp_path / 'a cache'
  cache.mkdir()
  cache.chmod(mode)
  with pytest.raises(
    ValueError, match="others can write to the compilation cache .*chmod go-w '.*a cache'"
  ):
    compilation_cache.check(str(cache))
  subprocess.run(['chmod', 'go-w', cache], check=True)  # the remedy
  compilation_cache.check(str(cache))


def test_a_compilation_cache_is_made_so_that_others_cannot_write(tmp_path):
  previous = os.umask(0)
  try:
    compilation_cache.check(str(tmp_path / 'new' / 'cache'))
  finally:
    os.umask(previous)
  assert (tmp_path / 'new' / 'cache').stat().st_mode & 0o777 == 0o755
  compilation_cache.check('gs://bucket/cache')  # who may write there is the bucket's matter


def test_a_compilation_cache_of_another_user_is_refused(tmp_path, monkeypatch):
  if os.geteuid() == 0:
    os.chown(tmp_path, 12_345, -1)
  owner = tmp_path.stat().st_uid
  monkeypatch.setattr(os, 'geteuid', lambda: owner + 1)
  with pytest.raises(
    ValueError, match=f'belongs to user {owner}, whose programs would be executed'
  ):
    compilation_cache.check(str(tmp_path))


def test_programs_refuse_a_shared_cache_of_the_environment_and_print_no_escapes(
  tmp_path, monkeypatch
):
  cache = tmp_path / 'c\x1b[2J'
  cache.mkdir()
  cache.chmod(0o777)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(cache))
  called = []
  with pytest.raises(SystemExit, match=r'error: others can write to .*c\\x1b\[2J'):
    command_line.run(lambda: called.append(1))
  assert not called

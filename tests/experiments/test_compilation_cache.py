"""Compiled programs are kept between runs, within a bound, where nobody else can write."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from experiments.cli import command_line, compilation_cache

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize('call', ['keep(sys.argv[1])', 'keep_for_user()'])
def test_what_was_compiled_is_found_again(call, tmp_path):
  """In processes of their own: the first fills the cache that is cold, the second takes from it."""
  program = (
    'import sys, jax, jax.monitoring; from experiments.cli import compilation_cache; seen = []\n'
    'jax.monitoring.register_event_listener(lambda name, **more: seen.append(name))\n'
    f'compilation_cache.{call}; jax.jit(lambda x: x * 3 + 1)(2.0)\n'
    'print(*(sum(name.endswith(kind) for name in seen) for kind in ("/cache_hits", "/cache_misses")))'
  )
  environment = os.environ | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  environment |= {'XDG_CACHE_HOME': str(tmp_path), compilation_cache.OFF: ''}
  environment['JAX_COMPILATION_CACHE_DIR'] = ''  # not the folder that all tests share
  counts = []
  for _ in range(2):
    command = [sys.executable, '-c', program, str(tmp_path / 'cache')]
    done = subprocess.run(
      command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True
    )
    counts.append([int(number) for number in done.stdout.split()])
  (cold_hits, cold_misses), (warm_hits, warm_misses) = counts
  assert cold_hits == 0 and cold_misses > 0 and warm_hits == cold_misses and warm_misses == 0


@pytest.fixture
def told(monkeypatch) -> dict:
  """Holds what JAX's configuration is told, instead of JAX."""
  found = {}
  monkeypatch.setattr(jax.config, 'update', found.__setitem__)
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  monkeypatch.delenv(compilation_cache.OFF, raising=False)
  return found


def test_the_users_folder_is_that_of_the_xdg_specification(told, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  folders = {str(tmp_path / 'x'): 'x', 'relative': '.cache', '': '.cache'}
  for value, root in folders.items():
    monkeypatch.setenv('XDG_CACHE_HOME', value)
    compilation_cache.keep_for_user()
    assert told['jax_compilation_cache_dir'] == f'{tmp_path}/{root}/audiolm_jax/compiled'
    assert os.stat(told['jax_compilation_cache_dir']).st_mode & 0o022 == 0


@pytest.mark.parametrize(
  'name, value', [(compilation_cache.OFF, '0'), ('JAX_COMPILATION_CACHE_DIR', '/elsewhere')]
)
def test_the_environment_turns_the_users_folder_off(name, value, told, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv(name, value)
  compilation_cache.keep_for_user()
  assert not told and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_said_and_no_program_ends(
  told, tmp_path, monkeypatch, capsys
):
  (tmp_path / 'audiolm_jax').write_text('a file')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  compilation_cache.keep_for_user()
  assert not told and 'compiled programs are not kept' in capsys.readouterr().err


def test_the_files_read_longest_ago_are_deleted_first(tmp_path):
  for number, size in enumerate((400, 300, 200, 100)):
    path = tmp_path / ('folder' * (number == 1)) / str(number)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (1000 + number, 500))
  compilation_cache.shrink(tmp_path, max_bytes=300)
  assert sorted(path.name for path in tmp_path.rglob('*') if path.is_file()) == ['2', '3']
  compilation_cache.shrink(tmp_path, max_bytes=300)
  assert len(list(tmp_path.iterdir())) == 3


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

"""The wheel: no top-level package but ours, all programs, and one console command."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments import __main__ as console

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> pathlib.Path:
  """A folder that holds what the wheel installs."""
  folder = tmp_path_factory.mktemp('wheel')
  options = ['build', '--build-base', str(folder), '--build-lib', str(folder / 'lib')]
  build = [sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', str(folder), *options]
  subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
  return folder / 'lib'


def test_a_wheel_installs_one_package_with_all_programs_and_their_data(installed):
  assert {path.name for path in installed.iterdir()} == {'audiolm_jax'}
  files = {
    path.relative_to(ROOT)
    for path in (ROOT / 'experiments').rglob('*')
    if path.suffix in ('.py', '.html')
  }
  assert all((installed / 'audiolm_jax' / path).is_file() for path in files)


def run(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  program = [sys.executable, '-m', 'audiolm_jax.experiments', *arguments]
  environment['PYTHONPATH'] = str(folder)
  return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)


def test_an_installed_program_runs_and_its_remedies_are_commands_of_the_installation(installed):
  assert 'usage: audiolm PROGRAM' in run(installed, '--help').stdout
  done = run(installed, 'generate', '--mode=unconditional', '--output=out', '--workdir=nowhere')
  assert done.returncode == 1 and 'error: ' in done.stderr
  assert 'audiolm ' in done.stderr and 'python -m experiments' not in done.stderr


def test_every_program_has_a_subcommand():
  guard = "__name__ == '__main__'"
  programs = {
    path.stem for path in (ROOT / 'experiments').glob('*.py') if guard in path.read_text()
  }
  assert set(console.PROGRAMS) == programs - {'__main__'}


def test_an_unknown_program_is_named(capsys):
  with pytest.raises(SystemExit, match="audiolm has no program 'trian': choose one of train, "):
    console.main(['trian'])

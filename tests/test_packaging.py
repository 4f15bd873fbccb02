"""The wheel: metadata, all files of one package, one console command that answers fast."""

import email
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


def files(folder: pathlib.Path) -> set[pathlib.Path]:
  """Returns the paths of all files in a folder but compiled ones."""
  found = {path.relative_to(folder) for path in folder.rglob('*') if path.is_file()}
  return {path for path in found if '__pycache__' not in path.parts}


def test_a_wheel_installs_one_package_with_all_files(installed):
  assert {path.name for path in installed.iterdir()} == {'audiolm_jax'}
  programs = {'experiments' / path for path in files(ROOT / 'experiments')}
  assert files(installed / 'audiolm_jax') == files(ROOT / 'audiolm_jax') | programs
  assert {'py.typed', 'experiments/evaluations/listening.html'} <= set(
    map(str, files(installed / 'audiolm_jax'))
  )


def test_the_metadata_tell_licence_versions_and_readme(installed):
  [path] = installed.parent.glob('*.egg-info/PKG-INFO')
  found = email.message_from_string(path.read_text())
  assert 'Apache-2.0' in (found['License-Expression'] or found['License'])
  assert found['Requires-Python'] == '>=3.11'
  versions = [
    text.rpartition(' ')[2] for text in found.get_all('Classifier') if 'Python :: 3' in text
  ]
  assert versions == ['3.11', '3.12', '3.13']
  assert found['Description-Content-Type'] == 'text/markdown'
  assert found.get_payload().startswith((ROOT / 'README.md').read_text()[:100])


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


@pytest.mark.parametrize('arguments', [['--help'], ['--prompt=nothing.wav', '--output=nowhere']])
def test_help_and_wrong_paths_do_not_wait_for_jax(arguments, tmp_path):
  program = (
    'import sys; from experiments import __main__ as console\n'
    'try: console.main(["generate", *sys.argv[1:]])\n'
    'except SystemExit as end: print("exit", end)\n'
    'print(*{name.partition(".")[0] for name in sys.modules})'
  )
  command = [sys.executable, '-c', program, *arguments]
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  *_, end, imported = done.stdout.splitlines()
  assert end == 'exit 0' if arguments == ['--help'] else 'no such file: nothing.wav' in end
  assert 'experiments' in imported.split()
  slow = {'jax', 'flax', 'orbax', 'grain', 'optax', 'librosa', 'numba', 'numpy'}
  assert not slow & set(imported.split())


def test_every_program_has_a_subcommand():
  guard = "__name__ == '__main__'"
  programs = {
    path.stem for path in (ROOT / 'experiments').glob('*.py') if guard in path.read_text()
  }
  assert set(console.PROGRAMS) == programs - {'__main__'}


def test_an_unknown_program_is_named(capsys):
  with pytest.raises(SystemExit, match="audiolm has no program 'trian': choose one of train, "):
    console.main(['trian'])

"""The wheel: metadata, all files of one package, one console command that answers fast; installed in
a fresh environment, it makes sounds and goes without a trace.
"""

import email
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import soundfile

from experiments import __main__ as console

ROOT = pathlib.Path(__file__).parents[1]
# Versions of a fresh environment: the pins, or on Colab's Python what Colab has.
IS_COLAB = sys.version_info >= (3, 13)
CONSTRAINTS = 'tests/constraints-colab.txt' if IS_COLAB else 'requirements.txt'


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
  assert found['Project-URL'] == 'Paper, https://arxiv.org/abs/2209.03143'
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


class Newcomer:
  """Runs commands outside the checkout, and prints how long each took."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.bin = folder, folder / 'env/bin'
    # The variables of a login, without those of the tests and of this checkout.
    names = ('PATH', 'LANG', 'TMPDIR', *(name for name in os.environ if name.startswith('PIP_')))
    self.environment = {name: os.environ[name] for name in names if name in os.environ}
    self.environment |= {'HOME': str(folder), 'MPLBACKEND': 'Agg'}

  def does(self, title: str, *command: object) -> str:
    begun, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
      [*map(str, command)], cwd=self.folder, env=self.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f'{title}: {done.stderr[-3000:]}'
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f'{title}: {time.time() - begun:.0f} s, {processor:.0f} s of a processor')
    return done.stdout


@pytest.mark.slow
def test_a_newcomer_installs_hears_and_uninstalls(tmp_path):
  """The times are printed by `pytest -s`, and are in docs/results/newcomer.md."""
  source = tmp_path / 'source'  # a build leaves folders
  skipped = shutil.ignore_patterns('.*', '__pycache__', '*.egg-info', 'build', 'runs')
  shutil.copytree(ROOT, source, ignore=skipped)
  newcomer = Newcomer(tmp_path)
  newcomer.does('environment', sys.executable, '-m', 'venv', 'env')
  newcomer.does('wheel', newcomer.bin / 'pip', 'wheel', '-q', '--no-deps', source)
  [wheel] = tmp_path.glob('*.whl')
  requirements = ['-c', ROOT / CONSTRAINTS, f'audiolm_jax[serve,plot] @ {wheel.as_uri()}']
  newcomer.does('install', newcomer.bin / 'python', '-m', 'pip', 'install', '-q', *requirements)
  listed = newcomer.does('files', newcomer.bin / 'pip', 'show', '--files', 'audiolm_jax')
  paths = [line.strip() for line in listed.partition('Files:\n')[2].splitlines()]
  assert {path.split('/')[0].partition('-')[0] for path in paths} == {'..', 'audiolm_jax'}
  assert [path for path in paths if path.startswith('..')] == ['../../../bin/audiolm']
  own = {path.removeprefix('audiolm_jax/') for path in paths if path.startswith('audiolm_jax/')}
  programs = {'experiments' / path for path in files(ROOT / 'experiments')}
  assert {path for path in own if '__pycache__' not in path} == {
    *map(str, files(ROOT / 'audiolm_jax') | programs)
  }

  rate, seconds = 16_000, 3.0
  time_T = np.arange(3 * rate) / rate
  soundfile.write(tmp_path / 'mine.wav', 0.3 * np.sin(2 * np.pi * 220 * time_T), rate)
  demo = [newcomer.bin / 'audiolm', 'demo', f'--seconds={seconds}', '--prompt=mine.wav']
  print(newcomer.does('three voices and my own', *demo, '--output=out'))
  sounds = sorted((tmp_path / 'out').glob('*_autoregressive.wav'))
  assert len(sounds) == 4 and tmp_path / 'out/mine_autoregressive.wav' in sounds
  for sound in sounds:
    wave_T, found_rate = soundfile.read(sound)
    assert found_rate == rate and len(wave_T) == (3 + seconds) * rate
    assert np.isfinite(wave_T).all() and np.abs(wave_T).max() > 0.01

  begun = time.time()
  command = [newcomer.bin / 'audiolm', 'serve', '--port=0']
  server = subprocess.Popen(
    command, cwd=tmp_path, env=newcomer.environment, stdout=subprocess.PIPE, text=True
  )
  try:
    address = server.stdout.readline().removeprefix('open ').strip()
    assert b'<title>' in urllib.request.urlopen(address, timeout=60).read()
    print(f'page: {time.time() - begun:.0f} s')
  finally:
    server.kill()
    server.wait()

  newcomer.does('uninstall', newcomer.bin / 'pip', 'uninstall', '-q', '-y', 'audiolm_jax')
  left = [path for path in (tmp_path / 'env').rglob('*') if 'audiolm' in path.name]
  assert not [path for path in left if path.is_file()]

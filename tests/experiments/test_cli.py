"""What a user gets wrong at the command line is one line on stderr that names the remedy."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  'program, arguments, remedy',
  [
    ('train', ['--stage=semantic'], 'python -m experiments.encode'),
    ('train', ['--stage=detector'], 'python -m experiments.forge'),
    ('train', ['--stage=nonsense'], 'soundstream, w2v_bert, semantic, coarse'),
    ('train', ['--stage=all', '--init_from=x'], 'give that stage by --stage'),
    ('train', ['--stage=semantic', '--recipe=nonsense'], 'choose one of folder'),
    ('generate', ['--prompt=missing.wav', '--output=out'], 'missing.wav'),
    ('evaluate', ['--suite=language', '--data=nowhere'], "'nowhere' is not a folder"),
    ('detect', ['missing.wav'], 'python -m experiments.train --stage=detector'),
    ('evaluate', ['--listening'], 'python -m experiments.forge'),
    ('evaluate', ['--listening_results=missing.csv'], 'listening_key.json'),
    ('codec', ['encode', 'missing.wav', '--output=out'], 'missing.wav'),
    (
      'generate',
      ['--acoustic=nonsense', '--output=out'],
      'choose one of autoregressive, soundstorm',
    ),
  ],
)
def test_mistakes_are_explained_in_one_line(program, arguments, remedy, tmp_path):
  command = [sys.executable, '-m', f'experiments.{program}', f'--workdir={tmp_path}', *arguments]
  process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert process.returncode != 0
  assert remedy in process.stderr and 'Traceback' not in process.stderr
  assert process.stderr.startswith('error: ') and process.stderr.count('\n') == 1

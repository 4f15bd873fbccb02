"""What a user gets wrong at the command line is one line on stderr that names the remedy."""

import importlib
import sys

import pytest

from experiments.cli import command_line


@pytest.mark.parametrize(
  'program, arguments, remedy',
  [
    ('train', ['--stage=semantic'], 'python -m experiments.encode'),
    ('train', ['--stage=detector'], 'python -m experiments.detector_clips'),
    ('train', ['--stage=nonsense'], 'soundstream, w2v_bert, semantic, coarse'),
    ('train', ['--stage=all', '--init_from=x'], 'give that stage by --stage'),
    ('train', ['--stage=semantic', '--recipe=nonsense'], 'choose one of colab, folder'),
    ('generate', ['--prompt=missing.wav', '--output=out'], 'missing.wav'),
    ('evaluate', ['--suite=language', '--data=nowhere'], "'nowhere' is not a folder"),
    ('detect', ['missing.wav'], 'python -m experiments.train --stage=detector'),
    ('plot', [], 'has no STAGE/metrics.jsonl: give the folder of a run'),
    ('evaluate', ['--listening'], 'python -m experiments.detector_clips'),
    ('evaluate', ['--listening_results=missing.csv'], 'listening_key.json'),
    ('codec', ['encode', 'missing.wav', '--output=out'], 'missing.wav'),
    (
      'generate',
      ['--acoustic=nonsense', '--output=out'],
      'choose one of autoregressive, soundstorm',
    ),
  ],
)
def test_mistakes_are_explained_in_one_line(
  program, arguments, remedy, monkeypatch, tmp_path, capsys
):
  """In this process, for a start takes seconds; test_parallel.py starts one that fails."""
  monkeypatch.setattr(sys, 'argv', [program, f'--workdir={tmp_path}', *arguments])
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as ended:
    command_line.run(importlib.import_module(f'experiments.{program}').main)
  message = ended.value.code  # of type str: Python prints it to stderr, and exits with status 1
  assert message.startswith('error: ') and remedy in message and '\n' not in message
  assert capsys.readouterr().err == ''

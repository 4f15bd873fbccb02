"""A full run in its smallest form, through the real command lines: every stage, encoding,
evaluation, generation.
"""

import dataclasses
import functools
import importlib
import json
import pathlib
import subprocess
import sys

import jax
import jaxtyping
import numpy as np
import pytest
import soundfile

from audiolm_jax import errors
from audiolm_jax.data import synthesized_benchmark
from audiolm_jax.training import sharding
from experiments.cli import parallel, pod
from experiments.evaluations import codec, token_comparison
from tests.experiments import toy_recipe

RECIPE = 'tests.experiments.toy_recipe'
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def in_this_process(monkeypatch):
  """Runs programs one after another by their `main`, which saves a start of Python for each.

  As users run them, without checks of annotations; on one device, and with the first clip alone
  rated: eight devices, the judges of perceived quality, the whole twin of ZeroSpeech and SIGTERM
  have tests of their own.
  """

  def run(commands, num_slots=2):
    for program, *arguments in commands:
      with monkeypatch.context() as patch:
        patch.setattr(sys, 'argv', [program, *arguments])
        importlib.import_module(f'experiments.{program}').main()

  make_mesh = sharding.make_mesh
  one_device = lambda config, devices=None: make_mesh(config, jax.devices()[:1])
  sizes = synthesized_benchmark.Sizes(num_voices=2, num_words=3, num_phrases=2)
  small = functools.partial(synthesized_benchmark.folder, sizes=sizes)
  monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)
  monkeypatch.setattr(parallel, 'run', run)
  monkeypatch.setattr(pod, 'leave_on_sigterm', lambda: None)
  monkeypatch.setattr(sharding, 'make_mesh', one_device)
  monkeypatch.setattr(synthesized_benchmark, 'folder', small)
  monkeypatch.setattr(codec, 'PERCEPTUAL_CLIPS', 1)
  monkeypatch.setattr(token_comparison, 'VISQOL_CLIPS', 1)
  return lambda workdir: run([('full_run', f'--recipe={RECIPE}', f'--workdir={workdir}')])


def test_a_run_leaves_audio_pictures_and_a_report(in_this_process, tmp_path):
  in_this_process(tmp_path)
  check_run(tmp_path)


@pytest.mark.slow
def test_a_run_of_processes_leaves_audio_pictures_and_a_report(tmp_path):
  flags = [f'--recipe={RECIPE}', f'--workdir={tmp_path}']
  command = [sys.executable, '-m', 'experiments.full_run', *flags]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  check_run(tmp_path)


def check_run(folder):
  settings = toy_recipe.RECIPE.evaluation
  report = json.loads((folder / 'report.json').read_text())
  suites = {'codec', 'tokens', 'language', 'soundstorm', 'acoustic', 'continuation'}
  assert set(report) >= suites
  for suite in suites:
    values = [value for row in report[suite]['rows'].values() for value in row.values()]
    # None: not scored.
    assert values and np.isfinite([value for value in values if value is not None]).all(), report[
      suite
    ]
  over_time = report['continuation']['similarity_over_time']
  assert len(over_time) == len(report['continuation']['rows']) + 1  # and other voices
  assert all(len(values) == 1 and abs(values[0]) <= 1 for values in over_time.values())
  # What is given back, and no less, is the original itself.
  original = report['acoustic']['rows']['original, through the codec']
  assert (original['mel_distance'], original['codes']) == (0, 1)
  prompt, rate = soundfile.read(folder / 'prompt.wav')
  assert rate == 16_000 and len(prompt) == settings.prompt_seconds * rate
  continuations = [
    soundfile.read(folder / f'continuation{path}.wav')[0] for path in ('', '_soundstorm')
  ]
  seconds = settings.prompt_seconds + settings.seconds  # in whole frames of 40 ms
  assert all(abs(len(wave_T) - seconds * rate) <= 1280 for wave_T in continuations)
  assert (continuations[0] != continuations[1]).any()
  for name in ('reconstruction.wav', 'spectrograms.png', 'curves.png'):
    assert (folder / name).stat().st_size > 1000
  for stage in toy_recipe.RECIPE.trained:
    assert (folder / stage / 'metrics.jsonl').is_file()


def test_help_needs_no_matplotlib_and_a_run_says_that_it_does(monkeypatch, tmp_path, capsys):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  for name in ('experiments.full_run', 'experiments.evaluations.pictures'):
    monkeypatch.delitem(sys.modules, name, raising=False)
  full_run = importlib.import_module('experiments.full_run')
  monkeypatch.setattr(sys, 'argv', ['full_run', '--help'])
  with pytest.raises(SystemExit, match='0'):
    full_run.main()
  assert '--prompt' in capsys.readouterr().out
  monkeypatch.setattr(sys, 'argv', ['full_run', f'--workdir={tmp_path}/run'])
  with pytest.raises(errors.UserError, match='matplotlib, which is not installed: pip install'):
    full_run.main()
  assert not (tmp_path / 'run').exists()


def test_a_corpus_that_tells_no_speakers_has_a_held_out_utterance(tmp_path):
  from experiments import corpora, full_run
  from experiments.recipes import folder

  tone_T = np.linspace(-0.5, 0.5, 32_000, dtype=np.float32)
  for split in ('train', 'test'):
    (tmp_path / split).mkdir()
    soundfile.write(tmp_path / split / 'a.wav', tone_T, 16_000, subtype='FLOAT')
  corpus = corpora.Folder(root=str(tmp_path / 'train'), test_root=str(tmp_path / 'test'))
  evaluation = dataclasses.replace(folder.RECIPE.evaluation, prompt_seconds=0.5, seconds=1.0)
  recipe = dataclasses.replace(folder.RECIPE, corpus=corpus, evaluation=evaluation)
  found_T = full_run.held_out_utterance(recipe, tmp_path / 'run', 16_000)
  np.testing.assert_array_equal(found_T, tone_T[:24_000])
  assert len(full_run.held_out_utterance(recipe, tmp_path / 'run', 8_000)) == 12_000

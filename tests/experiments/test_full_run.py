"""A full run in its smallest form, through the real command line: every stage, encoding, evaluation,
generation.
"""

import dataclasses
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from audiolm_jax import errors

STAGES = (
  'soundstream',
  'w2v_bert',
  'semantic',
  'coarse',
  'fine',
  'soundstorm',
  'acoustic_only',
  'speaker',
  'numbers',
)
SIZES = {
  'corpus.config.train_minutes': 1,
  'corpus.config.test_minutes': 2.7,
  'semantic_tokens.sample_seconds': 60,
  'evaluation.num_clips': 8,
  'evaluation.num_prompts': 2,
  'evaluation.seconds': 1,
  'evaluation.decoder_seconds': 30,
  'sampling.soundstorm.iterations': '(2, 1)',
} | {f'{stage}.train.num_steps': 2 for stage in STAGES}


def test_a_run_leaves_audio_pictures_and_a_report(tmp_path):
  flags = [f'--set={field}={value}' for field, value in SIZES.items()]
  command = [sys.executable, '-m', 'experiments.full_run', f'--workdir={tmp_path}', *flags]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  report = json.loads((tmp_path / 'report.json').read_text())
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
  prompt, rate = soundfile.read(tmp_path / 'prompt.wav')
  assert rate == 16_000 and len(prompt) == 3 * rate
  continuations = [
    soundfile.read(tmp_path / f'continuation{path}.wav')[0] for path in ('', '_soundstorm')
  ]
  # whole frames of 40 ms
  assert all(abs(len(wave_T) - 4 * rate) <= 1280 for wave_T in continuations)
  assert (continuations[0] != continuations[1]).any()
  for name in ('reconstruction.wav', 'spectrograms.png', 'curves.png'):
    assert (tmp_path / name).stat().st_size > 1000
  for stage in STAGES:
    assert (tmp_path / stage / 'metrics.jsonl').is_file()


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

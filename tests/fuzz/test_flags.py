"""100 random command lines for every program: an answer, or an error of one line, before any
compute.
"""

import argparse
import contextlib
import importlib
import io
import os
import sys

import numpy as np
import pytest

from audiolm_jax import release
from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import hub
from audiolm_jax.training import loop
from experiments import benchmark, compile, corpora, encode, evaluations, train
from experiments.cli import compilation_cache, parallel, recipe_pages
from tests import programs
from tests.fuzz import battery, overrides
from tests.fuzz.audio_cases import wav

NUM_CASES = 100
NAME = 'command lines'
PROGRAMS = (
  *(
    'benchmark',
    'codec',
    'compile',
    'demo',
    'detect',
    'export',
    'full_run',
    'encode',
    'evaluate',
    'detector_clips',
    'generate',
  ),
  *('plot', 'prepare', 'pretrained', 'train'),
)
WORDS = (
  *('', '0', '1', '-1', '3', '0.5', 'nan', 'inf', '1e99', '9' * 30, 'tiny', 'folder', 'maestro', 'nothing'),
  *('all', 'semantic', 'soundstream', 'codec', 'encode', 'decode', 'info', 'list', 'import', 'acoustic', 'input'),
  *('continuation', 'unconditional', 'soundstorm', 'v5e:4x4', 'v9:1', 'MIT', 'facebook/encodec_24khz'),
  *('in/a.wav', 'in/-b.wav', 'in/\udcff.wav', 'in', 'in/no', 'in/text.wav', '.', '/dev/null', '/proc/x', 'pipe.wav'),
  *('gs://b/x', 'x' * 300, 'out', 'out/new', 'in/a.wav/x', '\x1b[31m', 'a\nb', '--', '-h', '--help', '--nothing'),
)  # fmt: skip


class Began(BaseException):
  """Raised where computing would begin."""


class Clips(list):
  """Half a minute of noise in place of a corpus that would be synthesized."""

  sample_rate = 16_000


@pytest.fixture
def place(tmp_path, monkeypatch):
  """A folder with inputs, as the current one; whatever computes, loads weights or starts programs
  ends the program there.
  """

  def began(*_, **__):
    raise Began

  for owner, name in (
    (loop, 'train'), (train, 'train_all'), (encode, 'encode_corpus'), (parallel, 'run'), (hub, 'fetch'),
    (compile, 'load_topology'), (compilation_cache, 'keep'), (release, 'from_pretrained'),
  ):  # fmt: skip
    monkeypatch.setattr(owner, name, began)
  # Beam takes seconds to import; what full_run sets stays in this test
  monkeypatch.setitem(sys.modules, 'audiolm_jax.data.builders', None)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'cache'))
  for one in benchmark.BENCHMARKS.values():
    monkeypatch.setattr(one, 'run', began)
  for suite in evaluations.SUITES:
    monkeypatch.setitem(evaluations.SUITES, suite, began)
  noise_T = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
  clips = Clips([{'waveform': noise_T, 'speaker': np.int32(i % 4)} for i in range(30)])
  monkeypatch.setattr(corpora.Synthesized, 'examples', lambda *_: clips)
  (tmp_path / 'in').mkdir()
  for name in (b'a.wav', b'-b.wav', b'\xff.wav'):
    with open(os.path.join(os.fsencode(tmp_path), b'in', name), 'wb') as file:
      file.write(wav(noise_T.astype('<i2').tobytes()))
  (tmp_path / 'in/text.wav').write_text('no audio')
  os.mkfifo(tmp_path / 'pipe.wav')
  monkeypatch.chdir(tmp_path)
  return tmp_path


def flags_of(monkeypatch, program: str) -> list[argparse.Action]:
  """Returns the flags and arguments of a program, those of its commands, too."""
  actions = list(programs.parser(monkeypatch, program)._actions)
  for action in actions[:]:
    if isinstance(action, argparse._SubParsersAction):
      actions += [one for parser in action.choices.values() for one in parser._actions]
  return actions


def command_line(rng, monkeypatch, program: str) -> list[str]:
  """Returns a random command line, more often than not with what the program requires."""
  words = []
  word = lambda: WORDS[rng.integers(len(WORDS))]
  for action in flags_of(monkeypatch, program):
    needed = action.required or not action.option_strings
    if rng.random() > (0.85 if needed else 0.3) or isinstance(action, argparse._HelpAction):
      continue
    values = [word() for _ in range(0 if action.nargs == 0 else 1)]
    if action.dest == 'overrides':
      fields = overrides.all_fields()
      value = overrides.VALUES[rng.integers(len(overrides.VALUES))]
      values = [f'{fields[rng.integers(len(fields))][1]}={value}'.replace('\0', '')]
    elif action.dest in ('recipe', 'command', 'stage', 'suite', 'corpus') and rng.random() < 0.8:
      known = action.choices or (
        *recipe_pages.names(),
        'all',
        *evaluations.SUITES,
        'encode',
        'info',
      )
      values = [list(known)[rng.integers(len(known))]]
    if action.option_strings:
      flag = action.option_strings[-1]
      words += [flag] if not values else [f'{flag}={values[0]}']
    else:
      words += values
  return words


@pytest.mark.parametrize('number', range(NUM_CASES), ids=lambda number: f'{number:04d}')
def test_a_command_line(number, place, monkeypatch, outcome):
  rng = np.random.default_rng([battery.SEED, number])
  before = battery.snapshot(place)
  for program in PROGRAMS:
    words = command_line(rng, monkeypatch, program)
    with monkeypatch.context() as patch:
      patch.setattr(sys, 'argv', [program, *words])
      result = run(importlib.import_module(f'experiments.{program}').main, words)
    outcome(NAME, program, result)
    battery.check_nothing_lost(before, place, may_add=True)
    outside = [path for path in battery.snapshot(place) if path.endswith(b'gs:')]
    assert not outside, f'{program} {words}: a URL became a folder'


def run(main, words: list[str]) -> str:
  """Returns how a program ended; others than these ends are raised."""
  text = lambda: io.TextIOWrapper(io.BytesIO(), 'utf-8', 'surrogateescape')
  try:
    with contextlib.redirect_stdout(text()), contextlib.redirect_stderr(text()):
      main()
  except Began:
    return 'would begin'
  except SystemExit as end:
    assert end.code in (0, 2), words
    return 'usage' if end.code else 'help'
  except (UserError, OSError) as error:
    assert str(error).strip(), words
    return 'refused by name'
  return 'done'


def test_counts(counts):
  counter = counts.get(NAME, {})
  expected = NUM_CASES * len(PROGRAMS)
  if sum(counter.values()) < expected:
    pytest.skip('not all cases were run, or one has failed')
  assert sum(counter.values()) == expected
  assert {program for program, _ in counter} == set(PROGRAMS)
  assert sum(n for (_, result), n in counter.items() if result == 'refused by name') > 200

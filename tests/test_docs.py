"""The commands of the README and the guide: all are parsed by the programs' parsers, some are run."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import setuptools

from audiolm_jax import audio
from experiments import codec, evaluations, pretrained
from experiments import recipe as recipe_lib
from tests import programs
from tests.experiments.test_codec import RATE, save_codec
from tests.toy_codec import CONFIG, random_variables

ROOT = pathlib.Path(__file__).parents[1]
INDEX = (ROOT / 'docs/index.md').read_text()
# In the order of the guide, which is that of the stages.
PAGES = [
  'README.md',
  *(f'docs/{page}' for page in re.findall(r'^guide/.*\.md$', INDEX, re.MULTILINE)),
]
GUIDE = '\n'.join((ROOT / page).read_text() for page in PAGES)
PREFIX = ['python', '-m']


def blocks() -> list[list[str]]:
  """Returns the words of each line in blocks of shell commands."""
  found = []
  for language, block in re.findall(r'^```(\w*)\n(.*?)^```', GUIDE, re.DOTALL | re.MULTILINE):
    if language:
      continue
    lines = block.replace('\\\n', ' ').splitlines()
    found += [words for line in lines if (words := shlex.split(line, comments=True))]
  return found


def markdown() -> list[pathlib.Path]:
  """Returns the README and all pages of docs/."""
  return [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]


def documented() -> list[list[str]]:
  """Returns the commands of our programs in blocks, in running text and in docstrings."""
  texts = [path.read_text() for path in markdown()]
  texts += [
    path.read_text().split('"""')[1] for path in sorted((ROOT / 'experiments').rglob('*.py'))
  ]
  found = []
  for text in texts:
    text = re.sub(r'\s*\\\n\s*', ' ', text)
    for inline, line in re.findall(
      r'`(python -m experiments\.[^`]+)`|^ *(python -m experiments\..*)$', text, re.MULTILINE
    ):
      command = re.split(r'\s{2,}', inline.replace('\n', ' ') or line)[0]
      found.append(shlex.split(command, comments=True))
  behind_dashes = [words[words.index('--') + 1 :] for words in blocks() if '--' in words]
  found += [words for words in behind_dashes if words[:2] == PREFIX]
  unique = {tuple(words) for words in found if len(words) > 3 and '<' not in ''.join(words)}
  return sorted(map(list, unique))


def check(args):
  """Checks the values that a program would check behind its parser."""
  if hasattr(args, 'recipe') and hasattr(args, 'overrides'):  # not smoke, which has its own recipe
    recipe = recipe_lib.load(args.recipe, args.overrides)
    programs_of_compile = ('encode',) if hasattr(args, 'audio_hours') else ()
    assert getattr(args, 'stage', 'all') in (*recipe.trained, 'all', *programs_of_compile)
    assert getattr(args, 'suite', 'all') in (*evaluations.SUITES, 'all')


@pytest.mark.parametrize('page', markdown(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page):
  links = re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', page.read_text())
  assert not [link for link in links if not (page.parent / link).exists()]


def test_every_page_of_the_guide_is_in_the_index_and_in_the_readme():
  pages = {str(path.relative_to(ROOT)) for path in (ROOT / 'docs/guide').glob('*.md')}
  assert pages == set(PAGES[1:])
  assert pages <= set(re.findall(r'\]\((docs/guide/[^)]+)\)', (ROOT / 'README.md').read_text()))


@pytest.mark.parametrize('words', documented(), ids=' '.join)
def test_commands_are_those_of_the_programs(words, monkeypatch):
  check(programs.parse(monkeypatch, words[2].removeprefix('experiments.'), words[3:]))


def test_every_command_is_of_a_kind_that_is_checked():
  kinds = {
    'python',
    'make',
    'pip',
    'source',
    *(f'tpu_scripts/{path.name}' for path in (ROOT / 'tpu_scripts').iterdir()),
  }
  for words in blocks():
    assert words[0] in kinds or words[0].startswith('TPU='), words
    assert words[0] != 'python' or words[2].startswith('experiments.'), words
  assert len(documented()) > 40


def test_what_is_made_and_installed_is_there(monkeypatch):
  targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
  made = [words[1] for words in blocks() if words[0] == 'make'] + re.findall(
    r'`make ([a-z-]+)', GUIDE
  )
  assert 'demo' in made and not set(made) - targets
  told = {}
  monkeypatch.setattr(setuptools, 'setup', told.update)
  exec((ROOT / 'setup.py').read_text(), {})
  extras = [
    extra for words in blocks() if words[0] == 'pip' for extra in re.findall(r'\[(.*)\]', words[-1])
  ]
  assert extras and not set(extras) - set(told['extras_require'])
  # jax[tpu] pins libtpu: what the extra `compile` asks for must hold for every version of it.
  assert told['extras_require']['compile'] == ['libtpu'] and told['extras_require']['tpu'] == [
    'jax[tpu]'
  ]


def test_commands_for_tpus_are_understood_by_their_scripts():
  flags = shlex.split(
    next(words[0] for words in blocks() if words[0].startswith('TPU=')).partition('=')[2]
  )
  commands = [words for words in blocks() if words[0].startswith('tpu_scripts/')]
  for script, *words in commands:
    words = [flag for word in words for flag in (flags if word == '$TPU' else [word])]
    done = subprocess.run(
      ['bash', script, '--dry-run', *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and 'gcloud' in done.stdout, done.stderr
  assert len(commands) == 8


def test_every_stage_of_librilight_is_divided_among_up_to_256_chips():
  more = re.search(r'on more than 64 chips add\s+`--set (\S+) --set (\S+)`', GUIDE).groups()
  usual, large = recipe_lib.load('librilight'), recipe_lib.load('librilight', more)
  sizes = lambda recipe: {stage.train.batch_size for stage in recipe.trained.values()}
  assert all(size % chips == 0 for size in sizes(usual) for chips in (4, 8, 16, 32, 64))
  assert all(size % chips == 0 for size in sizes(large) for chips in (128, 256))
  seen = lambda recipe: (
    recipe.stages['soundstream'].train.batch_size * recipe.stages['soundstream'].train.num_steps
  )
  assert seen(usual) == seen(large)


def test_the_codec_commands_run_one_after_the_other(monkeypatch, tmp_path):
  """On an untrained codec in the place of the trained one."""
  save_codec(tmp_path / 'runs/tiny', random_variables(CONFIG))
  audio.save(
    tmp_path / 'runs/tiny/prompt.wav', np.random.default_rng(0).uniform(-0.5, 0.5, RATE), RATE
  )
  monkeypatch.chdir(tmp_path)
  commands = [words[3:] for words in blocks() if words[:3] == [*PREFIX, 'experiments.codec']]
  assert [words[0] for words in commands] == ['encode', 'decode']
  for words in commands:
    monkeypatch.setattr(sys, 'argv', ['codec', *words])
    codec.main()
  assert audio.info('decoded/prompt.wav').num_samples == RATE


def test_the_catalogue_is_listed(capsys):
  [words] = [words[3:] for words in blocks() if words[2:4] == ['experiments.pretrained', 'list']]
  pretrained.main(words)
  assert 'descript/dac_16khz' in capsys.readouterr().out


@pytest.mark.slow
def test_commands_run_as_copied_after_a_full_run(tmp_path):
  """All that need no data or machine of the reader's, one after the other, in tiny sizes."""
  sizes = {
    'corpus.config.train_minutes': 1,
    'corpus.config.test_minutes': 2.7,
    'semantic_tokens.sample_seconds': 60,
    'evaluation.num_clips': 8,
    'evaluation.num_prompts': 2,
    'evaluation.seconds': 1,
    'evaluation.decoder_seconds': 30,
    'sampling.soundstorm.iterations': '(2, 1)',
    'detector_clips.batch_size': 2,
  }
  sizes |= {f'detector_clips.num_{split}': 2 for split in ('train', 'validation', 'test')}
  sizes |= {f'{stage}.train.num_steps': 2 for stage in recipe_lib.load('tiny').trained}
  flags = [f'--set={field}={value}' for field, value in sizes.items()]
  commands = [
    ['python', '-m', 'experiments.full_run'],
    *(words for words in blocks() if words[0] == 'python'),
  ]
  for words in commands:
    program = words[2].removeprefix('experiments.')
    others = ('/data/', '/mnt/', 'librilight', 'small_codec', 'import', 'compile', 'benchmark')
    # The first has no end, the others recipes of their own.
    others += ('experiments.serve', 'experiments.smoke', '--release')
    others += ('tiny_music', 'tiny_melody', 'tiny_piano')  # models that take hours
    if any(other in ' '.join(words) for other in others):
      continue
    takes_recipe = program not in ('codec', 'detect', 'pretrained')
    command = [sys.executable, *words[1:], *(flags if takes_recipe else [])]
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f'{shlex.join(words)}\n{done.stderr[-3000:]}'
  for name in (
    'out/prompt_continuation.wav',
    'out/prompt_acoustic.wav',
    'out/000_unconditional.wav',
    'decoded/prompt.wav',
  ):
    assert (tmp_path / name).stat().st_size > 1000


def test_every_kind_of_fault_in_the_results_has_its_tests():
  page = (ROOT / 'docs/results/fuzz.md').read_text()
  rows = dict(re.findall(r'^\| (\d+) \| .* \| (.*) \|$', page, re.MULTILINE))
  assert list(map(int, rows)) == list(range(1, 23))
  sources = [path.read_text() for path in (ROOT / 'tests').rglob('test_*.py')]
  there = {name for text in sources for name in re.findall(r'^def (test_\w+)', text, re.MULTILINE)}
  named = {row: re.findall(r'`(test_\w+)`', names) for row, names in rows.items()}
  assert all(named.values())
  assert not {name for names in named.values() for name in names} - there

"""What all command lines share: paths, proofs of outputs, odd names, remedies that work."""

import argparse
import importlib
import io
import json
import os
import pathlib
import shlex
import sys
import time

import numpy as np
import pytest

from audiolm_jax import codes_file, errors, storage
from experiments import codec, compile, detect, evaluate, generate, train, workspace
from experiments import recipe as recipe_lib
from experiments.cli import command_line, pod, recipe_pages
from tests import programs

PROGRAMS = [
  path.stem
  for path in pathlib.Path(recipe_lib.__file__).parent.glob('*.py')
  if "__name__ == '__main__'" in path.read_text() and path.stem != '__main__'
]
NAMES_OF_PATHS = ('FOLDER', 'FILE', 'DIRECTORY', 'PATH')


def actions(parser: argparse.ArgumentParser):
  """Yields the actions of a parser and of its commands."""
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for command in action.choices.values():
        yield from actions(command)
    else:
      yield action


def set_flags(monkeypatch, *words):
  monkeypatch.setattr(sys, 'argv', ['program', *map(str, words)])


@pytest.mark.parametrize('program', sorted(PROGRAMS))
def test_every_flag_that_takes_a_path_refuses_urls(program, monkeypatch):
  for action in actions(programs.parser(monkeypatch, program)):
    if (
      action.metavar in NAMES_OF_PATHS
      or action.dest in ('workdir', 'output', 'root')
      or action.type is pathlib.Path
    ):
      urls = ['s3://b/x', 'https://example.org/a.wav', 'gs:/bucket/codes']
      if action.type not in (command_line.stored, command_line.stored_workdir):
        urls.append('gs://bucket/codes')
      for url in urls:
        with pytest.raises(argparse.ArgumentTypeError, match=f'{url} is a URL, not a path'):
          action.type(url)
      assert action.type('a/b') == pathlib.Path('a/b')


def test_a_workdir_in_a_bucket():
  assert str(command_line.stored_workdir('gs://bucket/run') / 'coarse') == 'gs://bucket/run/coarse'
  with pytest.raises(argparse.ArgumentTypeError, match='names no bucket'):
    command_line.stored_workdir('gs://')


def test_a_bucket_that_cannot_be_used_is_named_with_its_flag(bucket, faults):
  command_line.check_folder(bucket, '--workdir')
  command_line.check_reachable(bucket, '--workdir')
  faults({'status': 503})
  began = time.monotonic()
  with pytest.raises(errors.UserError, match=f'--workdir={bucket}: .* check the network'):
    command_line.check_reachable(bucket, '--workdir')
  assert time.monotonic() - began < 20
  faults()
  for name, what in (('forbidden-bucket', 'no access to'), ('missing-bucket', 'there is no')):
    with pytest.raises(errors.UserError, match=f'--workdir=gs://{name}/run: {what} bucket .{name}'):
      command_line.check_folder(storage.path(f'gs://{name}/run'), '--workdir')


@pytest.mark.parametrize(
  'program, flags',
  [
    ('train', ['--stage=semantic']),
    ('encode', []),
    ('generate', ['--mode=unconditional', '--output={}/out']),
    ('evaluate', []),
    ('detector_clips', []),
    ('detect', ['{}/a.wav']),
    ('export', ['--output={}/out']),
  ],
)
def test_a_refused_bucket_is_named_before_any_program_computes(
  program, flags, bucket_address, tmp_path, monkeypatch
):
  module = importlib.import_module(f'experiments.{program}')
  flags = [flag.format(tmp_path) for flag in flags]
  monkeypatch.setattr(sys, 'argv', [program, '--workdir=gs://forbidden-bucket/run', *flags])
  monkeypatch.setattr(pod, 'leave_on_sigterm', lambda: None)
  began = time.monotonic()
  with pytest.raises(errors.UserError, match='--workdir=gs://forbidden-.*: no access to bucket'):
    module.main()
  assert time.monotonic() - began < 20 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'name, field',
  [
    ('folder', 'corpus.root'),
    ('folder', 'corpus.test_root'),
    ('maestro', 'corpus.root'),
    ('tiny', 'evaluation.data'),
    ('tiny', 'evaluation.recognizer'),
  ],
)
def test_fields_that_take_a_path_refuse_urls(name, field):
  if field == 'corpus.root' and name == 'maestro':
    field = 'corpus.' + next(
      f for f in ('root', 'folder') if hasattr(recipe_lib.load(name).corpus, f)
    )
  with pytest.raises(errors.UserError, match=f'{field}=gs://bucket/x is a URL, not a path'):
    recipe_lib.load(name, [f'{field}=gs://bucket/x'])


def test_packed_audio_may_be_in_a_bucket_and_files_get_a_remedy(tmp_path):
  page = tmp_path / 'packed.py'
  page.write_text(
    'from experiments import corpora\nfrom experiments.recipes import tiny\n'
    "RECIPE = tiny.RECIPE.derived({}, corpus=corpora.Tfds(folder='gs://bucket/a'))\n"
  )
  assert recipe_lib.load(str(page)).corpus.folder == 'gs://bucket/a'
  assert recipe_lib.load(str(page), ['corpus.folder=gs://b/c']).corpus.folder == 'gs://b/c'
  with pytest.raises(errors.UserError, match='corpus.folder=s3://b/c is a URL, not a path'):
    recipe_lib.load(str(page), ['corpus.folder=s3://b/c'])
  with pytest.raises(
    errors.UserError,
    match='gcloud storage cp --recursive gs://b/c FOLDER.*experiments.prepare folder --root=FOLDER '
    '--output=gs://b/c_packed',
  ):
    recipe_lib.load('folder', ['corpus.root=gs://b/c'])


def test_every_recipe_passes_the_check_for_urls():
  for name in recipe_pages.names():
    recipe_lib.load(name)


def test_workdirs_that_checkpoints_cannot_have_are_refused():
  with pytest.raises(argparse.ArgumentTypeError, match='is not UTF-8'):
    command_line.workdir(os.fsdecode(b'runs/\xff'))


@pytest.mark.parametrize('encoding', ['utf-8', 'ascii', 'latin-1'])
def test_names_that_are_no_text_are_printed_in_every_locale(encoding, monkeypatch, tmp_path):
  names = [os.fsdecode(b'\xff\xfe.alm'), '\N{SNOWMAN}.alm']
  for name in names:
    header = codes_file.Header(8000, 8, 1, 16, 16, '0' * 16)
    codes_file.save(tmp_path / name, header, np.zeros((2, 1), np.int32))
  raw = io.BytesIO()
  monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding=encoding, errors='strict'))
  set_flags(monkeypatch, 'info', tmp_path)
  command_line.run(codec.main)
  print(names[0])  # of a program that makes no escapes itself
  sys.stdout.flush()
  *lines, plain = (line.split(b': ')[0].split(b'/')[-1] for line in raw.getvalue().splitlines())
  snowman = '\N{SNOWMAN}'.encode() if encoding == 'utf-8' else rb'\u2603'
  assert sorted(lines) == sorted([rb'\udcff\udcfe.alm', snowman + b'.alm'])
  assert plain == b'\xff\xfe.alm'


def outputs(tmp_path) -> dict[str, tuple]:
  """Returns, by program, its main and flags that lack the output."""
  prompt = tmp_path / 'a.wav'
  prompt.touch()
  workdir = f'--workdir={tmp_path}/run'
  return {
    'generate --output': (generate.main, [f'--prompt={prompt}', workdir]),
    'codec --output': (codec.main, ['encode', str(prompt), workdir]),
    'detect --output': (detect.main, [str(prompt), workdir]),
    'compile --json': (compile.main, ['--stage=coarse', '--topology=v5e:4x4', workdir]),
    'compile --hlo': (compile.main, ['--stage=coarse', '--topology=v5e:4x4', workdir]),
    'train --workdir': (train.main, ['--stage=coarse']),
    'train --compilation_cache': (train.main, ['--stage=coarse', workdir]),
  }


@pytest.mark.parametrize(
  'program',
  [
    'generate --output',
    'codec --output',
    'detect --output',
    'compile --json',
    'compile --hlo',
    'train --workdir',
    'train --compilation_cache',
  ],
)
def test_outputs_are_proven_writable_before_anything_is_computed(program, monkeypatch, tmp_path):
  def compute(*_, **__):
    raise AssertionError('computes before the outputs are proven')

  for name in ('load_models', 'load_codec', 'load_stage'):
    monkeypatch.setattr(workspace, name, compute)
  monkeypatch.setattr(compile, 'load_topology', compute)
  monkeypatch.setattr(train, 'train_stage', compute)
  (tmp_path / 'file').write_text('precious')
  main, flags = outputs(tmp_path)[program]
  flag = program.split()[1]
  for target, reason in (('file/x', 'is not a folder'), ('x' * 300, 'cannot be (written to|made)')):
    set_flags(monkeypatch, *flags, f'{flag}={tmp_path / target}')
    with pytest.raises(errors.UserError, match=f'{reason}.*') as found:
      main()
    assert flag in str(found.value)
  assert (tmp_path / 'file').read_text() == 'precious' and not (
    tmp_path / ('x' * 300)[:255]
  ).exists()


def test_a_file_that_exists_is_refused_before_anything_is_computed(monkeypatch, tmp_path):
  (tmp_path / 'a.wav').touch()
  (tmp_path / 'a_continuation.wav').write_text('precious')
  monkeypatch.setattr(workspace, 'load_models', lambda *_: pytest.fail('computes'))
  set_flags(
    monkeypatch, f'--prompt={tmp_path}/a.wav', f'--output={tmp_path}', f'--workdir={tmp_path}/run'
  )
  with pytest.raises(
    errors.UserError,
    match='a_continuation.wav exists: choose another --output, or pass --overwrite',
  ):
    generate.main()
  with pytest.raises(errors.UserError, match=f'--json: {tmp_path} is a folder'):
    command_line.check_files([tmp_path], '--json')


def test_proving_leaves_no_trace(tmp_path):
  command_line.check_files([tmp_path / 'a/b/c.wav'], '--output')
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('stage, program', [('semantic', 'encode'), ('detector', 'detector_clips')])
def test_remedies_are_commands_with_all_flags_of_the_run(stage, program, monkeypatch, tmp_path):
  workdir = tmp_path / 'my run'
  flags = ['--recipe=tiny', f'--workdir={workdir}', '--set=corpus.config.train_minutes=1']
  set_flags(monkeypatch, f'--stage={stage}', *flags)
  with pytest.raises(errors.UserError) as found:
    train.main()
  words = shlex.split(str(found.value).split('`')[1])
  assert words == ['python', '-m', f'experiments.{program}', *flags]
  parsed = programs.parse(monkeypatch, program, words[3:])
  assert (parsed.recipe, parsed.workdir, parsed.overrides) == (
    'tiny',
    workdir,
    ['corpus.config.train_minutes=1'],
  )


def test_programs_without_a_recipe_advise_that_of_the_workdir(monkeypatch, tmp_path):
  set_flags(
    monkeypatch,
    '--stage=semantic',
    '--recipe=folder',
    f'--workdir={tmp_path}',
    '--set=corpus.root=/data/a b',
  )
  with pytest.raises(errors.UserError, match='experiments.encode'):
    train.main()
  set_flags(monkeypatch, 'decode', 'x')
  with pytest.raises(errors.UserError) as found:
    workspace.load_codec(tmp_path)
  words = shlex.split(str(found.value).split('`')[1])
  assert words[3:] == [
    '--stage=soundstream',
    '--recipe=folder',
    f'--workdir={tmp_path}',
    '--set=corpus.root=/data/a b',
  ]
  with pytest.raises(errors.UserError, match="the recipe 'folder' has no stage 'nonsense'"):
    workspace.load_stage(tmp_path, 'nonsense')


def test_models_that_a_recipe_imports_are_advised_to_be_imported(monkeypatch, tmp_path):
  set_flags(monkeypatch, '--recipe=librispeech_pretrained', f'--workdir={tmp_path}')
  with pytest.raises(errors.UserError) as found:
    workspace.load_codec(tmp_path)
  words = shlex.split(str(found.value).split('`')[1])
  parsed = programs.parse(monkeypatch, 'pretrained', words[3:])
  assert (parsed.command, parsed.workdir) == ('import', tmp_path)
  assert parsed.source == recipe_lib.load('librispeech_pretrained').stages['soundstream'].source


def test_a_workdir_refuses_another_recipe(monkeypatch, tmp_path):
  args = lambda recipe, *overrides: argparse.Namespace(
    recipe=recipe, workdir=tmp_path, overrides=list(overrides)
  )
  workspace.recipe_of(args('folder', 'corpus.root=a', 'evaluation.num_clips=3'))
  workspace.recipe_of(args('folder', 'corpus.root=b'))
  assert command_line.remembered(tmp_path) == ('folder', ['corpus.root=b'])
  (tmp_path / 'soundstream').mkdir()
  workspace.recipe_of(args('folder'), writes=False)
  with pytest.raises(
    errors.UserError, match="belongs to the recipe 'folder', not to 'tiny': give --recipe=folder"
  ):
    workspace.recipe_of(args('tiny'), writes=False)
  with pytest.raises(errors.UserError, match="belongs to the recipe 'folder', not to 'tiny'"):
    workspace.recipe_of(args('tiny'))
  assert command_line.remembered(tmp_path) == ('folder', ['corpus.root=b'])
  (tmp_path / command_line.MEMORY).write_text('{"recipe": 3')
  with pytest.raises(ValueError, match='delete it, the next run writes it again'):
    workspace.recipe_of(args('folder'))


def test_an_evaluation_on_other_audio_leaves_the_corpus_of_the_workdir(monkeypatch, tmp_path):
  args = argparse.Namespace(recipe='folder', workdir=tmp_path, overrides=['corpus.root=a'])
  workspace.recipe_of(args)
  measured = lambda recipe, workdir: {'rows': {}, 'root': recipe.corpus.root}
  monkeypatch.setattr(evaluate.evaluations, 'SUITES', {'codec': measured})
  flags = ['--recipe=folder', f'--workdir={tmp_path}', '--suite=codec', '--set', 'corpus.root=b']
  monkeypatch.setattr(sys, 'argv', ['evaluate', *flags])
  evaluate.main()
  assert json.loads((tmp_path / 'evaluation/codec.json').read_text())['root'] == 'b'
  assert command_line.remembered(tmp_path) == ('folder', ['corpus.root=a'])


def test_a_workdir_in_which_nothing_was_made_takes_another_recipe(tmp_path):
  args = lambda recipe, *overrides: argparse.Namespace(
    recipe=recipe, workdir=tmp_path, overrides=list(overrides)
  )
  workspace.recipe_of(args('folder', 'corpus.root=a'))
  workspace.recipe_of(args('tiny'))
  assert command_line.remembered(tmp_path) == ('tiny', [])


def test_errors_of_users_are_one_line_and_ours_keep_their_traceback(monkeypatch):
  monkeypatch.delenv('AUDIOLM_TRACEBACK', raising=False)

  def fail_with(error):
    def main():
      raise error

    return main

  for error in (errors.UserError('x'), OSError('x'), MemoryError('x'), FloatingPointError('x')):
    with pytest.raises(SystemExit, match='^error: x$'):
      command_line.run(fail_with(error))
  for foreign in (lambda: np.zeros(2).reshape(3), lambda: int('x'), lambda: {}['x']):
    with pytest.raises((ValueError, KeyError)) as found:
      command_line.run(foreign)
    assert found.value.__notes__ == [command_line.REPORT] and 'issue tracker' in command_line.REPORT


@pytest.mark.parametrize(
  'kind, legal, wrong, message',
  [
    (
      'SECONDS',
      {'7': 7.0, '0.5': 0.5},
      ['inf', 'nan', '0', '-1', '1e999', '86401', 'x'],
      'above 0, and at most 86400',
    ),
    (
      'SEED',
      {'0': 0, '4294967295': 2**32 - 1},
      ['12345678901234567890', '-1', '1.5'],
      'from 0 to 4294967295',
    ),
    (
      'COUNT',
      {'3': 3},
      ['0', '-1', 'inf', '2147483648', '9' * 5000],
      'a whole number of at least 1',
    ),
    ('COUNT_OR_ALL', {'0': 0}, ['-1', 'nan'], 'a whole number of at least 0'),
    ('SHARE', {'1': 1.0, '0.4': 0.4}, ['0', '1.5', 'nan', 'inf'], 'above 0, and at most 1'),
  ],
)
def test_numbers_of_flags_are_finite_and_in_range_or_named(kind, legal, wrong, message):
  parse = getattr(command_line, kind)
  for text, value in legal.items():
    assert parse(text) == value and type(parse(text)) is type(value)
  for text in wrong:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
      parse(text)
    assert message in str(caught.value) and text[:80] in str(caught.value)


@pytest.mark.parametrize('program', ['train', 'codec', 'benchmark', 'pretrained', 'prepare'])
def test_a_flag_of_the_value_of_two_dashes_is_refused(program, monkeypatch, capsys):
  commands = {'benchmark': ['input'], 'pretrained': ['import', 'x'], 'prepare': ['folder']}
  flag = {'benchmark': '--chips=--', 'prepare': '--root=--'}.get(program, '--workdir=--')
  with pytest.raises(SystemExit, match='2'):
    programs.parse(monkeypatch, program, [*commands.get(program, []), flag])
  assert f'{flag}: -- is no value' in capsys.readouterr().err

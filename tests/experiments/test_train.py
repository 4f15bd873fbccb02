"""Which stages `train --stage=all` starts. Nothing is trained: checkpoints are written as if."""

import dataclasses
import json

import jax
import pytest

from audiolm_jax import files
from audiolm_jax.training import configs, saving, sharding
from experiments import inputs, train, workspace
from experiments import recipe as recipe_lib
from experiments.cli import parallel
from tests.training import toy

PRINTS = {'soundstream': 'abc', 'semantic_tokens': 'def'}
TINY = recipe_lib.load('tiny')


def stage_recipe(num_steps, data):
  settings = dataclasses.replace(TINY.stages['soundstream'].train, num_steps=num_steps)
  return recipe_lib.StageRecipe(model=toy.Config(), data=data, train=settings)


RECIPE = dataclasses.replace(
  TINY,
  stages={
    'codec': stage_recipe(5, inputs.Audio()),
    'first': stage_recipe(5, inputs.Tokens()),
    'second': stage_recipe(5, inputs.Tokens()),
  },
)


def save(workdir, name, step, fingerprints, config=None):
  checkpointer = saving.Checkpointer(workdir / name / 'checkpoints')
  described = configs.describe(toy.Config() if config is None else config)
  metadata = {'config': described, 'fingerprints': fingerprints}
  variables = sharding.unbox(toy.Config().make().init(jax.random.key(0)))
  parts = {'params': variables.params, 'state': variables.state}
  checkpointer.save(step, parts, None, metadata)
  checkpointer.close()


@pytest.fixture
def started(monkeypatch):
  commands = []
  monkeypatch.setattr(parallel, 'run', lambda given, num_slots: commands.extend(given))
  return commands


def test_finished_stages_and_what_only_they_need_are_skipped(tmp_path, started, capsys):
  names = lambda: [' '.join(command) for command in started]
  train.train_all(RECIPE, tmp_path, ['-x'])
  all_of_them = ['train --stage=codec -x', 'encode -x', 'train --stage=first -x']
  assert names() == [*all_of_them, 'train --stage=second -x']

  save(tmp_path, 'codec', 5, {})
  (tmp_path / 'tokens').mkdir()
  files.write_text(tmp_path / 'tokens/made_by.json', json.dumps(PRINTS))
  save(tmp_path, 'first', 5, PRINTS)
  save(tmp_path, 'second', 4, PRINTS)
  started.clear()
  train.train_all(RECIPE, tmp_path, ['-x'])
  assert names() == ['encode -x', 'train --stage=second -x']
  assert capsys.readouterr().out.splitlines()[-1] == f'first: already trained; {tmp_path}/first'

  save(tmp_path, 'second', 5, PRINTS)
  started.clear()
  train.train_all(RECIPE, tmp_path, ['-x'])
  assert names() == []


def test_a_finished_stage_in_a_bucket_needs_no_start(bucket):
  stage = RECIPE.stages['first']
  finished = lambda: train.is_finished(stage, bucket / 'first', bucket / 'tokens')
  assert not finished()
  save(bucket, 'first', 5, PRINTS)
  assert not finished()  # its tokens are missing
  workspace.claim(bucket / 'tokens', PRINTS)
  assert finished()


def test_a_stage_of_another_config_or_of_other_tokens_is_started_to_say_so(tmp_path):
  stage, tokens = RECIPE.stages['first'], tmp_path / 'tokens'
  save(tmp_path, 'first', 5, PRINTS)
  finished = lambda stage=stage: train.is_finished(stage, tmp_path / 'first', tokens)
  assert not finished()  # no tokens
  tokens.mkdir()
  files.write_text(tokens / 'made_by.json', json.dumps(PRINTS))
  assert finished()
  other = dataclasses.replace(toy.Config(), width=17)
  assert not finished(dataclasses.replace(stage, model=other))
  files.write_text(tokens / 'made_by.json', json.dumps(PRINTS | {'soundstream': 'other'}))
  assert not finished()
  files.write_text(tokens / 'made_by.json', '{')
  assert not finished()

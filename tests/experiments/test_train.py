"""Which stages `train --stage=all` starts, and how. Nothing is trained: checkpoints are written as if."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from audiolm_jax import files
from audiolm_jax.errors import UserError
from audiolm_jax.training import configs, loop, saving, sharding
from experiments import inputs, sources, train, workspace
from experiments import recipe as recipe_lib
from experiments.cli import parallel
from tests import toys
from tests.experiments import toy_recipe
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


def test_a_stage_stays_finished_when_a_model_is_replaced_whose_tokens_it_does_not_read(tmp_path):
  config = toys.CONFIGS['semantic']
  stage = dataclasses.replace(RECIPE.stages['first'], model=config)
  save(tmp_path, 'semantic', 5, PRINTS, config)
  finished = lambda: train.is_finished(stage, tmp_path / 'semantic', tmp_path)
  files.write_text(tmp_path / 'made_by.json', json.dumps(PRINTS | {'soundstream': 'other'}))
  assert finished()
  files.write_text(tmp_path / 'made_by.json', json.dumps(PRINTS | {'semantic_tokens': 'other'}))
  assert not finished()


def test_a_stage_of_audio_stays_finished_while_the_models_that_it_names_do(tmp_path):
  stage = RECIPE.stages['first']
  save(tmp_path, 'first', 5, {'soundstream': PRINTS['soundstream']})
  finished = lambda: train.is_finished(stage, tmp_path / 'first', tmp_path)
  files.write_text(tmp_path / 'made_by.json', json.dumps(PRINTS | {'semantic_tokens': 'other'}))
  assert finished()
  for others in ({'soundstream': 'other'}, {'semantic_tokens': 'other'}):
    files.write_text(tmp_path / 'made_by.json', json.dumps(others))
    assert not finished()


def test_a_finished_detector_is_that_of_its_clips(tmp_path, started):
  clips = dataclasses.replace(RECIPE.stages['first'], data=inputs.DetectorClips())
  recipe = RECIPE.derived({'first': clips, 'codec': None, 'second': None})
  made_by = {'soundstream': 'a', 'coarse': 'b'}
  save(tmp_path, 'first', 5, made_by)
  workspace.claim(tmp_path / 'tokens', PRINTS)
  workspace.claim(tmp_path / 'detector_clips', made_by)
  train.train_all(recipe, tmp_path, [])
  assert not started


def from_code_vectors(name):
  stage = dataclasses.replace(toy_recipe.RECIPE.stages[name], from_code_vectors=True)
  return toy_recipe.RECIPE.derived({name: stage})


@pytest.fixture
def trained(monkeypatch):
  """The stages given to the loop, which does not run."""
  stages = []

  def keep(stage, config, settings, **options):
    stages.append(stage)
    return types.SimpleNamespace(step=settings.num_steps + 1, preempted=False)

  monkeypatch.setattr(loop, 'train', keep)
  monkeypatch.setattr(inputs, 'of_stage', lambda *arguments: sources.Sources([], [], {}))
  return stages


def test_tables_of_codes_start_from_the_vectors_of_the_workdirs_codec(tmp_path, trained):
  codec = toys.models().tokenizer.codec
  saving.save_variables(tmp_path / 'soundstream', *toys.model('soundstream'))
  train.train_stage(from_code_vectors('soundstorm'), 'soundstorm', tmp_path)
  init = lambda stage: jax.jit(stage.init)(jax.random.key(0))
  wanted = init(toy_recipe.MODELS['soundstorm'].make(codec.code_vectors()))
  jax.tree.map(np.testing.assert_array_equal, init(trained[0]), wanted)


def test_a_stage_that_starts_from_a_checkpoint_needs_no_codec(tmp_path, trained):
  recipe = from_code_vectors('coarse')
  with pytest.raises(UserError, match='soundstream does not exist'):
    train.train_stage(recipe, 'coarse', tmp_path)
  train.train_stage(recipe, 'coarse', tmp_path, init_from=tmp_path / 'theirs')
  save(tmp_path, 'coarse', 1, PRINTS)
  train.train_stage(recipe, 'coarse', tmp_path)  # resumes
  assert len(trained) == 2


def test_stages_without_codes_have_no_code_vectors(tmp_path):
  with pytest.raises(UserError, match='semantic.from_code_vectors=True: .* reads no codes'):
    train.train_stage(from_code_vectors('semantic'), 'semantic', tmp_path)

"""Recipes load, and `--set` changes typed fields or says what is wrong."""

import dataclasses

import numpy as np
import pytest

from audiolm_jax.stages.base import Stage
from experiments import recipe as recipe_lib
from experiments.cli import recipe_pages
from experiments.recipes import librilight


@pytest.mark.parametrize('name', recipe_pages.names())
def test_every_stage_of_every_recipe_can_be_made(name):
  recipe = recipe_lib.load(name)
  assert {'soundstream', 'w2v_bert', 'semantic'} <= set(recipe.stages)
  assert {'coarse', 'soundstorm'} & set(recipe.stages)
  for stage in recipe.trained.values():
    made = stage.model.make()
    assert isinstance(made, Stage) and made.batch


@pytest.mark.parametrize('name', recipe_pages.names())
def test_codecs_go_back_when_they_diverge_and_bands_are_within_the_run(name):
  recipe = recipe_lib.load(name)
  assert 'soundstream' in recipe.imports or recipe.stages['soundstream'].train.rollback is not None
  trains = [stage.train for stage in recipe.trained.values()]
  assert all(
    expected.step <= train.num_steps for train in trains for expected in train.expected_metrics
  )


def test_librilight_says_what_each_number_of_chips_holds():
  """The table of its page: whole examples a chip, equal updates and equal numbers of examples."""
  lines = [line.split() for line in librilight.__doc__.splitlines()]
  table = {words[0]: words[1:] for words in lines if len(words) == 6}
  chips = [int(text) for text in table.pop('chips')]
  assert chips == [16, 32, 64, 128, 256] and len(table) == 5
  for column, number in enumerate(chips):
    recipe = recipe_lib.load(
      'librilight', [f'{field}={values[column]}' for field, values in table.items()]
    )
    features, codec = (recipe.stages[name].train for name in ('w2v_bert', 'soundstream'))
    assert features.batch_size % number == 0 and features.batch_size // number <= 16
    assert features.batch_size * features.accumulate_steps == 2048
    assert features.num_steps == 400_000 * features.accumulate_steps
    assert codec.batch_size % number == 0 and codec.batch_size * codec.num_steps == 25_600_000


@pytest.mark.parametrize(
  'path, text, expected',
  [
    ('semantic.train.num_steps', '7', 7),
    ('semantic.train.optimizer.learning_rate', '1', 1.0),
    ('soundstream.train.optimizer.generator.learning_rate', '2e-4', 2e-4),
    ('coarse.model.transformer.width', '64', 64),
    ('soundstream.model.network.strides', '(4, 4)', (4, 4)),
    ('soundstream.model.network.strides', '[2, 8]', (2, 8)),
    ('soundstream.model.discriminators.start', 'None', None),
    ('soundstream.model.discriminators.start', '3', 3),
    ('soundstream.model.loss_weights.spectral', '2', 2.0),
    ('soundstream.model.quantizer.decay', '0.5', 0.5),
    ('soundstream.train.rollback', 'None', None),
    ('soundstream.train.rollback.max_rollbacks', '2', 2),
    ('coarse.model.time_embedding', 'False', False),
    ('semantic_tokens.num_clusters', '50', 50),
    ('sampling.semantic.temperature', '1', 1.0),
    ('sampling.coarse.top_k', '20', 20),
  ],
)
def test_overrides_are_typed(path, text, expected):
  node = recipe_lib.load('tiny', [f'{path}={text}'])
  names = path.split('.')
  for name in ['stages', *names] if names[0] in node.stages else names:
    node = node[name] if isinstance(node, dict) else getattr(node, name)
  assert node == expected and type(node) is type(expected)


def test_overrides_change_only_what_they_name_and_later_ones_win():
  before = recipe_lib.load('tiny')
  after = recipe_lib.load('tiny', ['fine.train.num_steps=3', 'fine.train.num_steps=5'])
  fine = after.stages['fine']
  assert fine.train.num_steps == 5 and fine.model == before.stages['fine'].model
  assert after.stages['semantic'] == before.stages['semantic'] and recipe_lib.load('tiny') == before


def test_a_string_field_takes_the_text_as_it_is():
  assert recipe_lib.load('folder', ['corpus.root=/data/a=b']).corpus.root == '/data/a=b'


@pytest.mark.parametrize(
  'override, message',
  [
    ('semantic.train.num_steps=1.5', r"'1.5' is not of type int"),
    ('semantic.train.num_steps=True', r"'True' is not of type int"),
    ('semantic.train.optimizer.learning_rate=fast', r"'fast' is not of type float"),
    ('coarse.model.deduplicate=1', r"'1' is not of type bool"),
    ('soundstream.model.network.strides=4', r"'4' is not of type .*tuple"),
    ('soundstream.model.network.strides=(2, "a")', r'is not of type .*tuple'),
    (
      'sampling.semantc.temperature=1',
      r"did you mean 'semantic'\?.*legal fields: semantic, coarse, fine",
    ),
    ('soundstream.model.discriminators.start=soon', r"'soon' is not of type int or None"),
    (
      'semantic.train.num_step=3',
      r"no field 'num_step' \(did you mean 'num_steps'\?\); legal fields: .*num_steps",
    ),
    (
      'soundstream.train.optimizer.generatr.b1=0',
      r"did you mean 'generator'\?.*legal fields: generator, discrim",
    ),
    ('semantic.train.num_steps.value=3', 'a plain value without fields'),
    ('semantic.train.log_every=0', r'log_every=0: must be a whole number of at least 1'),
    ('semantic.train.num_steps=-1', r'num_steps=-1: must be a whole number of at least 0'),
    (
      'semantic.train.seed=12345678901234567890',
      r'seed=12345678901234567890: must be a whole number from 0',
    ),
    ('semantic.train.optimizer.learning_rate=1e999', r"'1e999' is not of type float"),
    ('semantic.train.optimizer.learning_rate=nan', r"'nan' is not of type float"),
    ('evaluation.seconds=inf', r"'inf' is not of type float"),
    ('evaluation.seconds=' + '9' * 400, r'is not of type float'),
    ('evaluation.num_clips=0', r'num_clips=0: must be a whole number of at least 1'),
    ('detector_clips.batch_size=-1', r'batch_size=-1: must be a whole number of at least 1'),
    (
      'sampling.coarse.temperature=-1.0',
      r'temperature=-1.0: must be a finite number of at least 0',
    ),
    ('sampling.soundstorm.iterations=(16,0)', r'iterations=\(16, 0\): must be a tuple'),
    ('max_bad_tokens=2.0', r'max_bad_tokens=2.0: must be from 0 to 1'),
    ('semantic.train.num_steps', 'has no value: write --set path.to.field=value'),
  ],
)
def test_wrong_overrides_say_what_is_wrong(override, message):
  with pytest.raises(ValueError, match=message):
    recipe_lib.load('tiny', [override])


def test_unknown_recipe_lists_all_and_suggests_the_close_one():
  with pytest.raises(
    ValueError, match=r"unknown recipe 'tinny': choose one of .*librilight.*did you mean 'tiny'"
  ):
    recipe_lib.load('tinny')


def test_fields_that_go_together_are_set_in_any_order():
  together = ['semantic.model.transformer.width=30', 'semantic.model.transformer.num_heads=3']
  for overrides in (together, together[::-1]):
    transformer = recipe_lib.load('tiny', overrides).stages['semantic'].model.transformer
    assert (transformer.width, transformer.num_heads) == (30, 3)
  with pytest.raises(
    ValueError, match=r'--set semantic.model.transformer.num_heads=3: width=128 is not a multiple'
  ):
    recipe_lib.load('tiny', together[1:])


def test_a_stage_is_removed_by_none():
  recipe = recipe_lib.load('tiny', ['fine=None', 'coarse.train.num_steps=3'])
  assert 'fine' not in recipe.stages and recipe.stages['coarse'].train.num_steps == 3


def test_a_stage_cannot_be_named_as_a_field():
  recipe = recipe_lib.load('tiny')
  with pytest.raises(ValueError, match=r"stages=\['corpus'\]: a field of the recipe has that name"):
    recipe.derived({'corpus': recipe.stages['fine']})


MELODY_LEVELS = {'tiny_melody': 6 * 2, 'musiclm_melody': 24 * 3}


@pytest.mark.parametrize('name', ['musiclm', 'musiclm_melody', 'tiny_music', 'tiny_melody'])
def test_conditions_fit_mulan_the_crops_and_the_texts_of_the_corpus(name):
  recipe = recipe_lib.load(name)
  mulan = recipe.stages['mulan'].model
  corpus = getattr(recipe.corpus, 'config', recipe.corpus)
  assert (corpus.num_texts, corpus.text_bytes) == (mulan.num_texts, mulan.text.num_bytes)
  conditions = {
    stage: config.condition
    for stage in ('semantic', 'coarse', 'soundstorm', 'acoustic_only')
    if stage in recipe.stages and (config := recipe.stages[stage].model).condition
  }
  assert {'semantic', 'coarse'} <= set(conditions)
  for stage, condition in conditions.items():
    crop = recipe.stages[stage].model.crop_seconds
    assert condition.windows == 1 + max(0, round(crop - mulan.audio.crop_seconds))
    assert condition.size == recipe.music_tokens.codebook_size
    assert condition.levels <= recipe.music_tokens.num_quantizers + recipe.melody_levels
    assert condition.melody_levels == recipe.melody_levels == MELODY_LEVELS.get(name, 0)
  assert name != 'musiclm_melody' or conditions['semantic'].levels == 12 + 72
  names = list(recipe.stages)
  assert names.index('mulan') < names.index('semantic')
  assert recipe.music_tokens.melody is None or names.index('melody') < names.index('semantic')


def test_melodies_of_stages_and_tokens_agree():
  recipe = recipe_lib.load('tiny_melody')
  with pytest.raises(ValueError, match='needs a stage melody'):
    recipe.derived({'melody': None})
  with pytest.raises(ValueError, match=r'melody_levels=12, but .* make 0 tokens: set it to that'):
    recipe.derived(music_tokens=dataclasses.replace(recipe.music_tokens, melody=None))


def test_tiny_piano_reads_no_texts_and_continues_four_seconds():
  recipe = recipe_lib.load('tiny_piano')
  assert 'mulan' not in recipe.stages and recipe.condition_windows == ()
  settings = recipe.evaluation
  assert settings.prompt_seconds == 4 and recipe.corpus.config.setting == 'piano'
  assert settings.prompt_seconds + settings.seconds == recipe.corpus.config.clip_seconds


@pytest.mark.parametrize('name', ['musiclm', 'musiclm_melody'])
def test_batches_of_musiclm_are_divided_among_256_chips(name):
  trained = recipe_lib.load(name).trained
  assert {'mulan', 'semantic', 'coarse', 'fine', 'soundstorm'} <= set(trained)
  assert all(stage.train.batch_size % 256 == 0 for stage in trained.values())
  theirs = recipe_lib.load('librilight').stages
  for stage in ('soundstream', 'w2v_bert'):  # as many examples in all
    own, other = trained[stage].train, theirs[stage].train
    assert own.batch_size * own.num_steps == other.batch_size * other.num_steps


def test_musiclm_has_the_sizes_of_its_paper():
  """Sequence lengths follow from the crops and rates of the paper (section 4.2)."""
  recipe = recipe_lib.load('musiclm')
  codec = recipe.stages['soundstream'].model
  assert (codec.sample_rate, codec.frame_rate, codec.bit_rate) == (24_000, 50.0, 6000.0)
  lengths, layers = {}, set()
  for name in ('semantic', 'coarse', 'fine'):
    config = recipe.stages[name].model
    batch = {n: np.zeros((1, *f.shape), np.int32) for n, f in config.make().batch.items()}
    prefix, target = config.prefix_and_target(batch)
    lengths[name] = [*(array[0].size for array in prefix), target[0].size]
    layers.add(config.transformer.num_layers)
  assert lengths == {'semantic': [12, 750], 'coarse': [12, 250, 2000], 'fine': [600, 1200]}
  assert layers == {24}
  rules = recipe.sampling
  assert [r.temperature for r in (rules.semantic, rules.coarse, rules.fine)] == [1.0, 0.95, 0.4]

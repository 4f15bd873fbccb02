"""What the program makes of prompts: batches equal single runs, and what is missing is said."""

import argparse
import types

import numpy as np
import pytest

from audiolm_jax import chain, tokenizer
from audiolm_jax.errors import UserError
from experiments import generate, workspace
from experiments.cli import clips, command_line
from tests import toy_embedding
from tests.test_generation import GREEDY, HOP, K, conditioned, models, parallel  # noqa: F401

RECIPE = types.SimpleNamespace(
  sampling=GREEDY, evaluation=types.SimpleNamespace(carry_seconds=0.12), stages={'fine': 'a stage'}
)
# Of 200 Hz: 20 codec frames; 12 and 2 samples; 13, half a semantic frame, and 1 sample.
LENGTHS = {80: 80, 50: 48, 53: 48}
SECONDS = 0.6  # more than one window of each model


def rows(prompts, models, mode, acoustic):
  args = argparse.Namespace(seed=0, mode=mode, acoustic=acoustic, seconds=SECONDS, count=2)
  return clips.generate(args, RECIPE, models, prompts)


@pytest.mark.parametrize('acoustic', chain.ACOUSTIC)
@pytest.mark.parametrize('mode', ['continuation', 'acoustic'])
def test_a_batch_equals_single_runs_in_every_mode_path_and_length(mode, acoustic, models, parallel):  # noqa: F811
  own = parallel if acoustic == 'soundstorm' else models
  random = np.random.default_rng(1)
  prompts = [
    (random.integers(0, K, 20).repeat(HOP) / 8).astype(np.float32)[:length] for length in LENGTHS
  ]
  batch = rows(prompts, own, mode, acoustic)
  new = round(SECONDS * 200) if mode == 'continuation' else 0
  for prompt_T, whole, row_T in zip(prompts, LENGTHS.values(), batch, strict=True):
    assert len(row_T) == whole + new  # whole frames, and no zeros of the longest prompt's
    [alone_T] = rows([prompt_T], own, mode, acoustic)
    np.testing.assert_array_equal(row_T, alone_T)


@pytest.mark.parametrize('acoustic', chain.ACOUSTIC)
def test_unconditional_rows_have_the_length_that_was_asked_for(acoustic, models, parallel):  # noqa: F811
  first_T, second_T = rows(
    [], parallel if acoustic == 'soundstorm' else models, 'unconditional', acoustic
  )
  assert len(first_T) == round(SECONDS * 200)
  np.testing.assert_array_equal(first_T, second_T)  # greedy, from nothing


def test_a_missing_fine_stage_is_said(models, capsys, tmp_path):  # noqa: F811
  args = argparse.Namespace(acoustic='autoregressive', workdir=tmp_path)
  clips.say_missing_levels(args, RECIPE, models)
  assert capsys.readouterr().err == ''
  clips.say_missing_levels(args, RECIPE, models._replace(fine=None))
  said = capsys.readouterr().err
  assert said.startswith('the fine stage is missing: 2 of 3 levels are made')
  assert f'`python -m experiments.train --stage=fine --workdir={tmp_path}`' in said
  piano = types.SimpleNamespace(**vars(RECIPE) | {'stages': {}})
  clips.say_missing_levels(args, piano, models._replace(fine=None))
  assert capsys.readouterr().err == ''


def test_speed_counts_new_audio_alone():
  waves = [np.zeros(1000), np.zeros(600)]  # of which 200 samples are the prompts'
  text = clips.speed(3.0, argparse.Namespace(mode='continuation'), waves, [np.zeros(100)] * 2, 200)
  assert text.startswith('7.0 s of new audio in 3.0 s') and text.endswith('real-time factor 0.43')
  text = clips.speed(4.0, argparse.Namespace(mode='acoustic'), waves, [np.zeros(100)] * 2, 200)
  assert text.startswith('8.0 s of new audio') and text.endswith('factor 0.50')


def parsed(tmp_path, *flags):
  return generate._parser().parse_args([f'--output={tmp_path / "out"}', *flags])


def test_a_release_takes_the_place_of_a_workdir(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(
    UserError, match='runs/tiny, the default --workdir, does not exist: .*=speech'
  ):
    command_line.check_models(parsed(tmp_path))
  with pytest.raises(UserError, match='--workdir=here and --release=speech: give one of them'):
    command_line.check_models(parsed(tmp_path, '--workdir=here', '--release=speech'))
  args = parsed(tmp_path, '--release=speech')
  command_line.check_models(args)
  workspace.use_release(args)
  assert args.recipe == 'speech' and (args.workdir / 'soundstream/model.safetensors').is_file()
  # The page of another's recipe is never run because a release names it.
  foreign = tmp_path / 'theirs'
  foreign.mkdir()
  for name in ('config.json', 'digests.json'):
    (foreign / name).write_text((args.workdir / name).read_text())
  (foreign / 'recipe.json').write_text('{"recipe": "theirs.py", "set": []}')
  with pytest.raises(UserError, match='its recipe, theirs.py, is not part of this package'):
    workspace.use_release(parsed(tmp_path, '--release=theirs'))


def test_texts_and_stories_become_rows(tmp_path):
  args = parsed(tmp_path, '--text=slow piano', '--text=fast flute')
  stories = generate.read_stories(args)
  assert stories == [['slow piano'], ['fast flute']]
  names = [path.name for path in generate.check(args, stories)]
  assert names == ['000_text.wav', '001_text.wav']
  (tmp_path / 'story.txt').write_text('to meditate\n\n  to wake up, éveil \r\nto run\n')
  args = parsed(tmp_path, f'--text-file={tmp_path / "story.txt"}', '--seconds=45')
  stories = generate.read_stories(args)
  assert stories == [['to meditate', 'to wake up, éveil', 'to run']]
  assert [path.name for path in generate.check(args, stories)] == ['000_text.wav']
  assert generate.read_stories(parsed(tmp_path, '--prompt=x.wav')) == []


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--text= '], 'a text is blank'),
    (['--text=\udcff'], 'is not Unicode'),
    (['--text=x', '--text-file=story.txt'], 'cannot be combined'),
    (['--text-file=nowhere.txt'], 'no such file: .*nowhere.txt'),
    (['--text-file=empty.txt'], 'empty.txt has no text'),
    (['--text-file=binary.txt'], 'is not UTF-8 text'),
    (['--text-file=large.txt'], 'has 70,000 bytes'),
    (['--text-file=story.txt', '--seconds=15'], 'a story has 2 texts of 15 s each, but seconds=15'),
    (
      ['--text-file=story.txt', '--seconds=4', '--story_seconds=4'],
      'lower story_seconds, or give seconds above 4',
    ),
    (['--text=x', '--seconds=301'], 'seconds=301: music has at most 300 s'),
    (['--text=x', '--mode=unconditional'], 'take no --prompt, --mode and --count'),
    (['--text=x', '--prompt=x.wav'], 'take no --prompt, --mode and --count'),
    (['--prompt=x.wav', '--guidance=2'], '--guidance and --candidates need texts'),
    (['--mode=unconditional', '--candidates=2'], '--guidance and --candidates need texts'),
    (['--prompt=x.wav', '--melody=hum.wav'], '--melody needs a text'),
    (['--text=x', '--melody=hum.wav'], '--melody: no such file: .*hum.wav'),
  ],
)
def test_wrong_texts_are_explained(tmp_path, flags, message, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'empty.txt').write_text('\n \n')
  (tmp_path / 'binary.txt').write_bytes(b'\xff\xfe\x00')
  (tmp_path / 'large.txt').write_text('a' * 70_000)
  (tmp_path / 'story.txt').write_text('one\ntwo\n')
  args = parsed(tmp_path, *flags)
  with pytest.raises(ValueError, match=message):
    generate.check(args, generate.read_stories(args))


def test_rows_of_texts_have_the_length_that_was_asked_for(models, capsys):  # noqa: F811
  own = conditioned(models, coarse=1)
  both = tokenizer.Tokenizer(
    models.tokenizer.codec, models.tokenizer.semantic, toy_embedding.tokenizer(2)
  )
  args = argparse.Namespace(
    seed=0, acoustic='autoregressive', seconds=0.4, story_seconds=0.2, candidates=1, guidance=2.0
  )
  first_T, second_T = clips.generate(
    args, RECIPE, own._replace(tokenizer=both), [], [['low', 'high'], ['middle']]
  )
  assert len(first_T) == len(second_T) == 80
  said = capsys.readouterr().out.splitlines()
  assert len(said) == 2 and said[0].endswith(': low | high') and said[1].endswith(': middle')

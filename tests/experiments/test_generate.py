"""What the program makes of prompts: batches equal single runs, and what is missing is said."""

import argparse
import types

import numpy as np
import pytest

from audiolm_jax import generation
from experiments import clips
from tests.test_generation import GREEDY, HOP, K, models, parallel  # noqa: F401

RECIPE = types.SimpleNamespace(
  sampling=GREEDY, evaluation=types.SimpleNamespace(carry_seconds=0.12), stages={'fine': 'a stage'}
)
# Of 200 Hz: 20 codec frames; 12 and 2 samples; 13, half a semantic frame, and 1 sample.
LENGTHS = {80: 80, 50: 48, 53: 48}
SECONDS = 0.6  # more than one window of each model


def rows(prompts, models, mode, acoustic):
  args = argparse.Namespace(seed=0, mode=mode, acoustic=acoustic, seconds=SECONDS, count=2)
  return clips.generate(args, RECIPE, models, prompts)


@pytest.mark.parametrize('acoustic', generation.ACOUSTIC)
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


@pytest.mark.parametrize('acoustic', generation.ACOUSTIC)
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

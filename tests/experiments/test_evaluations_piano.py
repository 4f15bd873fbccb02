"""The suite of piano continuations, on chords whose keys and notes are known."""

import dataclasses

import numpy as np
import pytest

from audiolm_jax.data import music as music_data
from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import basic_pitch
from experiments import corpora, evaluations, sources, workspace
from experiments.evaluations import piano
from experiments.recipe import Evaluation
from experiments.recipes import tiny, tiny_music
from tests.metrics.test_attributes import chord

RATE = 16_000
C_MAJOR, FIS_MAJOR = (60, 64, 67), (66, 70, 73)
RECIPE = dataclasses.replace(
  tiny_music.RECIPE,
  corpus=corpora.Music(config=music_data.Config(setting='piano')),
  evaluation=Evaluation(prompt_seconds=1.0, seconds=1.0, num_prompts=2),
)


def example(pitches, tonic):
  notes_N4 = [[start, start + 1, pitch, 80] for start in (0, 1) for pitch in pitches]
  return {
    'waveform': chord(pitches, 2.0),
    'notes': np.array(notes_N4, np.float32),
    'tonic': np.int32(tonic),
    'mode': np.int32(1),  # major
  }


@pytest.fixture
def made(monkeypatch):
  """Two clips, in C and in F sharp; 'continuations' of both are in C, and half as loud."""
  examples = [example(C_MAJOR, 0), example(FIS_MAJOR, 6)]
  stage = type('Stage', (), {'config': type('Config', (), {'sample_rate': RATE})})
  monkeypatch.setattr(workspace, 'load_stage', lambda workdir, name: stage)
  monkeypatch.setattr(sources, 'prompts', lambda recipe, workdir, rate, split: examples)
  monkeypatch.setattr(sources, 'reconstructions', lambda examples, workdir: examples)

  def continuations(recipe, workdir, prompts, end):
    assert [len(prompt_T) for prompt_T in prompts] == [RATE] * 2 and end == 2 * RATE
    new_T = 0.5 * chord(C_MAJOR, 1.0)
    return {'continuation': [np.concatenate([prompt_T, new_T]) for prompt_T in prompts]}

  monkeypatch.setattr(piano, 'continuations', continuations)
  return monkeypatch


def hear(wave_T, sample_rate):
  """Hears the chord of C or that of F sharp, by the energy at C; a chord has one onset, at 0."""
  at_c = np.abs(np.exp(-2j * np.pi * 261.63 * np.arange(len(wave_T)) / sample_rate) @ wave_T)
  pitches = C_MAJOR if at_c > 0.05 * len(wave_T) * np.abs(wave_T).max() else FIS_MAJOR
  return np.array([[0, 1, pitch, 80] for pitch in pitches], float)


def test_continuations_are_held_to_their_prompts_and_to_others(made, tmp_path):
  made.setattr(basic_pitch, 'transcriber', lambda: hear)
  found = piano.measure(RECIPE, tmp_path)
  original, tritone, swapped, own, other = found['rows'].values()
  assert list(found['rows'])[1] == piano.TRITONE
  assert list(found['rows'])[-1] == "continuation, held to another clip's prompt"
  # A triad of C has none of its three notes in F sharp major, whose scale has B, C sharp and so on.
  assert original['notes_in_key'] == 1 and tritone['notes_in_key'] == 0 == swapped['notes_in_key']
  assert original['in_key'] > 0.75 > 0.25 > tritone['in_key']
  assert original['pitch_distance'] < 0.1 < 0.7 < tritone['pitch_distance']
  assert own['notes_in_key'] == 0.5 == other['notes_in_key']  # C in C, C in F sharp
  assert original['level_change'] < 0.1 and own['level_change'] == pytest.approx(6.02, abs=0.1)
  assert own['notes_in_key_low'] == pytest.approx(0.5 - 1.96 * 0.5, abs=1e-6)  # deviation 0.707
  # Of six notes of the score, three begin at 0.
  assert found['codec']['rows']['through the codec']['note_f1'] == pytest.approx(2 * 0.5 / 1.5)
  assert found['codec']['rows']['through the codec']['heard_per_note'] == 0.5
  assert found['left_out'] == {} and found['prompts'] == 2
  text = evaluations.table({'piano': found})
  assert 'AudioLM against acoustic-only' in text and '83.3' in text


def test_without_the_package_pitch_classes_remain(made, tmp_path):
  def missing():
    raise UserError('basic-pitch is not installed')

  made.setattr(basic_pitch, 'transcriber', missing)
  found = piano.measure(RECIPE, tmp_path)
  assert found['left_out'] == {'notes': 'basic-pitch is not installed'} and 'codec' not in found
  assert all('notes_in_key' not in row and 'in_key' in row for row in found['rows'].values())


def test_other_corpora_are_left_out_by_name(tmp_path):
  for recipe in (tiny.RECIPE, tiny_music.RECIPE):
    found = evaluations.SUITES['piano'](recipe, tmp_path)
    assert found['rows'] == {} and 'no rendered piano' in found['left_out']['piano continuations']


def test_levels_and_notes_are_cut():
  assert piano.levels([np.full(9, 0.1), np.zeros(9)]).tolist() == pytest.approx([-20, -100])
  notes_N4 = np.array([[0, 3, 60, 80], [1.5, 2, 61, 80], [2.5, 3, 62, 80]])
  np.testing.assert_array_equal(
    piano.notes_before(notes_N4, 2.0), [[0, 2, 60, 80], [1.5, 2, 61, 80]]
  )

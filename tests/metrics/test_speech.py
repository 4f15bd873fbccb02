import functools
import itertools
import sys

import numpy as np
import pytest

from audiolm_jax.data import synthesized
from audiolm_jax.metrics import speech


def test_decoding_finds_the_best_of_all_paths():
  random = np.random.default_rng(0)
  for penalty in (0.5, 2.0):
    scores = np.log(random.dirichlet(np.ones(11), size=4)).astype(np.float32)
    classes = (0, 3, 7, speech.NO_NUMBER)
    scores[:, [c for c in range(11) if c not in classes]] = -1e9
    paths = list(itertools.product(classes, repeat=4))
    totals = [
      sum(scores[n, c] for n, c in enumerate(path))
      - penalty * sum(a != b for a, b in zip(path, path[1:]))
      for path in paths
    ]
    best = [c for c, _ in itertools.groupby(paths[int(np.argmax(totals))]) if c != speech.NO_NUMBER]
    assert speech.decode_numbers(scores, penalty) == best


def test_windows_are_cut_around_the_middles():
  wave_T = np.arange(100, dtype=np.float32)
  labelled = speech.number_windows(wave_T, [('two', 20, 40), ('three', 60, 80)], length=10)
  assert [label for _, label in labelled] == [2, speech.NO_NUMBER, 3, speech.NO_NUMBER]
  assert [window[5] for window, _ in labelled] == [30, 50, 70, 90]
  np.testing.assert_array_equal(speech.windows(wave_T, 10, 50)[1], np.arange(45, 55))


def test_grammar_scores_of_hand_made_clips():
  scores = speech.grammar_scores([[1, 2, 3], [9, 0], [5, 4, 4], [7]], steps=[1, 1, -1 % 10, 1])
  assert scores == {'obeys': 0.5, 'right_steps': 4 / 5, 'numbers': 9 / 4}


def test_step_of_a_prompt():
  assert speech.counting_step('three two one zero nine'.split()) == 9
  with pytest.raises(ValueError, match='does not count'):
    speech.counting_step('one two four'.split())


def test_word_error_rate_counts_edits():
  assert speech.word_error_rate([[1, 2, 3], [4]], [[1, 3], [5, 4]]) == pytest.approx(2 / 4)


def test_error_rates_are_edit_distances_over_all_clips():
  """Against the classic recursion, by words and by characters."""
  texts = ['One, two three.', 'nine eight', "It's six"]
  heard = iter(['one too three four', '', "it's six"])
  found = speech.error_rates(lambda wave_T, rate: next(heard), [np.zeros(1)] * 3, texts, 16_000)
  assert found.words == pytest.approx((2 + 2 + 0) / 7)

  @functools.cache
  def edits(a, b):
    if not a or not b:
      return len(a) + len(b)
    return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))

  characters = edits('one two three', 'one too three four') + len('nine eight')
  assert found.characters == pytest.approx(characters / len("one two threenine eightit's six"))


def test_error_rates_say_what_is_missing(monkeypatch):
  recognize = lambda wave_T, rate: 'one'
  with pytest.raises(ValueError, match='2 clips and 1 texts'):
    speech.error_rates(recognize, [np.zeros(1)] * 2, ['one'], 16_000)
  with pytest.raises(ValueError, match=r'clips \[1\] have no text'):
    speech.error_rates(recognize, [np.zeros(1)] * 2, ['one', ' . '], 16_000)
  monkeypatch.setitem(sys.modules, 'jiwer', None)
  with pytest.raises(ValueError, match=r"jiwer is not installed: run .pip install -e '\.\[eval\]'"):
    speech.error_rates(recognize, [np.zeros(1)], ['one'], 16_000)


def test_pocketsphinx_hears_numbers_and_less_of_them_in_noise():
  config = synthesized.Config(
    num_train_voices=2, num_test_voices=1, train_minutes=1.0, counting_share=1.0, highest_number=9
  )
  requests = synthesized.requests(config, 'train')[:2]
  spoken = synthesized.speak(
    [{**r, 'voice': 'en-us+m3', 'pitch': 40, 'rate': 140, 'gap': 15} for r in requests], 1
  )
  rate, texts = spoken[0][0]['rate'], [r['text'] for r in requests]
  clean = [wave_T / 32768 for _, wave_T in spoken]
  random = np.random.default_rng(0)
  recognize = speech.pocketsphinx_numbers()
  errors = [
    speech.error_rates(
      recognize, [wave_T + noise * random.normal(size=len(wave_T)) for wave_T in clean], texts, rate
    )
    for noise in (0.02, 0.1, 0.2)  # digital silence between words is foreign to its model
  ]
  words, characters = [e.words for e in errors], [e.characters for e in errors]
  assert words[0] < 0.3 and words == sorted(words) and words[2] > words[0] + 0.2, words
  assert characters == sorted(characters), characters
  assert recognize(clean[0], rate) == recognize(clean[0], rate)  # whatever was heard before

import itertools

import numpy as np
import pytest

from audiolm_jax.metrics import speech


def test_decoding_finds_the_best_of_all_paths():
  random = np.random.default_rng(0)
  for penalty in (0.5, 2.0):
    scores = np.log(random.dirichlet(np.ones(11), size=4)).astype(np.float32)
    classes = (0, 3, 7, speech.NO_NUMBER)
    scores[:, [c for c in range(11) if c not in classes]] = -1e9
    paths = list(itertools.product(classes, repeat=4))
    totals = [
        sum(scores[n, c] for n, c in enumerate(path)) - penalty * sum(a != b for a, b in zip(path, path[1:]))
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

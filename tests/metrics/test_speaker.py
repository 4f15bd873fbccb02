import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from audiolm_jax.metrics import speaker


def test_similarity_is_that_of_scikit_learn_and_zero_has_no_direction():
  one_ND, other_ND = np.random.default_rng(0).normal(size=(2, 5, 3))
  np.testing.assert_allclose(
    speaker.similarity(one_ND, other_ND), np.diagonal(cosine_similarity(one_ND, other_ND))
  )
  np.testing.assert_array_equal(speaker.similarity(np.zeros((1, 3)), one_ND[:1]), [0])


def test_verification_by_hand():
  prompts = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])  # mean 0
  clips = np.array([[2.0, 0], [0, -3], [0, 5], [0, -1]])
  found = speaker.verification(prompts, clips, np.array([0, 1, 2, 3]))
  assert found.own == pytest.approx(np.mean([1, 0, 1, 1]))
  assert found.others == pytest.approx(np.mean([-1, 0, 0] + [0, -1, 1] + [0, 0, -1] + [0, 0, -1]))


def test_voices_that_blur_are_told_apart_less_and_less():
  random = np.random.default_rng(1)
  voice_ND, speaker_B = random.normal(size=(8, 16)), np.arange(64) % 8
  # an offset that all voices share
  prompts = voice_ND[speaker_B] + 0.1 * random.normal(size=(64, 16)) + 7
  found = [
    speaker.verification(
      prompts, voice_ND[speaker_B] + noise * random.normal(size=(64, 16)) + 7, speaker_B
    )
    for noise in (0.1, 1.0, 4.0, 50.0)
  ]
  own, errors = [f.own for f in found], [f.equal_error_rate for f in found]
  assert own == sorted(own, reverse=True) and errors == sorted(errors)
  assert (
    own[0] > 0.95
    and errors[0] < 0.01
    and abs(errors[-1] - 0.5) < 0.1
    and abs(found[0].others) < 0.2
  )


def test_one_speaker_has_nobody_to_be_compared_with():
  with pytest.raises(ValueError, match='all 2 prompts are of one speaker'):
    speaker.verification(np.eye(2), np.eye(2), np.array([3, 3]))


def test_a_voice_that_turns_away_drifts_by_the_cosine_of_its_angle():
  prompts = [np.array([3.0, 0.0, 0.0]), np.array([0.0, 0.0, 0.5])]
  angle_N = np.deg2rad([0, 30, 60, 90, 180])
  turning = np.stack([np.cos(angle_N), np.sin(angle_N), 0 * angle_N], axis=1) * np.array(
    [[1], [2], [3], [4], [5]]
  )
  constant = np.array([[0, 0, 2.0], [0, 0, 7.0]])  # over after two windows
  np.testing.assert_allclose(speaker.drift(prompts[:1], [turning]), np.cos(angle_N), atol=1e-12)
  np.testing.assert_allclose(
    speaker.drift(prompts, [turning, constant]),
    [1, (1 + np.sqrt(0.75)) / 2, 0.5, 0, -1],
    atol=1e-12,
  )

import numpy as np

from audiolm_jax.metrics import speaker


def test_a_voice_that_turns_away_drifts_by_the_cosine_of_its_angle():
  prompts = [np.array([3.0, 0.0, 0.0]), np.array([0.0, 0.0, 0.5])]
  angle_N = np.deg2rad([0, 30, 60, 90, 180])
  turning = np.stack([np.cos(angle_N), np.sin(angle_N), 0 * angle_N], axis=1) * np.array([[1], [2], [3], [4], [5]])
  constant = np.array([[0, 0, 2.0], [0, 0, 7.0]])  # over after two windows
  np.testing.assert_allclose(speaker.drift(prompts[:1], [turning]), np.cos(angle_N), atol=1e-12)
  np.testing.assert_allclose(
      speaker.drift(prompts, [turning, constant]), [1, (1 + np.sqrt(0.75)) / 2, 0.5, 0, -1], atol=1e-12
  )


def test_similarity_is_the_cosine_and_silence_resembles_nothing():
  one = np.array([[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
  other = np.array([[1.0, 0.0], [0.0, -3.0], [1.0, 0.0]])
  np.testing.assert_allclose(speaker.similarity(one, other), [np.sqrt(0.5), -1, 0], atol=1e-12)

import pytest

from audiolm_jax.errors import UserError
from experiments.evaluations import lyra


def test_a_folder_without_the_models_is_named(tmp_path):
  (tmp_path / 'quantizer.tflite').touch()
  with pytest.raises(UserError, match='lacks soundstream_encoder.tflite, lyragan.tflite'):
    lyra.check(str(tmp_path))


def test_levels_have_the_bits_of_their_rate():
  frames_per_second, bits = lyra.SAMPLE_RATE / lyra.HOP_LENGTH, 4
  for rate, levels in lyra.LEVELS.items():
    assert levels * bits * frames_per_second == rate * 1000

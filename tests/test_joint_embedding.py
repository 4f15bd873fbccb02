"""Clips and texts of any length in one space; CLAP's part is in pretrained/test_clap.py."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from audiolm_jax import joint_embedding
from audiolm_jax.data import texts
from audiolm_jax.stages import base, mulan
from audiolm_jax.training import saving
from tests import toys
from tests.stages.test_mulan import CONFIG, NUM_BYTES

RATE, WINDOW = 16_000, 4000


@pytest.fixture(scope='module')
def joint():
  params = nn.meta.unbox(jax.jit(CONFIG.make().init)(jax.random.key(0)).params)
  return joint_embedding.of_mulan(CONFIG, base.Variables(params, {}))


def noise(num_samples, seed=0):
  """Noise whose loudness changes, so that windows differ."""
  random = np.random.default_rng(seed)
  return (np.linspace(0.01, 1, num_samples) * random.normal(size=num_samples)).astype(np.float32)


def embedded(joint, *windows):
  function = jax.jit(mulan.audio_embeddings, static_argnums=0)
  return np.asarray(function(CONFIG, joint.variables, np.stack(windows)))


def test_a_clip_is_the_mean_of_its_windows(joint):
  wave_BT = np.stack([noise(2 * RATE + WINDOW + 700), noise(2 * RATE + WINDOW + 700, 1)])
  got_BND = joint.windows(wave_BT)
  assert got_BND.shape == (2, 3, 8)
  for row in range(2):
    windows_ND = embedded(
      joint, *(wave_BT[row, start : start + WINDOW] for start in (0, RATE, 2 * RATE))
    )
    assert np.abs(windows_ND[0] - windows_ND[2]).max() > 1e-3
    np.testing.assert_allclose(got_BND[row], windows_ND, atol=1e-5)
    mean_D = windows_ND.mean(axis=0)
    np.testing.assert_allclose(
      joint.audio(wave_BT)[row], mean_D / np.linalg.norm(mean_D), atol=1e-5
    )


def test_padding_does_not_count_and_short_clips_end_in_silence(joint):
  lengths = [RATE + WINDOW, 1234, WINDOW]
  wave_BT = np.full((3, 2 * RATE), 0.7, np.float32)
  for row, length in enumerate(lengths):
    wave_BT[row, :length] = noise(length, row)
  got_BND = joint.windows(wave_BT, np.array(lengths))
  assert [joint.num_windows(length) for length in lengths] == [2, 1, 1]
  np.testing.assert_array_equal(got_BND[1:, 1:], 0)
  short_T = np.concatenate([wave_BT[1, :1234], np.zeros(WINDOW - 1234, np.float32)])
  np.testing.assert_allclose(got_BND[1:2, 0], embedded(joint, short_T), atol=1e-5)
  got_BD = joint.audio(wave_BT, np.array(lengths))
  np.testing.assert_array_equal(got_BD, joint.audio(wave_BT, np.array(lengths)))  # deterministic
  for row, length in enumerate(lengths):
    np.testing.assert_allclose(
      joint.audio(wave_BT[row : row + 1, :length])[0], got_BD[row], atol=1e-5
    )
  np.testing.assert_allclose(np.linalg.norm(got_BD, axis=1), 1, atol=1e-6)


def test_thirty_seconds_have_the_windows_of_musiclm():
  config = mulan.Config()
  paper = joint_embedding.of_mulan(config, base.Variables({}, {}))
  assert paper.num_windows(30 * paper.sample_rate) == 21
  assert paper.num_windows(10 * paper.sample_rate) == 1


def test_texts(joint):
  captions = [f'drum {n}' for n in range(joint_embedding.CHUNK + 1)]
  got_BD = joint.texts(captions)
  ids_BL = texts.encode(captions, NUM_BYTES)
  wanted_BD = jax.jit(mulan.text_embeddings, static_argnums=0)(CONFIG, joint.variables, ids_BL)
  np.testing.assert_allclose(got_BD, wanted_BD, atol=1e-5)
  np.testing.assert_allclose(joint.texts(captions[3:4]), got_BD[3:4], atol=1e-6)


@pytest.mark.parametrize(
  'captions, message',
  [
    (['harp', ''], "'' is blank"),
    (['♪♪♪♪♪♪'], 'has 18 bytes in UTF-8, the model reads at most 16'),
    (['harp', 3], '3 is of type int: pass a string'),
    ('harp', 'is a single text'),
    ([], 'no texts'),
  ],
)
def test_wrong_texts_are_refused(joint, captions, message):
  with pytest.raises(ValueError, match=message):
    joint.texts(captions)


def test_wrong_clips_are_refused(joint):
  wave_BT = np.zeros((2, WINDOW), np.float32)
  with pytest.raises(ValueError, match='clip 1 has 0 samples, in a row of 4000'):
    joint.audio(wave_BT, np.array([WINDOW, 0]))
  with pytest.raises(ValueError, match='clip 0 has 4001 samples, in a row of 4000'):
    joint.audio(wave_BT, np.array([WINDOW + 1, 1]))
  with pytest.raises(ValueError, match='no clips'):
    joint.audio(wave_BT[:0])
  wave_BT[1, 5] = np.nan
  with pytest.raises(ValueError, match='clip 1 has samples that are NaN'):
    joint.audio(wave_BT)


def test_checkpoints(joint, tmp_path):
  saving.save_variables(tmp_path / 'mulan', CONFIG, joint.variables, {})
  loaded = joint_embedding.load(tmp_path / 'mulan')
  assert loaded.config == CONFIG and loaded.fingerprint == joint.fingerprint
  np.testing.assert_array_equal(loaded.texts(['a harp']), joint.texts(['a harp']))
  other = toys.model('detector')
  saving.save_variables(tmp_path / 'detector', other.config, other.variables, {})
  with pytest.raises(ValueError, match='stages.detector, which does not embed texts'):
    joint_embedding.load(tmp_path / 'detector')

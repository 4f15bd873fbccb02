import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.stages import base, detector
from tests.stages import steps

CONFIG = detector.Config(channels=(8, 16), num_mels=16, crop_seconds=0.25)


def clips(key, count):
  """Noise (original) and noise with a faint tone of any pitch (generated), and their labels."""
  label_key, pitch_key, noise_key = jax.random.split(key, 3)
  label_B = jax.random.bernoulli(label_key, shape=(count,)).astype(jnp.int32)
  pitch_B1 = jax.random.uniform(pitch_key, (count, 1), minval=500, maxval=3000)
  tone_BT = 0.05 * jnp.sin(2 * np.pi * pitch_B1 * jnp.arange(4000) / 16_000)
  return {
    'waveform': 0.02 * jax.random.normal(noise_key, (count, 4000)) + label_B[:, None] * tone_BT,
    'label': label_B,
  }


@pytest.fixture(scope='module')
def variables():
  return base.Variables(nn.meta.unbox(jax.jit(CONFIG.make().init)(jax.random.key(0)).params), {})


def test_paper_size():
  stage = detector.Config().make()
  params = jax.eval_shape(stage.init, jax.random.key(0)).params
  channels = (1, *detector.Config().channels)
  convolutions = sum(3 * a * b + 3 * b * b + 4 * b for a, b in zip(channels, channels[1:]))
  assert sum(x.size for x in jax.tree.leaves(params)) == convolutions + 512 + 1
  assert stage.batch['waveform'].shape == (16_000,)  # 1 s


def test_learns_to_tell_and_is_sure_of_it(variables):
  batches = (clips(jax.random.key(n), 12) for n in range(40))
  params = steps.trained(CONFIG.make(), variables.params, batches)
  fresh = clips(jax.random.key(999), 24)
  log_odds_B = detector.log_odds(CONFIG, base.Variables(params, {}), fresh['waveform'])
  assert (
    np.mean((np.asarray(log_odds_B) > 0) == (np.asarray(fresh['label']) == detector.GENERATED))
    > 0.9
  )


def test_loss_is_the_log_likelihood_of_the_known_labels(variables):
  batch = clips(jax.random.key(1), 6)
  batch['label'] = jnp.asarray([0, 1, 1, -1, 0, 1])  # one is padding
  got, aux = CONFIG.make().loss(variables.params, {}, batch, None)
  log_odds_B = np.asarray(detector.log_odds(CONFIG, variables, batch['waveform']), np.float64)
  generated_B = 1 / (1 + np.exp(-log_odds_B))
  likelihood_B = np.where(np.asarray(batch['label']) == 1, generated_B, 1 - generated_B)
  known = [0, 1, 2, 4, 5]
  np.testing.assert_allclose(got, -np.log(likelihood_B)[known].mean(), rtol=1e-5)
  np.testing.assert_allclose(aux.metrics['accuracy'], np.mean(likelihood_B[known] > 0.5), rtol=1e-6)


def test_a_clip_below_one_window_is_an_error(variables):
  with pytest.raises(ValueError, match='399 samples'):
    detector.log_odds(CONFIG, variables, jnp.zeros((2, 399)))

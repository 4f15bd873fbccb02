import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.stages import base, classifier
from tests.stages import steps

CONFIG = classifier.Config(num_classes=3, channels=(8, 8, 16), num_mels=16, crop_seconds=0.25)


def tones(key, count):
  """Tones of three pitches at random phases in noise, and their labels."""
  label_key, phase_key, noise_key = jax.random.split(key, 3)
  label_B = jax.random.randint(label_key, (count,), 0, 3)
  pitch_B = jnp.asarray([300.0, 900.0, 2700.0])[label_B]
  time_T = jnp.arange(4000) / 16_000
  phase_B1 = jax.random.uniform(phase_key, (count, 1), maxval=2 * np.pi)
  wave_BT = 0.1 * jnp.sin(2 * np.pi * pitch_B[:, None] * time_T + phase_B1)
  return {
    'waveform': wave_BT + 0.02 * jax.random.normal(noise_key, wave_BT.shape),
    'label': label_B,
  }


@pytest.fixture(scope='module')
def variables():
  return base.Variables(nn.meta.unbox(jax.jit(CONFIG.make().init)(jax.random.key(0)).params), {})


def test_paper_size():
  stage = classifier.Config(num_classes=291).make()
  params = jax.eval_shape(stage.init, jax.random.key(0)).params
  count = sum(x.size for x in jax.tree.leaves(params))
  channels = (1, *classifier.Config(num_classes=291).channels)
  convolutions = sum(3 * a * b + 3 * b * b + 4 * b for a, b in zip(channels, channels[1:]))
  assert count == convolutions + 512 * 291 + 291
  assert stage.batch['waveform'].shape == (16_000,) and stage.batch['label'].rate is None


def test_learns_to_tell_tones(variables):
  batches = (tones(jax.random.key(n), 12) for n in range(40))
  params = steps.trained(CONFIG.make(), variables.params, batches)
  fresh = tones(jax.random.key(999), 24)
  logits_BN = classifier.logits(CONFIG, base.Variables(params, {}), fresh['waveform'])
  assert np.mean(np.argmax(logits_BN, -1) == np.asarray(fresh['label'])) > 0.9


def test_loss_is_the_cross_entropy_of_the_known_labels(variables):
  batch = tones(jax.random.key(1), 4)
  batch['label'] = batch['label'].at[2].set(-1)  # padding
  got, aux = CONFIG.make().loss(variables.params, {}, batch, None)
  logits_BN = np.asarray(classifier.logits(CONFIG, variables, batch['waveform']), np.float64)
  nats = np.log(np.exp(logits_BN).sum(-1)) - logits_BN[np.arange(4), np.asarray(batch['label'])]
  np.testing.assert_allclose(got, nats[[0, 1, 3]].mean(), rtol=1e-5)
  correct = logits_BN.argmax(-1) == np.asarray(batch['label'])
  np.testing.assert_allclose(aux.metrics['accuracy'], correct[[0, 1, 3]].mean(), rtol=1e-6)


def test_logits_are_a_linear_function_of_the_embedding(variables):
  wave_BT = tones(jax.random.key(3), 3)['waveform']
  embedding_BD = np.asarray(classifier.embedding(CONFIG, variables, wave_BT))
  assert embedding_BD.shape == (3, 16)
  layer = variables.params['logits']
  got = classifier.logits(CONFIG, variables, wave_BT)
  np.testing.assert_allclose(
    got, embedding_BD @ np.asarray(layer['kernel']) + layer['bias'], atol=1e-5
  )


def test_logits_take_any_length_and_do_not_mix_examples(variables):
  wave_BT = tones(jax.random.key(2), 3)['waveform'][:, :3333]
  together = classifier.logits(CONFIG, variables, wave_BT)
  alone = classifier.logits(CONFIG, variables, wave_BT[1:2])
  np.testing.assert_allclose(together[1], alone[0], atol=1e-4)
  with pytest.raises(ValueError, match='399 samples'):
    classifier.logits(CONFIG, variables, wave_BT[:, :399])

import jax
import jax.numpy as jnp

from audiolm_jax import losses
from audiolm_jax.nn.discriminators import Discriminators, WaveformDiscriminator


def test_logits_and_features_have_the_sizes_of_the_paper():
  num_samples = 16_384
  module = Discriminators().module(jnp.float32)
  shapes = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((2, num_samples)))[
    0
  ]
  assert [len(j.features) for j in shapes] == [7, 6, 6, 6]
  # Window 1024 without padding: 61 frames, three strides of 2 in time, six in frequency.
  assert shapes[0].logits_BN.shape == (2, 8)
  assert [f.shape[-1] for f in shapes[0].features] == [32, 64, 128, 128, 256, 256, 512]
  assert shapes[0].features[-1].shape[2] == 8
  for scale, output in enumerate(shapes[1:]):
    assert output.logits_BN.shape == (2, num_samples // 256 // 2**scale)
    assert [f.shape[-1] for f in output.features] == [16, 64, 256, 1024, 1024, 1024]


def test_a_discriminator_separates_what_it_is_trained_on():
  module = WaveformDiscriminator(channels=4, max_channels=8)
  tone_BT = jnp.sin(jnp.arange(512) * 0.3 + jnp.arange(4.0)[:, None])
  noise_BT = jax.random.normal(jax.random.key(2), (4, 512)) / 2**0.5
  params = jax.jit(module.init)(jax.random.key(0), tone_BT)

  def loss(params):
    real, fake = (module.apply(params, wave_BT).logits_BN for wave_BT in (tone_BT, noise_BT))
    return losses.hinge_discriminator([real], [fake])

  @jax.jit
  def train(params):
    step = lambda params, _: (
      jax.tree.map(lambda p, g: p - 0.03 * g, params, jax.grad(loss)(params)),
      loss(params),
    )
    return jax.lax.scan(step, params, length=100)[1]

  values = train(params)
  assert values[-1] < 0.2 < 1 < values[0]

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax.metrics import codec

RATE = 8000


def _noise(seed):
  return jax.random.normal(jax.random.key(seed), (2, RATE // 2)) / 4


def test_si_sdr_is_the_ratio_of_orthogonal_noise_and_ignores_scale():
  reference_BT = _noise(0) - jnp.mean(_noise(0), axis=-1, keepdims=True)
  noise_BT = _noise(1) - jnp.mean(_noise(1), axis=-1, keepdims=True)
  projection = jnp.sum(noise_BT * reference_BT, -1, keepdims=True) / jnp.sum(
    reference_BT**2, -1, keepdims=True
  )
  noise_BT -= projection * reference_BT
  norms = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (reference_BT, noise_BT)]
  noise_BT *= 0.1 * norms[0] / norms[1]
  for scale in (1.0, -3.0):
    np.testing.assert_allclose(
      codec.si_sdr(reference_BT, scale * (reference_BT + noise_BT)), [20, 20], atol=1e-3
    )


def test_si_sdr_is_bounded_for_silence_and_equality():
  np.testing.assert_allclose(
    codec.si_sdr(_noise(0), jnp.zeros_like(_noise(0))), [-100, -100], atol=0.1
  )
  np.testing.assert_allclose(codec.si_sdr(_noise(0), _noise(0)), [100, 100], atol=2)
  np.testing.assert_allclose(codec.si_sdr(jnp.zeros((1, 8)), jnp.zeros((1, 8))), [-100], atol=0.1)


def test_log_mel_distance_of_a_gain_is_its_logarithm():
  np.testing.assert_allclose(
    codec.log_mel_distance(_noise(0), 2 * _noise(0), RATE), [np.log(2)] * 2, rtol=1e-4
  )


def test_codebook_perplexity_of_uniform_codes_is_their_number():
  np.testing.assert_allclose(
    codec.codebook_perplexity(jnp.arange(6).reshape(1, 6, 1), 32), [6], rtol=1e-5
  )


def test_stft_distance_of_a_gain_is_in_closed_form():
  """Doubled magnitudes: a convergence of 1 and a log distance of log 2 at every scale."""
  np.testing.assert_allclose(
    codec.multi_scale_stft_distance(_noise(0), 2 * _noise(0)), [1 + np.log(2)] * 2, rtol=1e-3
  )
  np.testing.assert_allclose(
    codec.multi_scale_stft_distance(_noise(0), _noise(0)), [0, 0], atol=1e-6
  )
  short_BT = _noise(0)[:, :600]  # one window fits
  np.testing.assert_allclose(
    codec.multi_scale_stft_distance(short_BT, -3 * short_BT), [2 + np.log(3)] * 2, rtol=1e-3
  )

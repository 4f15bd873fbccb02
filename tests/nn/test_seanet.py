import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from audiolm_jax import audio
from audiolm_jax.nn.seanet import Decoder, Encoder, MelEncoder

HOP = 8
STRIDES = {1: (2, 4), 4: (2,)}  # by stem_stride


@pytest.fixture(scope='module', params=STRIDES)
def stem_stride(request):
  return request.param


@pytest.fixture(scope='module')
def encode(stem_stride):
  module = Encoder(
    channels=2, strides=STRIDES[stem_stride], embedding_dim=4, stem_stride=stem_stride
  )
  params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8 * HOP)))
  return jax.jit(lambda wave_BT: module.apply(meta.unbox(params), wave_BT))


@pytest.fixture(scope='module')
def decode(stem_stride):
  module = Decoder(channels=2, strides=STRIDES[stem_stride], stem_stride=stem_stride)
  params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 4)))
  return jax.jit(lambda z_BFD: module.apply(meta.unbox(params), z_BFD))


def test_encoder_frame_depends_on_its_samples_and_the_past_alone(encode):
  wave_BT = jax.random.normal(jax.random.key(1), (1, 8 * HOP))
  clean_BFD = encode(wave_BT)
  assert clean_BFD.shape == (1, 8, 4)
  for first in (5 * HOP - 1, 5 * HOP):
    broken_BFD = encode(wave_BT.at[:, first:].set(jnp.nan))
    untouched = first // HOP
    np.testing.assert_array_equal(broken_BFD[:, :untouched], clean_BFD[:, :untouched])
    assert np.isnan(broken_BFD[:, untouched:]).all()


def test_decoder_sample_depends_on_its_frame_and_the_past_alone(decode):
  z_BFD = jax.random.normal(jax.random.key(1), (1, 8, 4))
  clean_BT, broken_BT = decode(z_BFD), decode(z_BFD.at[:, 5:].set(jnp.nan))
  assert clean_BT.shape == (1, 8 * HOP)
  np.testing.assert_array_equal(broken_BT[:, : 5 * HOP], clean_BT[:, : 5 * HOP])
  assert np.isnan(broken_BT[:, 5 * HOP :]).all()


def test_a_prefix_gives_the_prefix(encode, decode):
  wave_BT = jax.random.normal(jax.random.key(1), (2, 8 * HOP))
  z_BFD = encode(wave_BT)
  np.testing.assert_allclose(encode(wave_BT[:, : 3 * HOP]), z_BFD[:, :3], atol=1e-5)
  np.testing.assert_allclose(decode(z_BFD[:, :3]), decode(z_BFD)[:, : 3 * HOP], atol=1e-5)


def test_mel_frames_are_of_the_last_four_hops():
  wave_BT = np.random.default_rng(0).normal(size=(2, 2560)).astype(np.float32)
  got_BFM = MelEncoder(num_mels=20, sample_rate=8000, hop_length=320).apply({}, wave_BT)
  padded_BT = np.pad(wave_BT, ((0, 0), (960, 0)))
  window_N = np.hanning(1281)[:-1]
  for frame in range(8):
    magnitude_BN = np.abs(np.fft.rfft(padded_BT[:, 320 * frame :][:, :1280] * window_N))
    want_BM = np.log(
      np.maximum(magnitude_BN @ audio.mel_filterbank(8000, 1280, 20), audio.LOG_FLOOR)
    )
    np.testing.assert_allclose(got_BFM[:, frame], want_BM, rtol=1e-3, atol=1e-3)

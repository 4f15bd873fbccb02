import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from audiolm_jax.nn import frame_rate
from audiolm_jax.nn.frame_rate import FrameRate

CONFIG = FrameRate(hop_length=8, window_length=24, overlap=4, width=6, num_blocks=2, kernel_size=3)
FRAMES = 7


def _made(module, example):
  return meta.unbox(jax.jit(module.init)(jax.random.key(0), example))['params']


def _wave(frames=FRAMES):
  return jax.random.normal(jax.random.key(1), (2, frames * CONFIG.hop_length))


def test_a_frame_sees_its_own_hop_and_the_past():
  module, wave_BT = frame_rate.Encoder(CONFIG, 5), _wave()
  params = _made(module, wave_BT)
  apply = jax.jit(lambda wave_BT: module.apply({'params': params}, wave_BT))
  whole_BFD = apply(wave_BT)
  assert whole_BFD.shape == (2, FRAMES, 5)
  changed_BFD = apply(wave_BT.at[:, 4 * CONFIG.hop_length].add(1.0))
  difference_F = np.abs(np.asarray(changed_BFD - whole_BFD)).max(axis=(0, 2))
  assert difference_F[:4].max() == 0 and difference_F[4:6].min() > 1e-4


def test_an_encoder_that_looks_ahead_sees_the_next_hops_and_silence_after_the_clip():
  config = dataclasses.replace(CONFIG, lookahead=2)
  module, wave_BT = frame_rate.Encoder(config, 5), _wave()
  params = _made(module, wave_BT)
  apply = jax.jit(lambda wave_BT: module.apply({'params': params}, wave_BT))
  whole_BFD = apply(wave_BT)
  changed_BFD = apply(wave_BT.at[:, 4 * config.hop_length].add(1.0))
  difference_F = np.abs(np.asarray(changed_BFD - whole_BFD)).max(axis=(0, 2))
  assert difference_F[:2].max() == 0 and difference_F[2:6].min() > 1e-4
  # The network is that of the causal encoder, whose frames are two later.
  heard_BT = np.pad(wave_BT, ((0, 0), (0, 2 * config.hop_length)))
  later_BFD = jax.jit(frame_rate.Encoder(CONFIG, 5).apply)({'params': params}, heard_BT)
  np.testing.assert_allclose(whole_BFD, later_BFD[:, 2:], atol=1e-6)


def test_a_sample_depends_on_no_later_frame_and_a_hop_on_the_frame_before():
  module, z_BFD = frame_rate.Decoder(CONFIG), jax.random.normal(jax.random.key(1), (2, FRAMES, 5))
  params = _made(module, z_BFD)
  apply = jax.jit(lambda z_BFD: module.apply({'params': params}, z_BFD))
  whole_BT = apply(z_BFD)
  assert whole_BT.shape == (2, FRAMES * CONFIG.hop_length)
  changed_BT = apply(z_BFD.at[:, 4].add(1.0))
  difference_FH = np.abs(np.asarray(changed_BT - whole_BT))[0].reshape(FRAMES, CONFIG.hop_length)
  assert difference_FH[:4].max() == 0 and difference_FH[4:6].max(axis=1).min() > 1e-4


@pytest.mark.parametrize('overlap', [0, 4, 8])
def test_overlap_add_of_pieces_of_one_signal_is_the_signal(overlap):
  """Each frame holds the samples of its hop and the first of the next: cross-fading them changes
  nothing.
  """
  hop, signal_T = 8, np.random.default_rng(0).normal(size=8 * FRAMES + overlap)
  frames_FN = np.stack([signal_T[f * hop : (f + 1) * hop + overlap] for f in range(FRAMES)])
  module = frame_rate.Decoder(FrameRate(hop_length=hop, window_length=8, overlap=overlap))
  windowed = jnp.asarray(frames_FN * frame_rate._crossfade(hop, overlap))[None]
  got_T = module.apply({}, windowed, method='_overlap_add')[0]
  np.testing.assert_allclose(got_T[overlap:], signal_T[overlap : hop * FRAMES], atol=1e-6)
  assert overlap == 0 or abs(float(got_T[0])) < abs(signal_T[0])  # nothing is there to fade from


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(window_length=12), 'window_length=12'),
    (dict(overlap=9), 'overlap=9'),
    (dict(overlap=3), 'overlap=3'),
    (dict(lookahead=-1), 'lookahead=-1'),
    (dict(width=0), 'width=0'),
    (dict(num_blocks=-1), 'num_blocks=-1'),
  ],
)
def test_impossible_sizes_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    FrameRate(**(dict(hop_length=8, window_length=24, overlap=4) | changes))

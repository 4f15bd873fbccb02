"""Chunks give what the whole clip gives, whatever their sizes, and clips of any length come back at
that length.
"""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import streaming
from audiolm_jax.nn import quantizer
from audiolm_jax.nn.frame_rate import FrameRate
from audiolm_jax.stages import soundstream
from tests.stages.test_soundstream import CONFIG, FSQ, random_variables

CONFIGS = {
  'rvq': CONFIG,
  'fsq': FSQ,
  'stem': dataclasses.replace(
    CONFIG, network=dataclasses.replace(CONFIG.network, stem_stride=4, strides=(2,))
  ),
  'mel': dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, mel_encoder=True)),
  'frame_rate': dataclasses.replace(
    CONFIG,
    network=FrameRate(
      hop_length=8, window_length=24, overlap=4, width=8, num_blocks=2, kernel_size=3
    ),
  ),
}
# frames; one is shorter than what the dilated convolutions remember
HOP, FRAMES, LARGEST_CHUNK = 8, 24, 5


@functools.partial(jax.jit, static_argnums=0)
def encode_step(config, variables, state, wave_BT):
  return streaming.encode_step(config, variables, state, wave_BT)


@functools.partial(jax.jit, static_argnums=0)
def decode_step(config, variables, state, codes_BFQ):
  return streaming.decode_step(config, variables, state, codes_BFQ)


@functools.cache
def whole(name):
  """Returns config, variables, waveform, and its codes and their waveform in one piece."""
  config = CONFIGS[name]
  variables = random_variables(config)
  wave_BT = jnp.asarray(np.random.default_rng(1).normal(size=(3, FRAMES * HOP)), jnp.float32)
  codes_BFQ = jax.jit(soundstream.encode, static_argnums=0)(config, variables, wave_BT)
  decoded_BT = jax.jit(soundstream.decode, static_argnums=0)(config, variables, codes_BFQ)
  return config, variables, wave_BT, codes_BFQ, decoded_BT


def in_chunks(step, state, array, sizes, unit):
  """Returns what `step` makes of the chunks of array [B, N, ...], `sizes` times `unit` long, joined
  along N.
  """
  parts, start = [], 0
  for size in sizes:
    part, state = step(state, array[:, start * unit : (start + size) * unit])
    parts.append(part)
    start += size
  return jnp.concatenate(parts, axis=1)


@st.composite
def chunkings(draw):
  """Draws sizes in frames that add up to FRAMES."""
  sizes = []
  while (left := FRAMES - sum(sizes)) > 0:
    sizes.append(draw(st.integers(1, min(left, LARGEST_CHUNK))))
  return sizes


@pytest.mark.parametrize('name', CONFIGS)
def test_no_frame_here_is_within_rounding_of_another_code(name):
  """So that the tests below may ask for equal codes: rounding moves a distance by about 1e-6."""
  config, variables, wave_BT, *_ = whole(name)
  z_BFD = soundstream.encoder(config).apply(
    {'params': variables.params['generator']['encoder']}, wave_BT
  )
  if isinstance(config.quantizer, quantizer.FSQ):
    bounded_BFD = np.asarray(quantizer._fsq_bound(config.quantizer.levels, z_BFD))
    assert np.abs(bounded_BFD - np.floor(bounded_BFD) - 0.5).min() > 1e-5
    return
  vectors_QKD = variables.state['codebooks'].vectors_QKD
  _, residuals_QBFD = quantizer.encode(vectors_QKD, z_BFD)
  for residual_BFD, vectors_KD in zip(residuals_QBFD, vectors_QKD):
    nearest = np.sort(
      np.linalg.norm(np.asarray(residual_BFD)[:, :, None] - np.asarray(vectors_KD), axis=-1),
      axis=-1,
    )
    assert (nearest[..., 1] - nearest[..., 0]).min() > 1e-5


@pytest.mark.parametrize('name', CONFIGS)
@hypothesis.given(sizes=chunkings())
@hypothesis.settings(max_examples=25, deadline=None)
def test_any_chunks_give_the_codes_and_the_waveform_of_the_whole(name, sizes):
  config, variables, wave_BT, codes_BFQ, decoded_BT = whole(name)
  encode, decode = (
    functools.partial(step, config, variables) for step in (encode_step, decode_step)
  )
  got_BFQ = in_chunks(encode, streaming.encoder_state(config, 3), wave_BT, sizes, HOP)
  np.testing.assert_array_equal(got_BFQ, codes_BFQ)
  got_BT = in_chunks(decode, streaming.decoder_state(config, 3), codes_BFQ, sizes, 1)
  np.testing.assert_allclose(got_BT, decoded_BT, atol=1e-5)


def test_a_batch_gives_what_its_clips_give():
  config, variables, wave_BT, codes_BFQ, decoded_BT = whole('rvq')
  encode, decode = (
    functools.partial(step, config, variables) for step in (encode_step, decode_step)
  )
  for row in range(3):
    one = slice(row, row + 1)
    got_BFQ = in_chunks(encode, streaming.encoder_state(config, 1), wave_BT[one], [4] * 6, HOP)
    np.testing.assert_array_equal(got_BFQ, codes_BFQ[one])
    got_BT = in_chunks(decode, streaming.decoder_state(config, 1), codes_BFQ[one], [4] * 6, 1)
    np.testing.assert_allclose(got_BT, decoded_BT[one], atol=1e-5)


def test_one_hop_of_samples_is_a_frame_and_back():
  """Nothing is waited for: the latency is one frame, 20 ms for AudioLM's codec."""
  config, variables, wave_BT, codes_BFQ, decoded_BT = whole('rvq')
  got_BFQ, _ = encode_step(config, variables, streaming.encoder_state(config, 3), wave_BT[:, :HOP])
  np.testing.assert_array_equal(got_BFQ, codes_BFQ[:, :1])
  got_BT, _ = decode_step(config, variables, streaming.decoder_state(config, 3), got_BFQ)
  np.testing.assert_allclose(got_BT, decoded_BT[:, :HOP], atol=1e-5)
  assert soundstream.AUDIOLM.hop_length / soundstream.AUDIOLM.sample_rate == 0.02


def test_the_first_levels_alone():
  config, variables, wave_BT, codes_BFQ, _ = whole('rvq')
  state = streaming.encoder_state(config, 3)
  got_BFQ, _ = streaming.encode_step(config, variables, state, wave_BT[:, :HOP], 2)
  np.testing.assert_array_equal(got_BFQ, codes_BFQ[:, :1, :2])


@pytest.mark.parametrize('num_samples', [1, HOP - 1, HOP, HOP + 1, 3 * HOP - 5])
def test_clips_of_any_length_come_back_at_that_length(num_samples):
  config, variables, wave_BT, *_ = whole('rvq')
  encode = jax.jit(streaming.encode_clip, static_argnums=0)
  codes_BFQ = encode(config, variables, wave_BT[:, :num_samples])
  frames = -(-num_samples // HOP)
  assert codes_BFQ.shape == (3, frames, 3)
  silenced_BT = wave_BT[:, : frames * HOP].at[:, num_samples:].set(0)
  np.testing.assert_array_equal(codes_BFQ, encode(config, variables, silenced_BT))
  decode = jax.jit(streaming.decode_clip, static_argnums=(0, 3))
  decoded_BT = decode(config, variables, codes_BFQ, num_samples)
  assert decoded_BT.shape == (3, num_samples)
  np.testing.assert_allclose(
    decoded_BT, decode(config, variables, codes_BFQ, frames * HOP)[:, :num_samples], atol=1e-5
  )


def test_mistakes_are_explained():
  config, variables, wave_BT, codes_BFQ, _ = whole('rvq')
  state = streaming.encoder_state(config, 3)
  with pytest.raises(ValueError, match='12 samples; .* multiple of hop_length=8'):
    streaming.encode_step(config, variables, state, wave_BT[:, :12])
  with pytest.raises(ValueError, match='num_quantizers=4: .* levels 1 to 3'):
    streaming.encode_step(config, variables, state, wave_BT[:, :HOP], 4)
  with pytest.raises(ValueError, match=r'chunk is of 2 clips, the state of \[3\]'):
    streaming.encode_step(config, variables, state, wave_BT[:2, :HOP])
  with pytest.raises(ValueError, match=r'chunk is of 3 clips, the state of \[1\]'):
    streaming.decode_step(config, variables, streaming.decoder_state(config, 1), codes_BFQ)
  with pytest.raises(ValueError, match='0 samples'):
    streaming.encode_clip(config, variables, wave_BT[:, :0])
  for num_samples in (0, 2 * HOP, 3 * HOP + 1):
    with pytest.raises(
      ValueError, match=f'num_samples={num_samples} does not go with 3 frames of hop_length=8'
    ):
      streaming.decode_clip(config, variables, codes_BFQ[:, :3], num_samples)

"""Clips in pieces through imported codecs: the codes and the audio are those of the whole clip."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.pretrained import dac, encodec
from experiments import chunks

DAC = dac.Config(
  sample_rate=400,
  strides=(2, 5),
  encoder_channels=4,
  decoder_channels=8,
  num_quantizers=3,
  codebook_size=16,
  codebook_dim=4,
)
ENCODEC = encodec.Config(
  sample_rate=400,
  strides=(2, 5),
  num_filters=2,
  embedding_dim=4,
  num_quantizers=2,
  codebook_size=16,
  num_lstm_layers=1,
)
CODECS = {'dac': DAC, 'encodec': ENCODEC}


@pytest.fixture(scope='module', params=sorted(CODECS))
def codec(request):
  config = CODECS[request.param]
  return chunks.Codec(config, jax.jit(config.make().init)(jax.random.key(0)), '0' * 16, None)


def parts(rows, length):
  return (np.asarray(rows[start : start + length]) for start in range(0, len(rows), length))


@pytest.mark.parametrize('num_samples', [1, 400, 1809])
def test_pieces_are_the_whole(codec, num_samples):
  """The whole is followed by silence, and its last frame by itself, as far as the codec looks."""
  config, frames = codec.config, codec.chunk_frames
  functions, num_frames = config.codec(), -(-num_samples // config.hop_length)
  wave_T = np.random.default_rng(num_samples).standard_normal(num_samples).astype(np.float32)
  codes_FQ = np.concatenate(list(chunks.encode(codec, parts(wave_T, frames * config.hop_length))))[
    :num_frames
  ]
  # Frames; more than needed, and another number. EnCodec mirrors the first 6 in front of them,
  # where there are as many.
  behind = 2 * functions.context + 8
  padded_T = np.pad(wave_T, (0, (num_frames + behind) * config.hop_length - num_samples))
  want_FQ = np.asarray(chunks._encode(config, codec.variables, padded_T[None], None))[
    0, :num_frames
  ]
  np.testing.assert_array_equal(codes_FQ, want_FQ)
  got_T = np.concatenate(list(chunks.decode(codec, parts(codes_FQ, frames))))[
    : num_frames * config.hop_length
  ]
  held_FQ = np.concatenate([codes_FQ, np.repeat(codes_FQ[-1:], behind, axis=0)])
  want_T = np.asarray(chunks._decode(config, codec.variables, held_FQ[None]))[
    0, : num_frames * config.hop_length
  ]
  np.testing.assert_allclose(got_T, want_T, atol=1e-5)
  assert np.std(want_T) > 1e-4


@pytest.mark.parametrize(
  'config', [DAC, dac.Config(encoder_channels=2, decoder_channels=16)], ids=['odd', 'published']
)
def test_context_is_what_a_frame_depends_on(config):
  """The Jacobian says from where frames and samples are influenced: nothing from farther than
  `context`.
  """
  variables, frames = jax.jit(config.make().init)(jax.random.key(1)), 2 * config.context + 3
  middle = frames // 2
  wave_BT = jnp.asarray(
    np.random.default_rng(0).standard_normal((1, frames * config.hop_length)), jnp.float32
  )
  encoder = lambda wave_BT: (
    dac.Encoder(config).apply({'params': variables.params['encoder']}, wave_BT)[0, middle].sum()
  )
  z_BFD = jnp.asarray(
    np.random.default_rng(1).standard_normal((1, frames, config.embedding_dim)), jnp.float32
  )
  span = slice(middle * config.hop_length, (middle + 1) * config.hop_length)
  decoder = lambda z_BFD: (
    dac.Decoder(config).apply({'params': variables.params['decoder']}, z_BFD)[0, span].sum()
  )
  by_frame = np.abs(jax.jit(jax.grad(encoder))(wave_BT)).reshape(frames, -1).max(axis=1)
  by_code = np.abs(jax.jit(jax.grad(decoder))(z_BFD))[0].max(axis=-1)
  reached = [
    abs(int(frame) - middle)
    for influence in (by_frame, by_code)
    for frame in np.flatnonzero(influence)
  ]
  assert config.context - 3 <= max(reached) <= config.context


def test_few_shapes(codec):
  """However many pieces a clip has, DAC compiles its first and the others; EnCodec a power of two
  of seconds.
  """
  for function in (chunks._encode, chunks._decode):
    function.clear_cache()
  hop, frames = codec.config.hop_length, codec.chunk_frames
  for num_frames in (130, 155):
    codes = list(chunks.encode(codec, parts(np.ones(num_frames * hop, np.float32), frames * hop)))
    list(chunks.decode(codec, parts(np.concatenate(codes)[:num_frames], frames)))
  wanted = 2 if codec.config is DAC else 1
  assert chunks._encode._cache_size() == chunks._decode._cache_size() == wanted


def test_a_clip_too_long_to_be_taken_whole_is_refused():
  codec = chunks.Codec(ENCODEC, None, '0' * 16, None)
  with pytest.raises(ValueError, match='longer than 128 s.*cut it'):
    list(
      chunks.encode(
        codec, itertools.repeat(np.zeros(codec.chunk_frames * ENCODEC.hop_length, np.float32), 200)
      )
    )
  assert list(chunks.encode(codec, iter(()))) == []

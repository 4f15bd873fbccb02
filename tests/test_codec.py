"""Chunks give what the whole clip gives, whatever their sizes, and clips of any length come back at
that length.
"""

import dataclasses
import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import audiolm_jax
from audiolm_jax import codec as codec_lib
from audiolm_jax.codec import Codec
from audiolm_jax.errors import UserError
from audiolm_jax.nn import quantizer
from audiolm_jax.nn.denoising import DenoisingSwitch
from audiolm_jax.nn.frame_rate import FrameRate
from audiolm_jax.pretrained import dac, encodec
from audiolm_jax.stages import soundstream
from audiolm_jax.stages.base import Variables
from audiolm_jax.training import saving
from tests.toy_codec import CONFIG, FSQ, random_variables

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
CONFIGS['lookahead'] = dataclasses.replace(
  CONFIG, network=dataclasses.replace(CONFIGS['frame_rate'].network, overlap=8, lookahead=2)
)
HOP, FRAMES = 8, 24
# Each size compiles twice for each codec; the dilated convolutions remember more than 2 frames.
CHUNKS = (1, 2, 5)


@functools.cache
def whole(name):
  """Returns codec, waveform, and its codes and their waveform in one piece."""
  config = CONFIGS[name]
  variables = random_variables(config)
  wave_BT = jnp.asarray(np.random.default_rng(1).normal(size=(3, FRAMES * HOP)), jnp.float32)
  codes_BFQ = jax.jit(soundstream.encode, static_argnums=0)(config, variables, wave_BT)
  decoded_BT = jax.jit(soundstream.decode, static_argnums=0)(config, variables, codes_BFQ)
  return Codec(config, variables), wave_BT, codes_BFQ, decoded_BT


def in_chunks(step, state, array, sizes, unit):
  """Returns what `step` makes of the chunks of array [B, N, ...], `sizes` times `unit` long, joined
  along N.
  """
  array, parts, start = np.asarray(array), [], 0
  for size in sizes:
    part, state = step(state, array[:, start * unit : (start + size) * unit])
    parts.append(part)
    start += size
  return np.concatenate(parts, axis=1)


@st.composite
def chunkings(draw):
  """Draws sizes in frames that add up to FRAMES."""
  sizes = []
  while (left := FRAMES - sum(sizes)) > 0:
    sizes.append(draw(st.sampled_from([size for size in CHUNKS if size <= left])))
  return sizes


@pytest.mark.parametrize('name', CONFIGS)
def test_no_frame_here_is_within_rounding_of_another_code(name):
  """So that the tests below may ask for equal codes: rounding moves a distance by about 1e-6."""
  codec, wave_BT, *_ = whole(name)
  config, variables = codec.config, codec.variables
  params = {'params': variables.params['generator']['encoder']}
  z_BFD = jax.jit(soundstream.encoder(config).apply)(params, wave_BT)
  if isinstance(config.quantizer, quantizer.FSQ):
    bounded_BFD = np.asarray(quantizer._fsq_bound(config.quantizer.levels, z_BFD))
    assert np.abs(bounded_BFD - np.floor(bounded_BFD) - 0.5).min() > 1e-5
    return
  vectors_QKD = variables.state['codebooks'].vectors_QKD
  _, residuals_QBFD = jax.jit(quantizer.encode)(vectors_QKD, z_BFD)
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
  codec, wave_BT, codes_BFQ, decoded_BT = whole(name)
  stream = codec.stream
  silence_BT = np.zeros((3, stream.delay * HOP), np.float32)
  heard_BT = np.concatenate([wave_BT, silence_BT], axis=1)
  late = [stream.delay] if stream.delay else []
  got_BFQ = in_chunks(stream.encode, stream.encoder_state(3), heard_BT, sizes + late, HOP)
  np.testing.assert_array_equal(got_BFQ[:, stream.delay :], codes_BFQ)
  got_BT = in_chunks(stream.decode, stream.decoder_state(3), codes_BFQ, sizes, 1)
  np.testing.assert_allclose(got_BT, decoded_BT, atol=1e-5)


def test_a_batch_gives_what_its_clips_give():
  codec, wave_BT, codes_BFQ, decoded_BT = whole('rvq')
  stream = codec.stream
  for row in range(3):
    one = slice(row, row + 1)
    got_BFQ = in_chunks(stream.encode, stream.encoder_state(1), wave_BT[one], [4] * 6, HOP)
    np.testing.assert_array_equal(got_BFQ, codes_BFQ[one])
    got_BT = in_chunks(stream.decode, stream.decoder_state(1), codes_BFQ[one], [4] * 6, 1)
    np.testing.assert_allclose(got_BT, decoded_BT[one], atol=1e-5)


def test_one_hop_of_samples_is_a_frame_and_back():
  """Nothing is waited for: the latency is one frame, 20 ms for AudioLM's codec."""
  codec, wave_BT, codes_BFQ, decoded_BT = whole('rvq')
  stream = codec.stream
  got_BFQ, _ = stream.encode(stream.encoder_state(3), wave_BT[:, :HOP])
  np.testing.assert_array_equal(got_BFQ, codes_BFQ[:, :1])
  got_BT, _ = stream.decode(stream.decoder_state(3), got_BFQ)
  np.testing.assert_allclose(got_BT, decoded_BT[:, :HOP], atol=1e-5)
  assert soundstream.AUDIOLM.hop_length / soundstream.AUDIOLM.sample_rate == 0.02


def test_the_first_levels_alone():
  codec, wave_BT, codes_BFQ, _ = whole('rvq')
  got_BFQ, _ = codec.stream.encode(codec.stream.encoder_state(3), wave_BT[:, :HOP], 2)
  np.testing.assert_array_equal(got_BFQ, codes_BFQ[:, :1, :2])


@pytest.mark.parametrize('num_samples', [0, 5, 7 * HOP, 8 * HOP - 1, 8 * HOP + 1, FRAMES * HOP])
def test_blocks_of_a_codec_that_looks_ahead_are_the_whole(num_samples, monkeypatch):
  codec, wave_BT, *_ = whole('lookahead')
  assert codec.stream.delay == 2
  monkeypatch.setattr(Codec, 'block_frames', 4)
  wave_T = np.asarray(wave_BT)[0, :num_samples]
  got = list(codec.encode_blocks(parts(wave_T, 4 * HOP)))
  frames = -(-num_samples // HOP)
  assert [len(block_FQ) for block_FQ in got] == [4] * -(-frames // 4)
  if frames:
    want_FQ = np.asarray(codec.encode(wave_T[None]))[0]
    np.testing.assert_array_equal(np.concatenate(got)[:frames], want_FQ)


@pytest.mark.parametrize('num_samples', [1, HOP - 1, HOP, HOP + 1, 3 * HOP - 5])
def test_clips_of_any_length_come_back_at_that_length(num_samples):
  codec, wave_BT, *_ = whole('rvq')
  codes_BFQ = codec.encode(wave_BT[:, :num_samples])
  frames = -(-num_samples // HOP)
  assert codes_BFQ.shape == (3, frames, 3)
  silenced_BT = wave_BT[:, : frames * HOP].at[:, num_samples:].set(0)
  np.testing.assert_array_equal(codes_BFQ, codec.encode(silenced_BT))
  decoded_BT = codec.decode(codes_BFQ, num_samples)
  assert decoded_BT.shape == (3, num_samples)
  np.testing.assert_allclose(decoded_BT, codec.decode(codes_BFQ)[:, :num_samples], atol=1e-5)
  np.testing.assert_allclose(codec.reconstruct(wave_BT[:, :num_samples]), decoded_BT, atol=1e-5)


def test_mistakes_are_explained():
  codec, wave_BT, codes_BFQ, _ = whole('rvq')
  stream = codec.stream
  state = stream.encoder_state(3)
  with pytest.raises(UserError, match='12 samples; .* multiple of hop_length=8'):
    stream.encode(state, wave_BT[:, :12])
  with pytest.raises(UserError, match='num_quantizers=4: must be from 1 to 3'):
    stream.encode(state, wave_BT[:, :HOP], 4)
  with pytest.raises(UserError, match=r'chunk has 2 clips, the state \[3\]'):
    stream.encode(state, wave_BT[:2, :HOP])
  with pytest.raises(UserError, match=r'chunk has 3 clips, the state \[1\]'):
    stream.decode(stream.decoder_state(1), codes_BFQ)
  with pytest.raises(UserError, match='0 samples'):
    codec.encode(wave_BT[:, :0])
  with pytest.raises(UserError, match='codes_BFQ holds 16, outside of 0 to 15'):
    codec.decode(np.full((1, 2, 3), 16))
  with pytest.raises(UserError, match='without a denoising switch'):
    dataclasses.replace(codec, denoise=True).encode(wave_BT[:, :HOP])
  for num_samples in (0, 2 * HOP, 3 * HOP + 1):
    with pytest.raises(
      UserError, match=f'num_samples={num_samples} does not match 3 frames of hop_length=8'
    ):
      codec.decode(codes_BFQ[:, :3], num_samples)


@pytest.mark.parametrize('place', ['encoder', 'decoder'])
def test_the_denoising_switch_is_that_of_the_stage(place):
  config = dataclasses.replace(CONFIG, denoising=DenoisingSwitch(place=place))
  variables = random_variables(config)
  codec = Codec(config, variables)
  wave_BT = whole('rvq')[1][:1, : 4 * HOP]
  want_BT = jax.jit(soundstream.denoised, static_argnums=0)(config, variables, wave_BT)
  denoising = dataclasses.replace(codec, denoise=True)
  np.testing.assert_allclose(denoising.reconstruct(wave_BT), want_BT, atol=1e-5)
  assert codec.functions.switch == place and codec.fingerprint == denoising.fingerprint


def test_a_codec_is_a_tree_of_its_weights():
  codec, wave_BT, codes_BFQ, _ = whole('rvq')
  assert len(jax.tree.leaves(codec)) == len(jax.tree.leaves(codec.variables))
  zeroed = jax.tree.map(jnp.zeros_like, codec)
  assert zeroed.config is codec.config and zeroed.fingerprint != codec.fingerprint
  encode = jax.jit(lambda codec, wave_BT: codec.encode(wave_BT))
  np.testing.assert_array_equal(encode(codec, wave_BT), codes_BFQ)
  np.testing.assert_array_equal(encode(zeroed, wave_BT), 0 * codes_BFQ)
  assert encode._cache_size() == 1


def test_rates():
  codec = Codec(soundstream.AUDIOLM, Variables({}, {}))
  assert (codec.sample_rate, codec.hop_length, codec.frame_rate) == (16_000, 320, 50)
  assert (codec.num_quantizers, codec.codebook_size, codec.context) == (12, 1024, 0)
  assert (codec.bit_rate(), codec.bit_rate(4)) == (6000, 2000)  # AudioLM, section III-A


def test_what_is_saved_is_loaded_by_a_path_that_is_text(tmp_path):
  codec, wave_BT, codes_BFQ, _ = whole('rvq')
  saving.save_variables(str(tmp_path / 'soundstream'), codec.config, codec.variables)
  for directory in (tmp_path, tmp_path / 'soundstream'):
    loaded = audiolm_jax.load_codec(str(directory))
    assert loaded.config == codec.config and loaded.fingerprint == codec.fingerprint
  np.testing.assert_array_equal(loaded.encode(wave_BT), codes_BFQ)
  with pytest.raises(UserError, match='already holds a checkpoint .step 0.: choose another'):
    saving.save_variables(tmp_path / 'soundstream', codec.config, codec.variables)
  with pytest.raises(UserError, match='elsewhere does not exist: train or import a codec'):
    audiolm_jax.load_codec(tmp_path / 'elsewhere')


# Codecs that others trained, in pieces.

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
  return Codec(config, jax.jit(config.make().init)(jax.random.key(0)))


def parts(rows, length):
  return (np.asarray(rows[start : start + length]) for start in range(0, len(rows), length))


@pytest.mark.parametrize('num_samples', [1, 400, 1809])
def test_pieces_are_the_whole(codec, num_samples):
  """The whole is followed by silence, and its last frame by itself, as far as the codec looks."""
  config, frames = codec.config, codec.block_frames
  functions, num_frames = config.codec(), -(-num_samples // config.hop_length)
  wave_T = np.random.default_rng(num_samples).standard_normal(num_samples).astype(np.float32)
  codes_FQ = np.concatenate(list(codec.encode_blocks(parts(wave_T, frames * config.hop_length))))[
    :num_frames
  ]
  # Frames; more than needed, and another number. EnCodec mirrors the first 6 in front of them,
  # where there are as many.
  behind = 2 * functions.context + 8
  padded_T = np.pad(wave_T, (0, (num_frames + behind) * config.hop_length - num_samples))
  want_FQ = np.asarray(codec.encode(padded_T[None]))[0, :num_frames]
  np.testing.assert_array_equal(codes_FQ, want_FQ)
  got_T = np.concatenate(list(codec.decode_blocks(parts(codes_FQ, frames))))[
    : num_frames * config.hop_length
  ]
  held_FQ = np.concatenate([codes_FQ, np.repeat(codes_FQ[-1:], behind, axis=0)])
  want_T = np.asarray(codec.decode(held_FQ[None]))[0, : num_frames * config.hop_length]
  np.testing.assert_allclose(got_T, want_T, atol=1e-5)
  assert np.std(want_T) > 1e-4


@pytest.mark.parametrize(
  'config',
  [
    pytest.param(DAC, id='odd'),
    pytest.param(
      dac.Config(encoder_channels=2, decoder_channels=16), id='published', marks=pytest.mark.slow
    ),
  ],
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
  for function in (codec_lib._encode, codec_lib._decode):
    function.clear_cache()
  hop, frames = codec.config.hop_length, codec.block_frames
  for num_frames in (130, 155):
    codes = list(codec.encode_blocks(parts(np.ones(num_frames * hop, np.float32), frames * hop)))
    list(codec.decode_blocks(parts(np.concatenate(codes)[:num_frames], frames)))
  wanted = 2 if codec.config is DAC else 1
  assert codec_lib._encode._cache_size() == codec_lib._decode._cache_size() == wanted


def test_a_clip_too_long_to_be_taken_whole_is_refused():
  codec = Codec(ENCODEC, Variables({}, {}))
  with pytest.raises(ValueError, match='longer than 128 s.*cut it'):
    list(
      codec.encode_blocks(
        itertools.repeat(np.zeros(codec.block_frames * ENCODEC.hop_length, np.float32), 200)
      )
    )
  assert list(codec.encode_blocks(iter(()))) == []


def test_code_vectors_are_those_of_the_codebooks_up_to_a_constant():
  codec = Codec(CONFIG, random_variables(CONFIG))
  books_QKD = np.asarray(codec.variables.state['codebooks'].vectors_QKD)
  centred = lambda vectors_QKD: vectors_QKD - vectors_QKD.mean(axis=1, keepdims=True)
  np.testing.assert_allclose(centred(codec.code_vectors()), centred(books_QKD), atol=1e-5)

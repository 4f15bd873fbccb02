"""A codec network whose layers all run at the frame rate, after Vocos (arXiv 2306.00814).

Encoder: short-time spectrum -> ConvNeXt blocks -> embedding. Decoder: embedding -> ConvNeXt blocks
-> magnitude and phase -> inverse FFT -> overlap-add. Its products of large matrices at 50 frames/s
fill matrix units and take less CPU time than SEANet's convolutions, which have few channels at up
to 16,000 steps/s.

Unlike Vocos, the network is causal: frame f sees samples before (f + 1 + lookahead) * hop_length,
and sample t depends on no frame after t // hop_length. The inverse FFT of a frame therefore covers
its own hop and only `overlap` samples of the next hop, where the two frames are cross-faded. An
encoder without lookahead has to describe samples of the next hop that it has not seen; with one
frame of lookahead and `overlap=hop_length` it has seen them all (docs/results/speech.md compares).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float

from audiolm_jax import audio, checks
from audiolm_jax.errors import UserError
from audiolm_jax.nn.attention import partitioned
from audiolm_jax.nn.conv import PAST, with_past

MAGNITUDE_FLOOR = 1e-4  # the phase of quieter bins is not worth encoding
COMPRESSION = 0.3  # exponent of the magnitudes that the encoder reads


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameRate:
  """Configures encoder and decoder.

  Raises:
    UserError: if a field is illegal.
  """

  hop_length: int = 320  # samples per frame
  window_length: int = 640  # samples of the encoder's spectrum; a multiple of hop_length
  overlap: int = 160  # samples of the next hop that a decoded frame covers; at most hop_length
  lookahead: int = 0  # frames after its own that the encoder sees; they add to the latency
  width: int = 512
  num_blocks: int = 8  # of the encoder, and also of the decoder
  kernel_size: int = 7  # frames
  expansion: int = 3  # hidden width of a block, as a multiple of `width`

  def __post_init__(self):
    sizes = ('hop_length', 'window_length', 'width', 'num_blocks', 'kernel_size', 'expansion')
    overlap = checks.whole(0, self.hop_length)
    checks.fields(
      self, **dict.fromkeys(sizes, checks.WHOLE), overlap=overlap, lookahead=checks.whole(0)
    )
    if self.window_length % self.hop_length:
      raise UserError(
        f'window_length={self.window_length}: must be a multiple of hop_length={self.hop_length}'
      )
    if (self.hop_length + self.overlap) % 2:
      raise UserError(
        f'overlap={self.overlap} + hop_length={self.hop_length} must be even: change one of them'
      )

  @property
  def encoder_past(self) -> int:
    """Number of frames before a frame that the encoder reads for it."""
    return self.window_length // self.hop_length - 1 + self.num_blocks * (self.kernel_size - 1)

  def encoder(self, embedding_dim: int, sample_rate: int, dtype: Any) -> nn.Module:
    """Returns the network wave_BT -> z_BFD, the same at every sample rate."""
    return Encoder(self, embedding_dim, dtype)

  def decoder(self, dtype: Any) -> nn.Module:
    """Returns the network z_BFD -> wave_BT."""
    return Decoder(self, dtype)


class Block(nn.Module):
  """Causal ConvNeXt block [B, F, D] -> [B, F, D].

  Depthwise convolution, layer norm, two dense layers with GELU, and a scaled residual.
  """

  kernel_size: int
  expansion: int
  scale: float  # initial scale of the residual
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BFD):
    width, num_frames = x_BFD.shape[-1], x_BFD.shape[1]
    init = partitioned(nn.initializers.normal(self.kernel_size**-0.5), None, None)
    kernel_KD = self.param('depthwise', init, (self.kernel_size, width)).astype(self.dtype)
    kernel_K11D = kernel_KD[:, None, None]
    past_BFD = with_past(self, x_BFD, self.kernel_size - 1)
    # A sum of shifted products, because XLA:CPU has no fast depthwise convolution.
    h_BFD = sum(past_BFD[:, k : k + num_frames] * kernel_K11D[k] for k in range(self.kernel_size))
    h_BFD = nn.gelu(
      _dense(self.expansion * width, self.dtype, 'expand')(_norm(self.dtype, 'norm')(h_BFD))
    )
    gamma_D = self.param('gamma', partitioned(nn.initializers.constant(self.scale), None), (width,))
    gamma_11D = gamma_D.astype(self.dtype)[None, None]
    return x_BFD + gamma_11D * _dense(width, self.dtype, 'project')(h_BFD)


class Trunk(nn.Module):
  """Applies a dense layer, the blocks and a layer norm, [B, F, D] -> [B, F, width]."""

  config: FrameRate
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BFD):
    c = self.config
    x_BFD = _dense(c.width, self.dtype, 'stem')(x_BFD.astype(self.dtype))
    for index in range(c.num_blocks):
      x_BFD = Block(c.kernel_size, c.expansion, 1 / c.num_blocks, self.dtype, name=f'block{index}')(
        x_BFD
      )
    return _norm(self.dtype, 'norm')(x_BFD)


class Encoder(nn.Module):
  """Encodes waveforms [B, T] as embeddings [B, T / hop_length, embedding_dim].

  Whole clips are followed by silence for the lookahead. In a stream, embeddings are `lookahead`
  frames late: the first ones precede the clip.
  """

  config: FrameRate
  embedding_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, wave_BT):
    c = self.config
    late = 0 if self.is_mutable_collection(PAST) else c.lookahead
    wave_BT = jnp.pad(wave_BT, ((0, 0), (0, late * c.hop_length)))
    wave_BT = with_past(self, wave_BT, c.window_length - c.hop_length)
    spectrum_BFN = audio.stft(wave_BT, c.window_length, c.hop_length)
    magnitude_BFN = jnp.sqrt(
      jnp.square(spectrum_BFN.real) + jnp.square(spectrum_BFN.imag) + MAGNITUDE_FLOOR**2
    )
    compressed_BFN = spectrum_BFN * magnitude_BFN ** (COMPRESSION - 1)
    features = compressed_BFN.real, compressed_BFN.imag, COMPRESSION * jnp.log(magnitude_BFN)
    x_BFD = Trunk(c, self.dtype, name='trunk')(jnp.concatenate(features, axis=-1))[:, late:]
    return _dense(self.embedding_dim, self.dtype, 'head')(x_BFD).astype(jnp.float32)


class Decoder(nn.Module):
  """Decodes embeddings [B, F, D] to waveforms [B, F * hop_length]."""

  config: FrameRate
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z_BFD):
    c = self.config
    fft_length = c.hop_length + c.overlap
    x_BFD = Trunk(c, self.dtype, name='trunk')(z_BFD)
    spectrum = _dense(3 * (fft_length // 2 + 1), self.dtype, 'head')(x_BFD).astype(jnp.float32)
    log_magnitude_BFN, real_BFN, imaginary_BFN = jnp.split(spectrum, 3, axis=-1)
    # As in Vocos, the bound limits the effect of a bad step. The constant keeps the gradient finite
    # at 0.
    magnitude_BFN = jnp.minimum(jnp.exp(log_magnitude_BFN - 1), 100.0)
    length_BFN = jnp.sqrt(jnp.square(real_BFN) + jnp.square(imaginary_BFN) + 1e-6)
    unit_BFN = jnp.asarray(real_BFN, jnp.complex64) + 1j * imaginary_BFN
    frames_BFN = jnp.fft.irfft(magnitude_BFN * unit_BFN / length_BFN, n=fft_length)
    return self._overlap_add(frames_BFN * _crossfade(c.hop_length, c.overlap)[None, None])

  def _overlap_add(self, frames_BFN):
    """Returns the waveform: each hop is the sum of its frame and the previous frame's overlap."""
    hop, overlap = self.config.hop_length, self.config.overlap
    own_BFH, tail_BFO = frames_BFN[..., :hop], frames_BFN[..., hop:]
    before_BFO = with_past(self, tail_BFO, 1)[:, :-1]
    hops_BFH = own_BFH + jnp.pad(before_BFO, ((0, 0), (0, 0), (0, hop - overlap)))
    return hops_BFH.reshape(len(hops_BFH), -1)


def _crossfade(hop_length: int, overlap: int) -> Float[np.ndarray, 'N']:
  """Returns a window of hop_length + overlap samples; consecutive windows sum to 1."""
  rise_O = np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / max(overlap, 1)) ** 2
  return np.concatenate([rise_O, np.ones(hop_length - overlap), 1 - rise_O]).astype(np.float32)


def _dense(features: int, dtype: Any, name: str) -> nn.Dense:
  kernel_init = partitioned(nn.initializers.lecun_normal(), None, None)
  bias_init = partitioned(nn.initializers.zeros, None)
  return nn.Dense(features, dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, name=name)


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
  scale_init, bias_init = (
    partitioned(init, None) for init in (nn.initializers.ones, nn.initializers.zeros)
  )
  return nn.LayerNorm(dtype=dtype, scale_init=scale_init, bias_init=bias_init, name=name)

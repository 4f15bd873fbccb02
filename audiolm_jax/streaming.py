"""SoundStream over clips of any length, and chunk by chunk over clips without end, with a latency
of one frame.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from audiolm_jax import audio, checks
from audiolm_jax.errors import UserError
from audiolm_jax.nn.conv import PAST
from audiolm_jax.stages import soundstream
from audiolm_jax.stages.base import State, Variables
from audiolm_jax.stages.soundstream import Config, Denoise


def encode_clip(
  config: Config,
  variables: Variables,
  wave_BT: Float[Array, 'B T'],
  num_quantizers: int | None = None,
  *,
  denoise: Denoise = False,
) -> Int[Array, 'B F Q']:
  """As `soundstream.encode`, of a waveform of any length T >= 1, which zeros fill up to whole
  frames.

  F = ceil(T / hop_length).
  """
  checks.shapes(wave_BT=wave_BT)
  wave_BT = audio.pad_to_multiple(wave_BT, config.hop_length)
  return soundstream.encode(config, variables, wave_BT, num_quantizers, denoise=denoise)


def decode_clip(
  config: Config,
  variables: Variables,
  codes_BFQ: Int[Array, 'B F Q'],
  num_samples: int,
  *,
  denoise: Denoise = False,
) -> Float[Array, 'B T']:
  """As `soundstream.decode`, the T = `num_samples` samples that `encode_clip` was given.

  Raises ValueError when waveforms of `num_samples` have another number of frames.
  """
  checks.shapes(codes_BFQ=codes_BFQ)
  if -(-num_samples // config.hop_length) != codes_BFQ.shape[1] or num_samples < 1:
    raise UserError(
      f'num_samples={num_samples:,} does not go with {codes_BFQ.shape[1]} frames of hop_length={config.hop_length}: '
      'give the length of the waveform that was encoded'
    )
  return soundstream.decode(config, variables, codes_BFQ, denoise=denoise)[:, :num_samples]


def encoder_state(config: Config, batch_size: int) -> State:
  """Returns what `encode_step` is to be given with the first chunk of `batch_size` clips: silence
  before it.
  """
  return _silence(soundstream.encoder(config), jnp.zeros((batch_size, config.hop_length)))


def decoder_state(config: Config, batch_size: int) -> State:
  """Returns what `decode_step` is to be given with the first chunk of `batch_size` clips."""
  return _silence(soundstream.decoder(config), jnp.zeros((batch_size, 1, config.embedding_dim)))


def encode_step(
  config: Config,
  variables: Variables,
  state: State,
  wave_BT: Float[Array, 'B T'],
  num_quantizers: int | None = None,
  *,
  denoise: Denoise = False,
) -> tuple[Int[Array, 'B F Q'], State]:
  """As `soundstream.encode`, of the next chunk of each clip, T = any multiple of hop_length; and
  the state after it.

  Chunks of any sizes give the codes of the whole clip, but for a frame that lies, within the
  rounding of float32,
  between two codes: the order in which a convolution adds up may change with the length.

  Raises ValueError as that one, and when `state` is of another number of clips.
  """
  checks.shapes(wave_BT=wave_BT)
  soundstream.check_length(config, wave_BT.shape[-1])
  z_BFD, state = _step(
    soundstream.encoder(config), variables.params['generator']['encoder'], state, wave_BT
  )
  return soundstream.codes(config, variables, z_BFD, num_quantizers, denoise), state


def decode_step(
  config: Config,
  variables: Variables,
  state: State,
  codes_BFQ: Int[Array, 'B F Q'],
  *,
  denoise: Denoise = False,
) -> tuple[Float[Array, 'B T'], State]:
  """As `soundstream.decode`, of the codes of the next F >= 1 frames of each clip; and the state
  after them.
  """
  z_BFD = soundstream.vectors(config, variables, codes_BFQ, denoise)
  return _step(soundstream.decoder(config), variables.params['generator']['decoder'], state, z_BFD)


def _silence(module, example) -> State:
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), example))[PAST]
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _step(module, params, state: State, inputs):
  num_clips = {leaf.shape[0] for leaf in jax.tree.leaves(state)}
  if num_clips != {len(inputs)}:
    raise UserError(
      f'the chunk is of {len(inputs)} clips, the state of {sorted(num_clips)}: make a state for these'
    )
  outputs, updated = module.apply({'params': params, PAST: state}, inputs, mutable=[PAST])
  return outputs, updated[PAST]

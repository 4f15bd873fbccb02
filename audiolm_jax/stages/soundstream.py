"""SoundStream (arXiv 2107.03312): a neural codec, waveform_BT <-> codes_BFQ.

A causal convolutional encoder makes one embedding per `hop_length` samples, a residual vector
quantizer turns it into one code per level, and a causal decoder makes the waveform from the sum of
the code vectors. With the defaults (as in AudioLM): 16 kHz, 50 frames/s, 12 levels of 1024 codes,
6000 bit/s. Frame f depends on samples before (f + 1) * hop_length (later ones only with
`FrameRate.lookahead`), and no sample depends on a later frame. Quantizer dropout in training allows
decoding from any number of leading levels.

`encode` and `decode` take clips of whole frames, `encode_step` and `decode_step` consecutive
chunks; `audiolm_jax.codec.Codec` takes clips of any length.

Choices that the paper leaves open:

- A commitment loss is added, because the encoder could outrun its codebooks without it.
- Residual units have kernel 3 at full width (see `nn.seanet.ResidualUnit`), and D = 256, to match
  the paper's parameter counts.
- The logarithm of the spectral term has a floor, `spectral_floor`. At the small default, quiet
  frames dominate the gradient; docs/log.md shows the effect of higher values on two corpora.

Deviation: losses are means over time, bins, layers and discriminators instead of sums over frames
(see `losses`), so that they do not depend on the crop length. The weight of the feature term is 10
instead of 100, because the spectral term is near 20 at first and should dominate.

Options that are not in the paper and off by default:

- `discriminators.start` > 0 trains without discriminators before that step, and None throughout:
  short runs should spend their time on reconstruction.
- `loss_weights['waveform']` > 0 adds the relative squared error of the waveform, from which short
  runs learn phase; the spectral loss ignores it.
- `quantizer=FSQ(...)` uses finite scalar quantization (arXiv 2309.15505): one code per frame, no
  codebook, no dropout of levels. Its grid is fixed; embeddings are small at first and may all round
  to 0 for some hundred steps.
- `network=FrameRate(...)` uses a network at the frame rate (`nn.frame_rate`).
- `balance_decay` sets each loss weight such that the term contributes a fixed share of the gradient
  at the estimated waveform (EnCodec, arXiv 2210.13438, section 3.4, with decay 0.999 and shares
  1.1 spectral, 3 adversarial, 3 feature), so that no term dominates because its scale grew. It
  costs a second pass through the discriminators, once forward and twice backward. The total loss is
  then not informative; look at its terms.

`denoising=DenoisingSwitch(...)` adds the denoising switch of the paper's section III-F after the
encoder or before the decoder. Training then needs noise in addition to the waveform; a random half
of the examples is denoised.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from audiolm_jax import checks, losses
from audiolm_jax.errors import UserError
from audiolm_jax.nn import quantizer
from audiolm_jax.nn.conv import next_chunk, silent_past
from audiolm_jax.nn.denoising import DenoisingSwitch
from audiolm_jax.nn.discriminators import Discriminators
from audiolm_jax.nn.frame_rate import FrameRate
from audiolm_jax.nn.quantizer import FSQ, RVQ
from audiolm_jax.nn.seanet import SEANet
from audiolm_jax.stages.base import (
  Aux,
  CodecFunctions,
  Feature,
  Stage,
  State,
  StreamFunctions,
  Variables,
)

LOSS_WEIGHTS = {
  'spectral': 1.0,
  'waveform': 0.0,
  'commitment': 1.0,
  'adversarial': 1.0,
  'feature': 10.0,
  'discriminator': 1.0,  # the only term of its optimizer group
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures SoundStream; the defaults are AudioLM's codec.

  Raises:
    UserError: if a field is illegal, `crop_length` is not a whole number of frames, or
      `balance_decay` is set and all balanced weights are 0.
  """

  sample_rate: int = 16_000  # Hz
  crop_length: int = 16_000  # samples of a training example; not stated in the paper
  network: SEANet | FrameRate = SEANet()
  quantizer: RVQ | FSQ = RVQ()
  denoising: DenoisingSwitch | None = None
  discriminators: Discriminators = Discriminators()
  spectral_floor: float = 1e-5  # see `losses.spectral_reconstruction`
  spectral_windows: tuple[int, ...] = losses.SPECTRAL_WINDOWS  # samples
  # weights of loss terms by name; missing terms get their default
  loss_weights: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: dict(LOSS_WEIGHTS), hash=False
  )
  # decay per step of the moving averages of gradient lengths; None uses fixed weights
  balance_decay: float | None = None
  dtype: Any = jnp.float32  # of the convolutions; quantizer and losses are float32

  def __post_init__(self):
    checks.fields(
      self,
      sample_rate=checks.WHOLE,
      crop_length=checks.WHOLE,
      network=_of(SEANet, FrameRate),
      quantizer=_of(RVQ, FSQ),
      denoising=checks.optional(_of(DenoisingSwitch)),
      discriminators=_of(Discriminators),
      spectral_floor=checks.POSITIVE,
      spectral_windows=checks.each(checks.WHOLE),
      balance_decay=checks.optional(checks.BELOW_ONE),
      dtype=checks.FLOAT_TYPE,
    )
    object.__setattr__(self, 'loss_weights', _all_weights(self.loss_weights))
    check_length(self, self.crop_length)
    if self.balance_decay is not None and not any(self.loss_weights[name] for name in BALANCED):
      raise UserError(
        f'balance_decay={self.balance_decay} with all weights of {BALANCED} 0: make one weight '
        'positive'
      )

  @property
  def hop_length(self) -> int:
    """Number of samples per frame."""
    return self.network.hop_length

  @property
  def frame_rate(self) -> float:
    """Number of frames per second."""
    return self.sample_rate / self.hop_length

  @property
  def bit_rate(self) -> float:
    """Number of bits per second, with all levels."""
    return self.frame_rate * self.num_quantizers * math.log2(self.codebook_size)

  @property
  def num_quantizers(self) -> int:
    """Number of levels Q."""
    return self.quantizer.num_quantizers

  @property
  def codebook_size(self) -> int:
    """Number of codes per level."""
    return self.quantizer.codebook_size

  @property
  def embedding_dim(self) -> int:
    """Width D of embeddings."""
    return self.quantizer.embedding_dim

  @property
  def switch(self) -> str | None:
    """Place of the denoising switch, 'encoder' or 'decoder'; None without a switch."""
    return None if self.denoising is None else self.denoising.place

  def make(self) -> Stage:
    """Returns the stage, with the optimizer groups 'generator' and 'discriminator'."""
    names = ('waveform',) if self.denoising is None else ('waveform', 'noise')
    return Stage(
      batch={name: Feature((self.crop_length,), jnp.float32, self.sample_rate) for name in names},
      init=lambda key: _init(self, key),
      loss=lambda params, state, batch, key: _loss(self, params, state, batch, key),
      inference=_inference,
    )

  def codec(self) -> CodecFunctions:
    """Returns the functions of the codec, with a denoising switch if it has one."""
    plain = _functions(self, denoise=False)
    if self.denoising is None:
      return plain
    return plain._replace(switch=self.switch, denoised=_functions(self, denoise=True))


# Terms that depend on the estimated waveform.
BALANCED = ('spectral', 'waveform', 'adversarial', 'feature')


def _of(*kinds: type) -> checks.Legal:
  names = ' or '.join(kind.__name__ for kind in kinds)
  return checks.Legal(f'a {names} config', lambda value: isinstance(value, kinds))


def _all_weights(weights: Mapping[str, float]) -> dict[str, float]:
  """Returns the weights of all terms, with defaults for missing ones.

  Raises:
    UserError: if a name or weight is illegal.
  """
  checks.values(
    loss_weights=(weights, checks.Legal('a dict', lambda value: isinstance(value, Mapping)))
  )
  if unknown := sorted(set(weights) - set(LOSS_WEIGHTS)):
    raise UserError(
      f'loss_weights has unknown terms {unknown}: choose from {", ".join(LOSS_WEIGHTS)}'
    )
  checks.values(
    **{f'loss_weights.{name}': (value, checks.NOT_NEGATIVE) for name, value in weights.items()}
  )
  return {**LOSS_WEIGHTS, **weights}


def check_length(config: Config, num_samples: int):
  """Checks that a waveform is a positive number of whole frames.

  Args:
    config: config of the codec.
    num_samples: length of the waveform.

  Raises:
    UserError: if not.
  """
  if num_samples == 0 or num_samples % config.hop_length:
    raise UserError(
      f'waveform has {num_samples:,} samples; SoundStream needs a positive multiple of '
      f'hop_length={config.hop_length}: pad with audio.pad_to_multiple'
    )


AUDIOLM = Config()  # speech: 50 frames/s, 6000 bit/s
# AudioLM, section IV-I: 50 frames/s, 2100 bit/s
PIANO = Config(quantizer=RVQ(num_quantizers=3, codebook_size=2**14))
# SoundStream's paper: 75 frames/s, 6000 bit/s
SOUNDSTREAM = Config(sample_rate=24_000, crop_length=24_000, quantizer=RVQ(num_quantizers=8))
# MusicLM (arXiv 2301.11325): 50 frames/s, 6000 bit/s. The paper states only the product of the
# strides, 480.
MUSICLM = Config(sample_rate=24_000, crop_length=24_000, network=SEANet(strides=(3, 4, 5, 8)))

Denoise = bool | Bool[Array, 'B']
# Loss terms of discriminators whose logits are all 0.
UNDECIDED = {'adversarial': 1.0, 'feature': 0.0, 'discriminator': 2.0}


def _inference(variables: Variables) -> Variables:
  """Returns the generator's parameters and the vectors of the codebooks."""
  params, state = variables
  vectors_only = dict(counts_QK=None, sums_QKD=None, fitted=None)
  codebooks = {
    name: books._replace(**vectors_only) for name, books in state.items() if name == 'codebooks'
  }
  return Variables({'generator': params['generator']}, codebooks)


def encoder(config: Config) -> nn.Module:
  """Returns the network wave_BT -> z_BFD.

  Args:
    config: config of the codec.
  """
  return config.network.encoder(config.embedding_dim, config.sample_rate, config.dtype)


def decoder(config: Config) -> nn.Module:
  """Returns the network z_BFD -> wave_BT.

  Args:
    config: config of the codec.
  """
  return config.network.decoder(config.dtype)


def _init(config: Config, key: jax.Array) -> Variables:
  keys = jax.random.split(key, 4)
  wave_BT = jnp.zeros((1, config.crop_length))
  z_BFD = jnp.zeros((1, config.crop_length // config.hop_length, config.embedding_dim))
  params = {
    'generator': {
      'encoder': encoder(config).init(keys[0], wave_BT).get('params', {}),
      'decoder': decoder(config).init(keys[1], z_BFD)['params'],
    },
    'discriminator': config.discriminators.module(config.dtype).init(keys[2], wave_BT)['params'],
  }
  if config.denoising is not None:
    params['generator']['film'] = config.denoising.init(keys[0], z_BFD)
  state = {'step': jnp.zeros((), jnp.int32)}
  if isinstance(config.quantizer, RVQ):
    state['codebooks'] = quantizer.init(
      keys[3], config.num_quantizers, config.codebook_size, config.embedding_dim
    )
  if config.balance_decay is not None:
    state['balance'] = losses.init_balance(BALANCED)
  return Variables(params, state)


def _loss(config: Config, params, state, batch, key):
  generator, wave_BT = params['generator'], batch['waveform']
  input_BT, denoise_B = wave_BT, False
  if config.denoising is not None:
    denoise_key, key = (None, None) if key is None else jax.random.split(key)
    denoise_B = _denoised(denoise_key, len(wave_BT))
    input_BT = wave_BT + batch['noise']
    wave_BT = jnp.where(denoise_B[:, None], wave_BT, input_BT)
  on = _by_place(config, denoise_B)
  z_BFD = encoder(config).apply({'params': generator['encoder']}, input_BT)
  z_BFD = _switched(config, generator, 'encoder', z_BFD, on['encoder'])
  quantized, next_state = _quantize(config, state, z_BFD, key)
  z_BFD = _switched(config, generator, 'decoder', quantized.z_BFD, on['decoder'])
  estimate_BT = decoder(config).apply({'params': generator['decoder']}, z_BFD)
  waves = wave_BT, estimate_BT
  terms = _reconstruction_terms(config, *waves) | _discriminator_terms(
    config, params['discriminator'], state['step'], *waves
  )
  terms['commitment'] = quantized.commitment
  perplexity_Q = quantizer.perplexity(quantized.codes_BFQ, config.codebook_size)
  metrics = terms | {
    f'perplexity_{level}': perplexity_Q[level] for level in range(config.num_quantizers)
  }
  weights = dict(config.loss_weights)
  if config.balance_decay is not None:
    balance = state['balance']
    if key is not None:
      gradients = _estimate_gradients(config, params['discriminator'], state['step'], *waves)
      balance = losses.update_balance(balance, gradients, config.balance_decay)
    weights |= losses.balanced_weights(balance, config.loss_weights, estimate_BT.size)
    metrics |= {f'weight_{name}': weights[name] for name in BALANCED}
    next_state = next_state | {'balance': balance}
  return sum(weights[name] * term for name, term in terms.items()), Aux(next_state, metrics)


def _denoised(key, batch_size: int):
  """Returns which examples to denoise: each with probability 1/2, in evaluation all."""
  if key is None:
    return jnp.ones(batch_size, bool)
  return jax.random.bernoulli(key, shape=(batch_size,))


def _by_place(config: Config, denoise: Denoise) -> dict[str, Denoise]:
  """Returns `denoise` at the place of the switch and False at the other, by place."""
  return {p: denoise if config.switch == p else False for p in ('encoder', 'decoder')}


def _switched(config: Config, generator, place: str, z_BFD, denoise: Denoise):
  """Applies the denoising switch if it is at `place`.

  Raises:
    UserError: if noise is to be removed at `place`, but the codec has no switch there.
  """
  if config.switch == place:
    return config.denoising.apply(generator['film'], z_BFD, denoise)
  if denoise is not False:
    raise UserError(
      f'denoise needs denoising=DenoisingSwitch(place={place!r}), but this codec has '
      f'denoising={config.denoising}: train one with a switch there'
    )
  return z_BFD


def _reconstruction_terms(config: Config, wave_BT, estimate_BT):
  options = dict(
    sample_rate=config.sample_rate, floor=config.spectral_floor, windows=config.spectral_windows
  )
  return {
    'spectral': losses.spectral_reconstruction(wave_BT, estimate_BT, **options),
    'waveform': losses.relative_squared_error(wave_BT, estimate_BT),
  }


def _discriminator_terms(config: Config, params, step, wave_BT, estimate_BT):
  """Returns the terms of the discriminators.

  Before their start, these are the terms of undecided discriminators, so that the loss does
  not jump at the start.
  """
  if config.discriminators.start is None:
    return {name: jnp.zeros(()) for name in UNDECIDED}
  discriminate = lambda params, wave: config.discriminators.module(config.dtype).apply(
    {'params': params}, wave
  )
  return jax.lax.cond(
    step >= config.discriminators.start,
    lambda *waves: losses.adversarial_terms(discriminate, params, *waves),
    lambda *_: {name: jnp.full((), value) for name, value in UNDECIDED.items()},
    wave_BT,
    estimate_BT,
  )


def _estimate_gradients(config: Config, params, step, wave_BT, estimate_BT):
  """Returns the gradients [B, T] of the balanced terms with respect to the estimate, by name.

  The gradients are constants for further differentiation.
  """
  wave_BT, estimate_BT, params = jax.lax.stop_gradient((wave_BT, estimate_BT, params))

  def discriminator_terms(estimate_BT):
    terms = _discriminator_terms(config, params, step, wave_BT, estimate_BT)
    return {name: terms[name] for name in ('adversarial', 'feature')}

  reconstruction = jax.jacrev(
    lambda estimate_BT: _reconstruction_terms(config, wave_BT, estimate_BT)
  )(estimate_BT)
  return reconstruction | jax.jacrev(discriminator_terms)(estimate_BT)


def _quantize(config: Config, state, z_BFD, key):
  """Returns quantized embeddings and the next state.

  In training (`key` is not None), the codebooks are fitted or updated, and the step is counted.
  """
  if isinstance(config.quantizer, FSQ):
    return quantizer.fsq_quantize(config.quantizer.levels, z_BFD), state | {
      'step': state['step'] + (key is not None)
    }
  codebooks, batch_size = state['codebooks'], len(z_BFD)
  if key is None:
    levels_B = jnp.full(batch_size, config.num_quantizers)
    return quantizer.quantize(codebooks.vectors_QKD, z_BFD, levels_B), state
  dropout_key, fit_key, update_key = jax.random.split(key, 3)
  fewest = 1 if config.quantizer.dropout else config.num_quantizers
  levels_B = jax.random.randint(dropout_key, (batch_size,), fewest, config.num_quantizers + 1)
  codebooks = quantizer.fitted(codebooks, jax.lax.stop_gradient(z_BFD), fit_key)
  quantized = quantizer.quantize(codebooks.vectors_QKD, z_BFD, levels_B)
  codebooks = quantizer.update(
    codebooks,
    quantized,
    update_key,
    decay=config.quantizer.decay,
    dead_code_threshold=config.quantizer.dead_code_threshold,
  )
  return quantized, {'codebooks': codebooks, 'step': state['step'] + 1}


def discriminator_accuracy(
  config: Config,
  variables: Variables,
  wave_BT: Float[Array, 'B T'],
  estimate_BT: Float[Array, 'B T'],
) -> Float[Array, '']:
  """Returns the share of logits with the right sign, averaged over discriminators.

  0.5 means that they cannot distinguish the waveforms, 1 that they always can.

  Args:
    config: config of the codec.
    variables: parameters and state, with discriminators.
    wave_BT: original waveforms.
    estimate_BT: decoded waveforms.
  """
  checks.shapes(wave_BT=wave_BT, estimate_BT=estimate_BT)
  discriminate = lambda wave: config.discriminators.module(config.dtype).apply(
    {'params': variables.params['discriminator']}, wave
  )
  shares = [
    (jnp.mean(real.logits_BN > 0) + jnp.mean(fake.logits_BN < 0)) / 2
    for real, fake in zip(discriminate(wave_BT), discriminate(estimate_BT), strict=True)
  ]
  return sum(shares) / len(shares)


def encode(
  config: Config,
  variables: Variables,
  wave_BT: Float[Array, 'B T'],
  num_quantizers: int | None = None,
  *,
  denoise: Denoise = False,
) -> Int[Array, 'B F Q']:
  """Returns the codes of a waveform, F = T / hop_length.

  Args:
    config: sizes of the codec.
    variables: parameters and state of the codec.
    wave_BT: waveforms.
    num_quantizers: number of leading levels; None for all.
    denoise: whether to remove noise, for all examples or for each; needs a switch after
      the encoder.

  Raises:
    UserError: if T is not a positive multiple of hop_length, or the codec lacks the levels or the
      switch.
  """
  checks.shapes(wave_BT=wave_BT)
  check_length(config, wave_BT.shape[-1])
  z_BFD = encoder(config).apply({'params': variables.params['generator']['encoder']}, wave_BT)
  return codes(config, variables, z_BFD, num_quantizers, denoise)


def decode(
  config: Config, variables: Variables, codes_BFQ: Int[Array, 'B F Q'], *, denoise: Denoise = False
) -> Float[Array, 'B T']:
  """Returns the waveform of the codes of any number of leading levels, T = F * hop_length.

  Compiled code cannot check codes; the audio of an illegal code is NaN.

  Args:
    config: sizes of the codec.
    variables: parameters and state of the codec.
    codes_BFQ: codes.
    denoise: whether to remove noise, for all examples or for each; needs a switch before
      the decoder.

  Raises:
    UserError: if the codec lacks the levels or the switch, or a code is outside of the codebook.
  """
  return decode_vectors(config, variables, vectors(config, variables, codes_BFQ, denoise))


def denoised(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B T']
) -> Float[Array, 'B T']:
  """Returns the waveform encoded and decoded with all levels, with denoising.

  Args:
    config: config of the codec.
    variables: parameters and state.
    wave_BT: waveforms in [-1, 1], of whole frames.

  Raises:
    UserError: as `encode` and `decode`, or if the codec has no denoising switch.
  """
  if config.denoising is None:
    raise UserError('the codec has no denoising switch: train one with denoising=DenoisingSwitch()')
  on = _by_place(config, True)
  codes_BFQ = encode(config, variables, wave_BT, denoise=on['encoder'])
  return decode(config, variables, codes_BFQ, denoise=on['decoder'])


def decode_vectors(
  config: Config, variables: Variables, z_BFD: Float[Array, 'B F D']
) -> Float[Array, 'B T']:
  """Returns the waveform of embeddings (see `vectors`), T = F * hop_length.

  Args:
    config: config of the codec.
    variables: parameters and state.
    z_BFD: embeddings.
  """
  return decoder(config).apply({'params': variables.params['generator']['decoder']}, z_BFD)


def encode_step(
  config: Config,
  variables: Variables,
  state: State,
  wave_BT: Float[Array, 'B T'],
  num_quantizers: int | None = None,
  *,
  denoise: Denoise = False,
) -> tuple[Int[Array, 'B F Q'], State]:
  """Returns the codes of the next chunk of each clip, and the state after it; see `encode`.

  Codes are `network.lookahead` frames late: those of the first frames precede the clip. They do not
  depend on chunk sizes, except for rounding in float32: convolutions of different lengths may sum
  in different orders, which can change the code of a frame between two codes.

  Args:
    config: config of the codec.
    variables: parameters and state.
    state: from `encoder_state` or the previous call.
    wave_BT: next samples in [-1, 1], of whole frames.
    num_quantizers: number of levels; None: all.
    denoise: whether to denoise.

  Raises:
    UserError: as `encode`, and if `state` has another number of clips.
  """
  checks.shapes(wave_BT=wave_BT)
  check_length(config, wave_BT.shape[-1])
  params = variables.params['generator']['encoder']
  z_BFD, state = next_chunk(encoder(config), params, state, wave_BT)
  return codes(config, variables, z_BFD, num_quantizers, denoise), state


def decode_step(
  config: Config,
  variables: Variables,
  state: State,
  codes_BFQ: Int[Array, 'B F Q'],
  *,
  denoise: Denoise = False,
) -> tuple[Float[Array, 'B T'], State]:
  """Returns the waveform of the next F >= 1 frames of each clip, and the state; see `decode`.

  Args:
    config: config of the codec.
    variables: parameters and state.
    state: from `decoder_state` or the previous call.
    codes_BFQ: codes of any number of leading levels.
    denoise: whether to denoise.
  """
  z_BFD = vectors(config, variables, codes_BFQ, denoise)
  return next_chunk(decoder(config), variables.params['generator']['decoder'], state, z_BFD)


def _functions(config: Config, denoise: bool) -> CodecFunctions:
  """Returns the functions of the codec, with or without denoising."""
  bind, on = functools.partial, _by_place(config, denoise)
  encodes, decodes = dict(denoise=on['encoder']), dict(denoise=on['decoder'])
  stream = StreamFunctions(
    lambda batch_size: silent_past(encoder(config), jnp.zeros((batch_size, config.hop_length))),
    lambda batch_size: silent_past(
      decoder(config), jnp.zeros((batch_size, 1, config.embedding_dim))
    ),
    bind(encode_step, config, **encodes),
    bind(decode_step, config, **decodes),
    config.network.lookahead,
  )
  return CodecFunctions(
    bind(encode, config, **encodes),
    bind(decode, config, **decodes),
    past=config.network.encoder_past,
    stream=stream,
    vectors=bind(vectors, config, **decodes),
    decode_vectors=bind(decode_vectors, config),
  )


def codes(
  config: Config,
  variables: Variables,
  z_BFD: Float[Array, 'B F D'],
  num_quantizers: int | None,
  denoise: Denoise,
) -> Int[Array, 'B F Q']:
  """Returns the codes of the encoder's output, as the second half of `encode`.

  Args:
    config: config of the codec.
    variables: parameters and state.
    z_BFD: output of the encoder.
    num_quantizers: number of levels; None: all.
    denoise: whether to denoise.
  """
  _check_num_quantizers(config, num_quantizers)
  z_BFD = _switched(config, variables.params['generator'], 'encoder', z_BFD, denoise)
  if isinstance(config.quantizer, FSQ):
    return quantizer.fsq_encode(config.quantizer.levels, z_BFD)
  return quantizer.encode(variables.state['codebooks'].vectors_QKD[:num_quantizers], z_BFD)[0]


def vectors(
  config: Config, variables: Variables, codes_BFQ: Int[Array, 'B F Q'], denoise: Denoise = False
) -> Float[Array, 'B F D']:
  """Returns the embeddings of the codes of any number of leading levels, the decoder's input.

  Args:
    config: config of the codec.
    variables: parameters and state.
    codes_BFQ: codes.
    denoise: whether to denoise.

  Raises:
    UserError: as `decode`.
  """
  checks.shapes(codes_BFQ=codes_BFQ)
  checks.ids('codes_BFQ', codes_BFQ, config.codebook_size, padding=False)
  if codes_BFQ.shape[-1] > config.num_quantizers:
    raise UserError(
      f'codes have {codes_BFQ.shape[-1]} levels; the codec has '
      f'num_quantizers={config.num_quantizers}: '
      'were they made by another codec?'
    )
  if isinstance(config.quantizer, FSQ):
    z_BFD = quantizer.fsq_decode(config.quantizer.levels, codes_BFQ)
  else:
    z_BFD = quantizer.decode(variables.state['codebooks'].vectors_QKD, codes_BFQ)
  return _switched(config, variables.params['generator'], 'decoder', z_BFD, denoise)


def _check_num_quantizers(config: Config, num_quantizers: int | None):
  if num_quantizers is not None and not 1 <= num_quantizers <= config.num_quantizers:
    raise UserError(
      f'num_quantizers={num_quantizers}: must be from 1 to {config.num_quantizers}, or None for all'
    )

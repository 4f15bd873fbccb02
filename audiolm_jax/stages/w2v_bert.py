"""w2v-BERT (arXiv 2108.06209): waveform [T] at 16 kHz -> features [S, D] at 25 Hz.

AudioLM clusters the features of MLM block 7 into semantic tokens. Two 2-D convolutions of strides
2, 2 turn log-mel frames (10 ms) into frames of 40 ms. Spans of frames are replaced by random
vectors. A linear layer and the contrastive Conformer blocks compute context vectors, each of which
has to identify its quantized original frame among quantized frames at other masked positions. The
MLM blocks read the context vectors and predict the quantizer's ids of the masked frames.

  loss = contrastive_weight (contrastive + diversity_weight diversity) + mlm_weight mlm

Choices that the paper leaves open:
- Negatives, temperature and Gumbel annealing follow wav2vec 2.0.
- Each frame starts a masked span independently.
- The log-mel is normalized to zero mean and unit variance per band and utterance.
- The convolutions' output is layer-normalized, because the random vectors are standard normal.
- The context is projected to the codes' width before the comparison.
- The target ids of the MLM part are the quantizer's choice without Gumbel noise.
- Crops are 15 s long.

Two options for short runs on little data are not in the paper and off by default.
`targets='clusters'`: the codes are clusters of the stacked log-mel frames, initialized by k-means
on the first batch and updated by moving averages, as in vq-wav2vec's k-means variant and HuBERT's
first round. (The Gumbel quantizer needs many thousand steps before its codes are informative.)
`unmasked_weight` adds the prediction of unmasked frames.

Deviations: rotary instead of relative positions, and layer norm instead of the Conformer's batch
norm (see nn/conformer.py). Trailing zeros of a waveform are padding and do not influence other
frames.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from audiolm_jax import audio, checks, losses
from audiolm_jax.errors import UserError
from audiolm_jax.nn import quantizer as vector_quantizer
from audiolm_jax.nn.attention import EMBED, MLP, VOCAB, dense, partitioned
from audiolm_jax.nn.conformer import Conformer, layer_norm
from audiolm_jax.stages.base import Aux, Batch, Feature, Key, Params, Stage, State, Variables

SUBSAMPLING = 4  # log-mel frames per output frame: two convolutions of stride 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures w2v-BERT; the defaults are w2v-BERT XL with 0.6 B parameters.

  Raises:
    UserError: if a field is illegal.
  """

  sample_rate: int = 16_000  # Hz
  window_length: int = 400  # samples: 25 ms
  mel_hop_length: int = 160  # samples: 10 ms
  num_mels: int = 80
  conv_channels: int = 512
  num_contrastive_layers: int = 12
  num_mlm_layers: int = 12
  width: int = 1024
  num_heads: int = 8
  mlp_width: int = 4096
  kernel_size: int = 5  # frames of 40 ms
  dropout: float = 0.1
  codebook_size: int = 1024
  code_width: int = 1024
  mask_probability: float = 0.065  # that a span starts at a frame
  mask_span: int = 10  # frames: 400 ms
  num_negatives: int = 100
  contrastive_temperature: float = 0.1
  contrastive_weight: float = 1.0  # beta
  diversity_weight: float = 0.1  # alpha
  mlm_weight: float = 1.0  # gamma
  unmasked_weight: float = 0.0  # weight of unmasked frames in the MLM loss; not in the paper
  targets: str = 'gumbel'  # or 'clusters'; not in the paper
  gumbel_temperature: float = 2.0  # at step 0
  gumbel_temperature_end: float = 0.5
  gumbel_decay: float = 0.999995  # per step
  feature_layer: int = 7  # MLM block, from 1, that AudioLM clusters
  crop_seconds: float = 15.0
  dtype: Any = jnp.float32  # of activations
  remat: bool = False  # recompute the activations of a layer in the backward pass

  def __post_init__(self):
    sizes = (
      'sample_rate',
      'num_mels',
      'conv_channels',
      'num_contrastive_layers',
      'num_mlm_layers',
      'width',
      'num_heads',
      'mlp_width',
      'kernel_size',
      'codebook_size',
      'code_width',
      'mask_span',
      'num_negatives',
      'feature_layer',
      'mel_hop_length',
    )
    checks.fields(self, **dict.fromkeys(sizes, checks.WHOLE))
    weights = ('contrastive_weight', 'diversity_weight', 'mlm_weight', 'unmasked_weight')
    checks.fields(self, **dict.fromkeys(weights, checks.NOT_NEGATIVE))
    temperatures = ('contrastive_temperature', 'gumbel_temperature', 'gumbel_temperature_end')
    checks.fields(self, **dict.fromkeys(temperatures, checks.POSITIVE))
    checks.fields(
      self,
      window_length=checks.whole(self.mel_hop_length),
      crop_seconds=checks.CLIP_SECONDS,
      dropout=checks.BELOW_ONE,
      mask_probability=checks.SHARE,
      targets=checks.one_of('gumbel', 'clusters'),
      gumbel_decay=checks.POSITIVE_SHARE,
      dtype=checks.FLOAT_TYPE,
      remat=checks.FLAG,
    )
    if self.width % (2 * self.num_heads):
      raise UserError(
        f'width={self.width} / num_heads={self.num_heads} must be an even whole number for rotary '
        'positions: change one of them'
      )
    if self.kernel_size % 2 == 0:
      raise UserError(f'kernel_size={self.kernel_size} has no centre: make it odd')
    if self.crop_seconds * self.sample_rate < self.hop_length:
      raise UserError(
        f'crop_seconds={self.crop_seconds} is less than one frame of {self.hop_length} samples'
      )

  @property
  def hop_length(self) -> int:
    """Number of samples per output frame."""
    return SUBSAMPLING * self.mel_hop_length

  @property
  def frame_rate(self) -> float:
    """Number of output frames per second."""
    return self.sample_rate / self.hop_length

  def semantic_features(self, variables: Variables, wave_BT: Array, layer: int) -> Array:
    """Returns the output of one block, see `features`.

    Args:
      variables: parameters and state.
      wave_BT: waveforms in [-1, 1] at `sample_rate`.
      layer: number of the block of the masked-prediction part, from 1.
    """
    return features(self, variables, wave_BT, layer)

  def make(self) -> Stage:
    """Returns the stage; batches hold waveforms."""
    num_samples = round(self.crop_seconds * self.sample_rate)

    def init(key: Key) -> Variables:
      params_key, codebook_key = jax.random.split(key)
      wave_BT = jnp.zeros((1, self.hop_length * self.mask_span))
      ids_BS = jnp.zeros((1, self.mask_span), jnp.int32) if self.targets == 'clusters' else None
      params = W2vBert(self).init(params_key, wave_BT, key, None, cluster_ids_BS=ids_BS)['params']
      state = {'step': jnp.zeros((), jnp.int32)}
      if self.targets == 'clusters':
        width = SUBSAMPLING * self.num_mels
        state['codebooks'] = vector_quantizer.init(codebook_key, 1, self.codebook_size, width)
      return Variables(params, state)

    return Stage(
      batch={'waveform': Feature((num_samples,), np.float32, self.sample_rate)},
      init=init,
      loss=lambda params, state, batch, key: loss(self, params, state, batch, key),
      inference=_inference,
    )


def _inference(variables: Variables) -> Variables:
  """Returns the variables that features depend on; drops heads, target codes and counters."""
  names = ('encoder', 'projection', 'contrastive_blocks', 'mlm_blocks')
  return Variables({name: variables.params[name] for name in names}, {})


class W2vBert(nn.Module):
  config: Config

  def setup(self):
    c = self.config
    options = dict(dtype=c.dtype, use_bias=True)
    self.encoder = Encoder(c.conv_channels, c.dtype)
    self.projection = dense(c.width, (MLP, EMBED), **options)
    blocks = dict(
      num_heads=c.num_heads,
      mlp_width=c.mlp_width,
      kernel_size=c.kernel_size,
      dropout=c.dropout,
      dtype=c.dtype,
      remat=c.remat,
    )
    self.contrastive_blocks = Conformer(num_layers=c.num_contrastive_layers, **blocks)
    self.mlm_blocks = Conformer(num_layers=c.num_mlm_layers, **blocks)
    quantizer = GumbelQuantizer if c.targets == 'gumbel' else ClusterCodes
    self.quantizer = quantizer(c.codebook_size, c.code_width)
    self.context_projection = dense(c.code_width, (EMBED, None), **options)
    self.mlm_head = dense(c.codebook_size, (EMBED, VOCAB), **options)

  def __call__(self, wave_BT, mask_key, gumbel_key, temperature=1.0, cluster_ids_BS=None):
    """Returns the arrays [B, S, ...] that the loss needs, by name.

    Args:
      wave_BT: waveforms.
      mask_key: PRNG key of the masks.
      gumbel_key: PRNG key of the Gumbel noise; None picks the most likely code.
      temperature: temperature of the Gumbel softmax.
      cluster_ids_BS: target ids, for targets='clusters'.
    """
    c = self.config
    mel_BFM, valid_BF = normalized_log_mel(c, wave_BT)
    frames_BSN, valid_BS = self.encoder(mel_BFM, valid_BF)
    span_key, noise_key = jax.random.split(mask_key)
    masked_BS = valid_BS & span_mask(span_key, valid_BS.shape, c.mask_probability, c.mask_span)
    noise_BSN = jax.random.normal(noise_key, frames_BSN.shape, frames_BSN.dtype)
    context_BSD, _ = self._context(jnp.where(masked_BS[..., None], noise_BSN, frames_BSN), valid_BS)
    if c.targets == 'gumbel':
      codes_BSD, ids_BS, probabilities_BSK = self.quantizer(frames_BSN, gumbel_key, temperature)
    else:
      codes_BSD, ids_BS = self.quantizer(cluster_ids_BS), cluster_ids_BS
      probabilities_BSK = jax.nn.one_hot(ids_BS, c.codebook_size)
    return dict(
      masked_BS=masked_BS,
      valid_BS=valid_BS,
      context_BSD=self.context_projection(context_BSD),
      codes_BSD=codes_BSD,
      ids_BS=ids_BS,
      probabilities_BSK=probabilities_BSK,
      logits_BSK=self.mlm_head(self.mlm_blocks(context_BSD, valid_BS)[0]),
    )

  def features(self, wave_BT):
    """Returns the output [B, S, D] of the last MLM block, without masking.

    Args:
      wave_BT: waveforms in [-1, 1].
    """
    frames_BSN, valid_BS = self.encoder(*normalized_log_mel(self.config, wave_BT))
    context_BSD, _ = self._context(frames_BSN, valid_BS)
    return self.mlm_blocks(context_BSD, valid_BS)[0]

  def _context(self, frames_BSN, valid_BS):
    return self.contrastive_blocks(self.projection(frames_BSN), valid_BS)


class Encoder(nn.Module):
  """Applies two 3x3 convolutions of stride 2 over time and mel bands, then flattens, normalizes."""

  channels: int
  dtype: Any

  @nn.compact
  def __call__(self, mel_BFM, valid_BF):
    x = mel_BFM[..., None].astype(self.dtype)
    for layer in range(2):
      x = nn.Conv(
        self.channels,
        (3, 3),
        strides=(2, 2),
        padding=1,
        dtype=self.dtype,
        name=f'conv_{layer + 1}',
        kernel_init=partitioned(nn.initializers.he_normal(), None, None, None, EMBED),
        bias_init=partitioned(nn.initializers.zeros, EMBED),
      )(x)
      valid_BF = valid_BF[:, ::2]
      # The last convolution is linear: rectified outputs share a large mean, which would dominate
      # the quantizer's inputs and leave it with a handful of codes at the start.
      x = jnp.where(valid_BF[..., None, None], x if layer else jax.nn.relu(x), 0)
    frames_BSN = x.reshape(*x.shape[:2], -1)
    return layer_norm(self.dtype, 'norm')(frames_BSN), valid_BF


class GumbelQuantizer(nn.Module):
  """Selects one code per frame by a straight-through Gumbel softmax (wav2vec 2.0, section 2)."""

  codebook_size: int
  code_width: int

  @nn.compact
  def __call__(self, frames_BSN, key, temperature):
    """Returns codes_BSD, the most likely ids_BS, and the noiseless softmax over codes (float32)."""
    # Unit variance as in wav2vec 2.0's code: with flat initial logits the Gumbel noise alone would
    # select the codes, and the diversity term, optimal at a flat softmax, would keep them flat.
    init = nn.initializers.normal(1.0)
    kernel_NK = self.param(
      'kernel', partitioned(init, MLP, VOCAB), (frames_BSN.shape[-1], self.codebook_size)
    )
    codebook_KD = self.param(
      'codebook', partitioned(init, VOCAB, EMBED), (self.codebook_size, self.code_width)
    )
    logits_BSK = frames_BSN.astype(jnp.float32) @ kernel_NK
    ids_BS = jnp.argmax(logits_BSK, axis=-1).astype(jnp.int32)
    if key is None:
      return codebook_KD[ids_BS], ids_BS, jax.nn.softmax(logits_BSK)
    noisy_BSK = logits_BSK + jax.random.gumbel(key, logits_BSK.shape)
    soft_BSK = jax.nn.softmax(noisy_BSK / temperature)
    hard_BSK = jax.nn.one_hot(jnp.argmax(noisy_BSK, axis=-1), self.codebook_size)
    choice_BSK = hard_BSK + soft_BSK - jax.lax.stop_gradient(soft_BSK)
    return choice_BSK @ codebook_KD, ids_BS, jax.nn.softmax(logits_BSK)


class ClusterCodes(nn.Module):
  """Maps cluster ids to learned vectors, the targets of the contrastive part."""

  codebook_size: int
  code_width: int

  @nn.compact
  def __call__(self, ids_BS):
    init = partitioned(nn.initializers.normal(1.0), VOCAB, EMBED)
    return self.param('codebook', init, (self.codebook_size, self.code_width))[ids_BS]


def cluster(config: Config, state: State, wave_BT: Float[Array, 'B T'], key: Key | None):
  """Returns the cluster ids [B, S] of stacked log-mel frames, and the updated state.

  Args:
    config: of the stage.
    state: running state of the clusters.
    wave_BT: waveforms in [-1, 1].
    key: PRNG key; None leaves the state unchanged.
  """
  log_mel_BFM, _ = normalized_log_mel(config, wave_BT)
  stacked_BSN = log_mel_BFM.reshape(log_mel_BFM.shape[0], -1, SUBSAMPLING * config.num_mels)
  codebooks, all_levels_B = state['codebooks'], jnp.ones(stacked_BSN.shape[0], jnp.int32)
  if key is not None:
    fit_key, update_key = jax.random.split(key)
    codebooks = vector_quantizer.fitted(codebooks, stacked_BSN, fit_key)
  quantized = vector_quantizer.quantize(codebooks.vectors_QKD, stacked_BSN, all_levels_B)
  if key is not None:
    codebooks = vector_quantizer.update(
      codebooks, quantized, update_key, decay=0.99, dead_code_threshold=0.5
    )
  return quantized.codes_BFQ[..., 0], {**state, 'codebooks': codebooks}


def normalized_log_mel(
  config: Config, wave_BT: Float[Array, 'B T']
) -> tuple[Float[Array, 'B F M'], Bool[Array, 'B F']]:
  """Returns normalized log-mel frames (4 per output frame), and which of these are valid.

  Bands have zero mean and unit variance over the valid frames of an utterance. A frame is valid if
  it starts before the trailing zeros of the waveform; invalid frames are 0.

  Args:
    config: of the stage.
    wave_BT: waveforms in [-1, 1], padded with zeros on the right.
  """
  wave_BT = audio.pad_to_multiple(wave_BT, config.hop_length)
  num_samples = wave_BT.shape[-1]
  length_B = jnp.max(jnp.where(wave_BT != 0, np.arange(1, num_samples + 1), 0), axis=-1)
  valid_BF = np.arange(0, num_samples, config.mel_hop_length)[None] < length_B[:, None]
  log_mel_BFM = audio.log_mel_spectrogram(
    jnp.pad(wave_BT, ((0, 0), (0, config.window_length - config.mel_hop_length))),
    sample_rate=config.sample_rate,
    window_length=config.window_length,
    hop_length=config.mel_hop_length,
    num_mels=config.num_mels,
    fft_length=512,
  )
  weights_BF1 = (valid_BF / jnp.maximum(valid_BF.sum(axis=1, keepdims=True), 1))[..., None]
  centred_BFM = log_mel_BFM - jnp.sum(log_mel_BFM * weights_BF1, axis=1, keepdims=True)
  variance_B1M = jnp.sum(jnp.square(centred_BFM) * weights_BF1, axis=1, keepdims=True)
  # The constant limits the gain of a band that does not vary (digital silence).
  normalized_BFM = centred_BFM * jax.lax.rsqrt(variance_B1M + 1e-2)
  return jnp.where(valid_BF[..., None], normalized_BFM, 0), valid_BF


def span_mask(
  key: Key, shape: tuple[int, int], probability: float, span: int
) -> Bool[Array, 'B S']:
  """Returns a random mask: each frame starts a span of `span` frames with `probability`.

  Spans may overlap. Frame s is masked with probability 1 - (1 - probability) ** min(s + 1, span).

  Args:
    key: PRNG key.
    shape: B and S.
    probability: that a frame starts a span.
    span: frames per span.
  """
  starts_BS = jax.random.bernoulli(key, probability, shape)
  padded = jnp.pad(starts_BS, ((0, 0), (span - 1, 0)))
  return jnp.any(jnp.stack([padded[:, n : n + shape[1]] for n in range(span)]), axis=0)


def sample_negatives(
  key: Key, masked_BS: Bool[Array, 'B S'], num_negatives: int
) -> Int[Array, 'B S N']:
  """Returns indices of random other masked frames of the same utterance, for each masked frame.

  Indices are meaningless for unmasked frames, and in utterances with fewer than two masked frames.

  Args:
    key: PRNG key.
    masked_BS: which frames are masked.
    num_negatives: number N of indices for each frame.
  """
  num_masked_B11 = masked_BS.sum(axis=-1)[:, None, None]
  masked_first_BS = jnp.argsort(~masked_BS, axis=-1, stable=True)
  rank_BS1 = jnp.cumsum(masked_BS, axis=-1)[..., None] - 1
  # Offsets of 1 to count - 1 masked frames, modulo count, reach each other masked frame once and
  # never the frame itself.
  others = jnp.maximum(num_masked_B11 - 1, 1)
  ahead_BSN = 1 + jax.random.randint(key, (*masked_BS.shape, num_negatives), 0, others)
  rank_BSN = (rank_BS1 + ahead_BSN) % jnp.maximum(num_masked_B11, 1)
  return jnp.take_along_axis(masked_first_BS[:, None], rank_BSN, axis=-1)


def loss(
  config: Config, params: Params, state: State, batch: Batch, key: Key | None
) -> tuple[Array, Aux]:
  """Returns the loss (defined at the top of this file) and metrics; `key` None uses fixed masks.

  Args:
    config: of the stage.
    params: parameters.
    state: running state of the stage.
    batch: what `config.make().batch` describes.
    key: PRNG key; None in evaluation.
  """
  training = key is not None
  keys = jax.random.split(key if training else jax.random.key(0), 5)
  mask_key, negative_key, gumbel_key, dropout_key, cluster_key = keys
  temperature = jnp.maximum(
    config.gumbel_temperature * config.gumbel_decay ** state['step'], config.gumbel_temperature_end
  )
  cluster_ids_BS, next_state = None, state
  if config.targets == 'clusters':
    cluster_ids_BS, next_state = cluster(
      config, state, batch['waveform'], cluster_key if training else None
    )
  out = W2vBert(config).apply(
    {'params': params},
    batch['waveform'],
    mask_key,
    gumbel_key if training else None,
    temperature,
    cluster_ids_BS,
    rngs={'dropout': dropout_key} if training else {},
  )
  masked_BS, valid_BS = out['masked_BS'], out['valid_BS']
  comparable_BS = masked_BS & (masked_BS.sum(axis=-1, keepdims=True) > 1)
  contrastive, contrastive_accuracy = losses.contrastive(
    out['context_BSD'],
    out['codes_BSD'],
    sample_negatives(negative_key, masked_BS, config.num_negatives),
    comparable_BS,
    temperature=config.contrastive_temperature,
  )
  diversity = losses.diversity(out['probabilities_BSK'], valid_BS)
  mlm = losses.cross_entropy(out['logits_BSK'], out['ids_BS'], masked_BS)
  total = (
    config.contrastive_weight * (contrastive + config.diversity_weight * diversity)
    + config.mlm_weight * mlm
  )
  if config.unmasked_weight:
    total += config.unmasked_weight * losses.cross_entropy(
      out['logits_BSK'], out['ids_BS'], valid_BS & ~masked_BS
    )
  correct_BS = (jnp.argmax(out['logits_BSK'], axis=-1) == out['ids_BS']).astype(jnp.float32)
  used_BSK = jax.nn.one_hot(out['ids_BS'], config.codebook_size)
  metrics = dict(
    loss=total,
    contrastive=contrastive,
    diversity=diversity,
    mlm=mlm,
    contrastive_accuracy=contrastive_accuracy,
    mlm_accuracy=losses.masked_mean(correct_BS, masked_BS),
    codebook_perplexity=losses.codebook_perplexity(used_BSK, valid_BS),
  )
  return total, Aux({**next_state, 'step': state['step'] + 1} if training else state, metrics)


def features(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B T'], layer: int | None = None
) -> Float[Array, 'B S D']:
  """Returns the output of an MLM block, S = ceil(T / 640) frames at 25 Hz.

  Only the blocks up to `layer` run. Frames within the trailing zeros of a waveform are meaningless.
  Source: AudioLM, section III-B.

  Args:
    config: sizes of the model.
    variables: parameters and state of the model.
    wave_BT: waveforms at 16 kHz.
    layer: number of the MLM block, from 1; None uses config.feature_layer.

  Raises:
    UserError: if there is no such block.
  """
  checks.shapes(wave_BT=wave_BT)
  layer = config.feature_layer if layer is None else layer
  if not 1 <= layer <= config.num_mlm_layers:
    raise UserError(f'no MLM block {layer}: there are blocks 1 to {config.num_mlm_layers}')
  params = {
    **variables.params,
    'mlm_blocks': jax.tree.map(lambda p: p[:layer], variables.params['mlm_blocks']),
  }
  model = W2vBert(dataclasses.replace(config, num_mlm_layers=layer))
  return model.apply({'params': params}, wave_BT, method='features').astype(jnp.float32)

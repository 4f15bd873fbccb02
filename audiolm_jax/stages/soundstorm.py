"""SoundStorm (arXiv 2305.09636): a Conformer that decodes acoustic codes in parallel.

Inputs: semantic_BS at 25 Hz, frame-aligned (deduplicated tokens have no duration) and repeated to
the codec's 50 Hz, and codes_BFQ with F = 2 S. The embeddings of a frame's semantic token and Q
codes (a learned vector of the level for a masked code) are summed, so that attention runs over
frames for any number of levels. One linear head per level predicts its codes.

Training (section 3.2): a prompt of t ~ U{0, F - 1} frames and all semantic tokens stay visible.
After the prompt, each code of a level q ~ U{1, Q} is masked with probability cos(u), u ~ U[0, pi /
2]; all finer levels are masked, all coarser ones visible. The loss is the mean cross entropy of the
masked codes of level q over the batch. Examples are windows of random length (section 4.1): with
`random_length`, the start of the crop.

With `condition`, the embeddings of the tokens of a text or of the crop's audio are added to those
of every frame. This is an extension: the paper has no such condition.

Evaluation draws from a fixed key and masks each example once at each level, so that a batch always
gives the same numbers, one per level. They measure partially masked levels and are no likelihood
of the sequence.

Choices that the paper leaves open: a prompt of t frames is frames 1 to t (in the paper's example of
t = 0, nothing is visible); dropout; embeddings of variance 1 / (Q + 1). Deviations: see
nn/conformer.py. The option `level_skew` is not in the paper and off by default: it draws coarse
levels, which carry the voice, more often than fine levels, for models with little training.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from audiolm_jax import checks, tokens
from audiolm_jax.errors import UserError
from audiolm_jax.losses import masked_mean
from audiolm_jax.nn import code_tables
from audiolm_jax.nn.attention import EMBED, VOCAB, partitioned
from audiolm_jax.nn.code_tables import CodeVectors
from audiolm_jax.nn.conformer import Conformer
from audiolm_jax.stages.base import (
  Aux,
  Batch,
  Condition,
  Feature,
  Key,
  Params,
  Stage,
  State,
  Variables,
)
from audiolm_jax.tokens import PAD


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures SoundStorm; the defaults are the paper's (section 4.1).

  The default model has 316 M parameters; the paper reports 350 M.

  Raises:
    UserError: if a field is illegal.
  """

  crop_seconds: float = 30.0
  random_length: bool = True  # train on windows from one semantic frame to the whole crop
  # P(q) ~ q ** -level_skew, q = 1 to Q; 0 draws all levels equally often, as in the paper
  level_skew: float = 0.0
  semantic_rate: float = 25.0  # Hz
  frame_rate: float = 50.0  # Hz
  num_clusters: int = 1024
  num_quantizers: int = 12
  codebook_size: int = 1024
  num_layers: int = 12
  num_heads: int = 16
  width: int = 1024
  mlp_width: int = 4096
  kernel_size: int = 5  # frames of 20 ms
  dropout: float = 0.1
  dtype: str = 'bfloat16'  # of activations; parameters, softmax and logits are float32
  remat: bool = True  # recompute the activations of a layer in the backward pass
  condition: Condition | None = None  # an extension, for music

  def __post_init__(self):
    sizes = (
      'num_clusters',
      'num_quantizers',
      'codebook_size',
      'num_layers',
      'num_heads',
      'width',
      'mlp_width',
      'kernel_size',
    )
    checks.fields(self, **dict.fromkeys(sizes, checks.WHOLE))
    rates = ('semantic_rate', 'frame_rate')
    checks.fields(self, **dict.fromkeys(rates, checks.POSITIVE))
    checks.fields(
      self,
      crop_seconds=checks.CLIP_SECONDS,
      random_length=checks.FLAG,
      level_skew=checks.NOT_NEGATIVE,
      dropout=checks.BELOW_ONE,
      dtype=checks.FLOAT_TYPE,
      remat=checks.FLAG,
    )
    tokens.semantic_frames(self.crop_seconds, self.semantic_rate, self.frame_rate)
    if self.width % (2 * self.num_heads):
      raise UserError(
        f'width={self.width} / num_heads={self.num_heads} must be an even whole number for rotary '
        'positions: change one of them'
      )
    if self.kernel_size % 2 == 0:
      raise UserError(f'kernel_size={self.kernel_size} has no centre: make it odd')

  @property
  def spec(self) -> tokens.Spec:
    """The tokens that this stage is made for."""
    return tokens.Spec(
      semantic_rate=self.semantic_rate,
      num_clusters=self.num_clusters,
      frame_rate=self.frame_rate,
      num_quantizers=self.num_quantizers,
      codebook_size=self.codebook_size,
      condition_levels=self.condition and self.condition.levels,
      condition_size=self.condition and self.condition.size,
    )

  @property
  def num_semantic(self) -> int:
    """Number of semantic frames of a crop."""
    return round(self.crop_seconds * self.semantic_rate)

  @property
  def frames_per_semantic(self) -> int:
    """Number of codec frames per semantic frame."""
    return tokens.frames_per_semantic(self.frame_rate, self.semantic_rate)

  @property
  def num_frames(self) -> int:
    """Number of codec frames of a crop."""
    return self.frames_per_semantic * self.num_semantic

  def make(self, code_vectors: CodeVectors | None = None) -> Stage:
    """Returns the stage.

    Args:
      code_vectors: vectors from which the tables of codes start, see
        `nn.code_tables.CodeVectors`.
    """

    def init(key: Key) -> Variables:
      semantic_BS = jnp.zeros((1, 1), jnp.int32)
      codes_BFQ = jnp.zeros((1, self.frames_per_semantic, self.num_quantizers), jnp.int32)
      level_B = jnp.zeros(1, jnp.int32)
      params = SoundStorm(self).init(key, semantic_BS, codes_BFQ, level_B)['params']
      if code_vectors is not None:
        params = _with_code_vectors(self, params, jax.random.fold_in(key, 1), code_vectors)
      return Variables(params, {})

    features = {
      'semantic': Feature((self.num_semantic,), jnp.int32, self.semantic_rate, self.num_clusters),
      'codes': Feature(
        (self.num_frames, self.num_quantizers), jnp.int32, self.frame_rate, self.codebook_size
      ),
    }
    if self.condition is not None:
      features[self.condition.name] = self.condition.feature
    return Stage(
      batch=features,
      init=init,
      loss=lambda params, state, batch, key: loss(self, params, state, batch, key),
    )


def _with_code_vectors(config: Config, params: Params, key: Key, code_vectors) -> Params:
  vectors_QKD = code_tables.check(code_vectors, config.num_quantizers, config.codebook_size)
  input_key, output_key = jax.random.split(key)
  codes_QKD = code_tables.projected(input_key, vectors_QKD, config.width)
  heads_QKD = code_tables.projected(output_key, vectors_QKD, config.width)
  scale = (config.num_quantizers + 1) ** -0.5
  return params | {
    'codes': params['codes'].replace_boxed(codes_QKD * scale),
    'heads': params['heads'].replace_boxed(heads_QKD.swapaxes(1, 2) * config.width**-0.5),
  }


class SoundStorm(nn.Module):
  """Maps semantic_BS, codes_BFQ and one level per row to that level's logits_BFK, in float32.

  Codes equal to PAD are masked. Frames whose semantic token is PAD do not influence other frames.
  The condition is condition_BN, or None; PAD in it has no effect.
  """

  config: Config

  @nn.compact
  def __call__(self, semantic_BS, codes_BFQ, level_B, condition_BN=None):
    c = self.config
    levels, init = c.num_quantizers, nn.initializers.normal((c.num_quantizers + 1) ** -0.5)
    semantic_KD = self.param('semantic', partitioned(init, VOCAB, EMBED), (c.num_clusters, c.width))
    codes_QKD = self.param(
      'codes', partitioned(init, None, VOCAB, EMBED), (levels, c.codebook_size, c.width)
    )
    masked_QD = self.param('masked', partitioned(init, None, EMBED), (levels, c.width))
    semantic_BF = jnp.repeat(semantic_BS, c.frames_per_semantic, axis=1)
    x_BFD = semantic_KD[jnp.maximum(semantic_BF, 0)]
    for q in range(levels):  # one at a time, because [B, F, Q, D] would be the largest array
      code_BF1 = codes_BFQ[..., q, None]
      x_BFD += jnp.where(
        code_BF1 == PAD, masked_QD[q], codes_QKD[q][jnp.maximum(code_BF1[..., 0], 0)]
      )
    if c.condition is not None:
      table_NKD = self._condition_table()
      for n in range(0 if condition_BN is None else c.condition.levels):
        token_B1 = condition_BN[:, n, None]
        vector_BD = jnp.where(token_B1 == PAD, 0, table_NKD[n][jnp.maximum(token_B1[:, 0], 0)])
        x_BFD += vector_BD[:, None]
    conformer = Conformer(
      num_layers=c.num_layers,
      num_heads=c.num_heads,
      mlp_width=c.mlp_width,
      kernel_size=c.kernel_size,
      dropout=c.dropout,
      dtype=c.dtype,
      remat=c.remat,
      name='conformer',
    )
    hidden_BFD, _ = conformer(x_BFD, semantic_BF != PAD)
    init = partitioned(nn.initializers.normal(c.width**-0.5), None, EMBED, VOCAB)
    heads_QDK = self.param('heads', init, (levels, c.width, c.codebook_size))
    head_BDK = heads_QDK[level_B].astype(c.dtype)
    return jnp.einsum('bfd,bdk->bfk', hidden_BFD, head_BDK, preferred_element_type=jnp.float32)

  def _condition_table(self):
    """Returns embeddings whose sum has the variance of one code's."""
    c = self.config
    scale = (c.condition.levels * (c.num_quantizers + 1)) ** -0.5
    init = partitioned(nn.initializers.normal(scale), None, VOCAB, EMBED)
    return self.param('condition', init, (c.condition.levels, c.condition.size, c.width))


class Masking(NamedTuple):
  """Holds the codes hidden from the model, and the frames of the drawn level that have a loss."""

  hidden_BFQ: Bool[Array, 'B F Q']
  target_BF: Bool[Array, 'B F']


def draw_masking(
  key: Key, valid_BF: Bool[Array, 'B F'], level_B: Int[Array, 'B'], num_levels: int
) -> Masking:
  """Draws prompt, masking ratio and mask of each row (section 3.2).

  Args:
    key: PRNG key.
    valid_BF: False at padding, on the right.
    level_B: predicted level of each row, from 0.
    num_levels: number of levels Q.

  Returns:
    Masking of each row.
  """
  prompt_key, ratio_key, mask_key = jax.random.split(key, 3)
  batch, frames = valid_BF.shape
  prompt_B = jax.random.randint(prompt_key, (batch,), 0, jnp.maximum(valid_BF.sum(axis=1), 1))
  ratio_B = jnp.cos(jax.random.uniform(ratio_key, (batch,), maxval=jnp.pi / 2))
  after_BF = valid_BF & (jnp.arange(frames)[None] >= prompt_B[:, None])
  target_BF = after_BF & jax.random.bernoulli(mask_key, ratio_B[:, None], (batch, frames))
  ahead_B1Q = jnp.arange(num_levels)[None, None] - level_B[:, None, None]
  hidden_BFQ = (target_BF[..., None] & (ahead_B1Q == 0)) | (after_BF[..., None] & (ahead_B1Q > 0))
  return Masking(hidden_BFQ, target_BF)


def draw_levels(key: Key, batch_size: int, num_levels: int, skew: float) -> Int[Array, 'B']:
  """Draws the level of each row, from 0: P(q) ~ (q + 1) ** -skew.

  Args:
    key: PRNG key.
    batch_size: number of rows B.
    num_levels: number of levels Q.
    skew: exponent; 0 draws all levels equally often.

  Returns:
    Levels in [0, num_levels).
  """
  weight_Q = -skew * np.log(np.arange(1, num_levels + 1, dtype=np.float32))
  return jax.random.categorical(key, jnp.asarray(weight_Q), shape=(batch_size,))


def shorten(key: Key, semantic_BS: Int[Array, 'B S']) -> Int[Array, 'B S']:
  """Returns the start of each row, of uniform random length from 1 to S, followed by PAD.

  Args:
    key: PRNG key.
    semantic_BS: semantic tokens.
  """
  length_B = (semantic_BS != PAD).sum(axis=1)
  kept_B = 1 + jax.random.randint(key, length_B.shape, 0, jnp.maximum(length_B, 1))
  return jnp.where(jnp.arange(semantic_BS.shape[1]) < kept_B[:, None], semantic_BS, PAD)


def loss(
  config: Config, params: Params, state: State, batch: Batch, key: Key | None
) -> tuple[Array, Aux]:
  """Returns the loss in nats per masked code, and metrics: nats and accuracy.

  In evaluation (`key` is None), the metrics also contain both for each level.

  Args:
    config: of the stage.
    params: parameters.
    state: running state of the stage.
    batch: what `config.make().batch` describes.
    key: PRNG key; None in evaluation.
  """
  semantic_BS, codes_BFQ = jnp.asarray(batch['semantic']), jnp.asarray(batch['codes'])
  length_key, level_key, mask_key, dropout_key = jax.random.split(
    jax.random.key(0) if key is None else key, 4
  )
  condition_BN = None if config.condition is None else config.condition.read(batch, key)[:, 0]
  if config.random_length:
    semantic_BS = shorten(length_key, semantic_BS)
  valid_BF = (jnp.repeat(semantic_BS, config.frames_per_semantic, axis=1) != PAD) & (
    codes_BFQ[..., 0] != PAD
  )
  model, rngs = SoundStorm(config), {} if key is None else {'dropout': dropout_key}

  def masked_nats(level_B, mask_key):
    """Returns nats, correct predictions and the frames with a loss, each [B, F], of one masking."""
    masking = draw_masking(mask_key, valid_BF, level_B, config.num_quantizers)
    visible_BFQ = jnp.where(masking.hidden_BFQ, PAD, codes_BFQ)
    logits_BFK = model.apply(
      {'params': params}, semantic_BS, visible_BFQ, level_B, condition_BN, rngs=rngs
    )
    code_BF = jnp.take_along_axis(codes_BFQ, level_B[:, None, None], axis=2)[..., 0]
    chosen_BF = jnp.take_along_axis(logits_BFK, jnp.maximum(code_BF, 0)[..., None], axis=-1)[..., 0]
    hit_BF = (jnp.argmax(logits_BFK, axis=-1) == code_BF).astype(jnp.float32)
    return jax.nn.logsumexp(logits_BFK, axis=-1) - chosen_BF, hit_BF, masking.target_BF

  batch_size, levels = len(codes_BFQ), config.num_quantizers
  if key is not None:
    level_B = draw_levels(level_key, batch_size, levels, config.level_skew)
    nats, hit, target = masked_nats(level_B, mask_key)
  else:
    each = lambda q: masked_nats(jnp.full(batch_size, q), jax.random.fold_in(mask_key, q))
    nats, hit, target = jax.lax.map(each, jnp.arange(levels))  # [Q, B, F]
  metrics = {'nats': masked_mean(nats, target), 'accuracy': masked_mean(hit, target)}
  if key is None:
    for q in range(levels):
      metrics[f'nats_level_{q}'] = masked_mean(nats[q], target[q])
      metrics[f'accuracy_level_{q}'] = masked_mean(hit[q], target[q])
  return metrics['nats'], Aux(state, metrics)


def logits(
  config: Config,
  params: Params,
  semantic_BS: Int[Array, 'B S'],
  codes_BFQ: Int[Array, 'B F Q'],
  level: Int[Array, ''],
  condition_BN: Int[Array, 'B N'] | None = None,
) -> Float[Array, 'B F K']:
  """Returns the logits of one level's codes, in float32.

  Args:
    config: sizes of the model.
    params: parameters.
    semantic_BS: semantic tokens; PAD (-1) marks padding.
    codes_BFQ: codes; PAD marks unknown codes.
    level: predicted level, from 0.
    condition_BN: tokens of the condition; None, or PAD in a row: none.
  """
  level_B = jnp.full(len(codes_BFQ), level)
  return SoundStorm(config).apply({'params': params}, semantic_BS, codes_BFQ, level_B, condition_BN)

"""Melody embedding of MusicLM (arXiv 2301.11325, section 3.3): waveform [T] -> unit vector [D].

A Transformer over log-mel frames is trained so that two recordings of one melody (instruments,
voices, hummed) are nearer to each other than to other melodies, by triplets with semi-hard
negatives of the global batch. A vector belongs to 4 s. MusicLM quantizes the vectors of the windows
that start at 0, 3 and 6 s of 10 s by 24 levels of 512 codes: 72 tokens.

From the paper: 12 layers of width 512 and 1024, 192 numbers per vector, windows and levels. Choices
that it leaves open: the margin, frames per position, the mean over positions, and 16 kHz.
Deviations: 8 heads of 64, not 6, because our heads divide the width; relative positions, as in
nn/transformer.py.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from audiolm_jax import checks, losses
from audiolm_jax.errors import UserError
from audiolm_jax.nn import log_mel, placement, transformer
from audiolm_jax.nn.attention import EMBED, VOCAB, dense, partitioned
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.stages.base import Aux, Batch, Feature, Key, Params, Stage, State, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(log_mel.LogMelConfig):
  """Configures the melody embedding; the defaults are the paper's sizes.

  Fields:
    starts: seconds at which the windows of a melody start, whose vectors are its tokens.
    stride: log-mel frames per position of the Transformer.
    embedding_dim: width of the vectors.
    margin: squared distance by which other melodies should be farther away, at most 4.
    transformer: sizes of the Transformer; its relative positions are bidirectional.

  Raises:
    UserError: if a field is illegal, or the crop is shorter than one window.
  """

  crop_seconds: float = 4.0
  starts: tuple[float, ...] = (0.0, 3.0, 6.0)
  stride: int = 4
  embedding_dim: int = 192
  margin: float = 0.2
  transformer: TransformerConfig = TransformerConfig(
    num_layers=12, num_heads=8, width=512, mlp_width=1024
  )

  def __post_init__(self):
    super().__post_init__()
    checks.fields(
      self,
      starts=checks.each(checks.NOT_NEGATIVE),
      stride=checks.WHOLE,
      embedding_dim=checks.WHOLE,
      margin=checks.POSITIVE,
    )
    transformer.check_bidirectional(self.transformer)
    if not self.starts:
      raise UserError('starts=(): a melody has at least one window')
    if self.margin > 4:
      raise UserError(f'margin={self.margin}: unit vectors have squared distances of at most 4')

  def make(self) -> Stage:
    """Returns the stage; batches hold waveforms and covers of the same melodies."""
    wave = Feature((self.crop_length,), np.float32, self.sample_rate)

    def init(key: Key) -> Variables:
      return Variables(Melody(self).init(key, jnp.zeros((1, self.crop_length)))['params'], {})

    return Stage(
      batch={'waveform': wave, 'cover': wave},
      init=init,
      loss=lambda params, state, batch, key: loss(self, params, state, batch, key),
    )


class Melody(nn.Module):
  """Maps waveforms [B, T] of at least one window to unit vectors [B, D].

  Dropout is active if and only if `apply` gets a 'dropout' key.
  """

  config: Config

  @nn.compact
  def __call__(self, wave_BT: Float[Array, 'B T']) -> Float[Array, 'B D']:
    c, sizes = self.config, self.config.transformer
    x_BFM = log_mel.features(c, wave_BT).astype(sizes.dtype)
    x_BFM = jnp.pad(x_BFM, ((0, 0), (0, -x_BFM.shape[1] % c.stride), (0, 0)), mode='edge')
    x_BSD = nn.Conv(
      sizes.width,
      (c.stride,),
      strides=(c.stride,),
      padding='VALID',
      dtype=sizes.dtype,
      kernel_init=partitioned(nn.initializers.lecun_normal(), None, None, EMBED),
      bias_init=partitioned(nn.initializers.zeros, EMBED),
      name='conv',
    )(x_BFM)
    x_BSD = transformer.bidirectional(self, sizes, x_BSD, jnp.ones(x_BSD.shape[:2], bool))
    x_BSD = transformer.norm(sizes.dtype, 'final_norm')(x_BSD).astype(jnp.float32)
    logits_BD = dense(c.embedding_dim, (EMBED, VOCAB), use_bias=True, name='logits')(
      x_BSD.mean(axis=1)
    )
    return losses.unit(logits_BD)


def loss(
  config: Config, params: Params, state: State, batch: Batch, key: Key | None
) -> tuple[Array, Aux]:
  """Returns the triplet loss of 'waveform' and 'cover' over the global batch, and metrics.

  Metrics: the loss, the share of covers whose own melody is the nearest of the batch, and the mean
  squared distances in pairs ('own') and between pairs ('other').

  Args:
    config: of the stage.
    params: parameters.
    state: running state of the stage.
    batch: what `config.make().batch` describes.
    key: PRNG key; None in evaluation.

  Raises:
    UserError: if the batch has a single pair, which has nothing to be compared with.
  """
  if len(batch['waveform']) < 2:
    raise UserError('batch_size=1: triplets compare the examples of a batch: use more')
  rngs = {} if key is None else {'dropout': key}
  # Once, with both recordings as rows: what is compiled halves.
  wave_NT = jnp.concatenate([jnp.asarray(batch[name]) for name in ('waveform', 'cover')])
  vectors_ND = placement.whole(Melody(config).apply({'params': params}, wave_NT, rngs=rngs))
  one_BD, other_BD = jnp.split(vectors_ND, 2)
  total = losses.semi_hard_triplet(one_BD, other_BD, config.margin)
  cosine_BB = other_BD @ one_BD.T
  count = len(one_BD)
  own_B = jnp.diag(cosine_BB)
  other = (cosine_BB.sum() - own_B.sum()) / (count * (count - 1))
  return total, Aux(
    state,
    {
      'loss': total,
      'accuracy': losses.pair_accuracy(cosine_BB, jnp.ones(count, bool)),
      'own': 2 - 2 * own_B.mean(),
      'other': 2 - 2 * other,
    },
  )


def embeddings(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B T']
) -> Float[Array, 'B D']:
  """Returns a unit vector of each waveform, which should have the length of a training crop.

  Args:
    config: of the stage.
    variables: parameters and state.
    wave_BT: waveforms in [-1, 1].

  Raises:
    UserError: if a waveform is shorter than `config.window_length` samples.
  """
  checks.shapes(wave_BT=wave_BT)
  return Melody(config).apply({'params': variables.params}, wave_BT)

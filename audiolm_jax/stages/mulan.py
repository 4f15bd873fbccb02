"""MuLan (arXiv 2208.12415): waveform [T] and text [L] -> unit vectors [D] of one space.

An audio tower and a text tower are trained so that a clip is more similar to its own text than to
the other texts of the global batch, and a text to its own clip. Each step reads one random crop and
one random text of each example; SpecAugment hides parts of the log-mel.

  loss = mean_i -log(exp s_ii / sum_{j != i} (exp s_ij + exp s_ji)),  s_ij = scale a_i . t_j

The loss of a model that knows nothing is ln(2 (B - 1)), which depends on the batch size: the metric
`above_chance` is the loss minus that; it is negative if something was learned. Examples with equal
texts are negatives of one another, as in the paper, unless `equal_texts` is 'ignored'.

Choices that the paper leaves open: 16 kHz, the masks of SpecAugment, and the scale, which is
learned, starts at 1 / temperature, and has a limit, as in CLIP. `form='clip'` is CLIP's loss.

Deviations: group norm in the ResNet (see nn/resnet.py); the text tower reads bytes, and is not
pretrained (see nn/text_encoder.py).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from audiolm_jax import checks, losses
from audiolm_jax.errors import UserError
from audiolm_jax.nn import log_mel, placement
from audiolm_jax.nn.log_mel_cnn import LogMelCNNConfig
from audiolm_jax.nn.resnet import ResNetConfig
from audiolm_jax.nn.text_encoder import NUM_IDS, TextEncoder, TextEncoderConfig
from audiolm_jax.stages.base import Aux, Batch, Feature, Key, Params, Stage, State, Variables
from audiolm_jax.tokens import PAD


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures MuLan; the defaults are the paper's sizes.

  Fields:
    audio: audio tower, with the sample rate and the length of a crop.
    text: text tower, with the length of the longest text.
    embedding_dim: width of the common space.
    num_texts: number of texts per example in a batch, of which some may be missing.
    form: 'multi_view' or 'clip'.
    equal_texts: whether examples whose drawn texts are equal are 'negatives' of one another, or
      'ignored'.
    temperature: initial temperature, by which similarities are divided.
    max_scale: limit of the learned scale, which multiplies similarities.
    num_masks: number of SpecAugment's masks along time, and along mel bands.
    mask_seconds: largest width of a mask along time.
    mask_mels: largest width of a mask along mel bands.

  Raises:
    UserError: if a field is illegal.
  """

  audio: ResNetConfig | LogMelCNNConfig = ResNetConfig()
  text: TextEncoderConfig = TextEncoderConfig()
  embedding_dim: int = 128
  num_texts: int = 1
  form: str = 'multi_view'
  equal_texts: str = 'negatives'
  temperature: float = 0.07
  max_scale: float = 100.0
  num_masks: int = 2
  mask_seconds: float = 1.0
  mask_mels: int = 16

  def __post_init__(self):
    towers = (ResNetConfig, LogMelCNNConfig)
    checks.fields(
      self,
      audio=checks.Legal(
        'a ResNetConfig or LogMelCNNConfig', lambda value: isinstance(value, towers)
      ),
      text=checks.Legal('a TextEncoderConfig', lambda value: isinstance(value, TextEncoderConfig)),
      embedding_dim=checks.WHOLE,
      num_texts=checks.WHOLE,
      form=checks.one_of('multi_view', 'clip'),
      equal_texts=checks.one_of('negatives', 'ignored'),
      temperature=checks.POSITIVE,
      max_scale=checks.POSITIVE,
      num_masks=checks.whole(0),
      mask_seconds=checks.NOT_NEGATIVE,
      mask_mels=checks.whole(0),
    )
    if self.temperature * self.max_scale < 1:
      raise UserError(
        f'temperature={self.temperature} is a scale of {1 / self.temperature:g}, above '
        f'max_scale={self.max_scale}: raise one of them'
      )

  @property
  def sample_rate(self) -> int:
    """Sample rate in Hz."""
    return self.audio.sample_rate

  def make(self) -> Stage:
    """Returns the stage; batches hold waveforms and bytes of texts."""
    num_samples, num_bytes = self.audio.crop_length, self.text.num_bytes

    def init(key: Key) -> Variables:
      wave_BT, ids_BL = jnp.zeros((1, num_samples)), jnp.zeros((1, num_bytes), jnp.int32)
      return Variables(MuLan(self).init(key, wave_BT, ids_BL)['params'], {})

    return Stage(
      batch={
        'waveform': Feature((num_samples,), np.float32, self.sample_rate),
        'texts': Feature((self.num_texts, num_bytes), np.int32, None, NUM_IDS),
      },
      init=init,
      loss=lambda params, state, batch, key: loss(self, params, state, batch, key),
    )


class MuLan(nn.Module):
  """Holds both towers, and the logarithm of the scale."""

  config: Config

  def setup(self):
    c = self.config
    self.audio = c.audio.network(c.embedding_dim)
    self.text = TextEncoder(c.text, c.embedding_dim)
    start = nn.initializers.constant(-math.log(c.temperature))
    self.log_scale = self.param('log_scale', start, ())

  def __call__(self, wave_BT, ids_BL, augment=None):
    """Returns unit vectors of clips and of texts, [B, D] each."""
    return self.embed_audio(wave_BT, augment), self.embed_text(ids_BL)

  def embed_audio(self, wave_BT, augment=None):
    """Returns the unit vectors [B, D] of waveforms.

    Args:
      wave_BT: waveforms in [-1, 1].
      augment: changes the log-mel spectrum in training; None: nothing.
    """
    return losses.unit(self.audio(wave_BT, augment).logits_BN)

  def embed_text(self, ids_BL):
    """Returns the unit vectors [B, D] of texts.

    Args:
      ids_BL: byte ids of the texts.
    """
    return losses.unit(self.text(ids_BL))


def loss(
  config: Config, params: Params, state: State, batch: Batch, key: Key | None
) -> tuple[Array, Aux]:
  """Returns the contrastive loss over the global batch in nats, and metrics.

  Without a key, it reads the first text of each example, and nothing is masked. Examples without a
  text are ignored. Metrics: the loss, the loss minus that of equal similarities, the share of clips
  whose own text is the most similar and of texts whose own clip is, the scale, and the distance
  between the mean vectors of clips and of texts ('gap').

  Args:
    config: of the stage.
    params: parameters.
    state: running state of the stage.
    batch: what `config.make().batch` describes.
    key: PRNG key; None in evaluation.

  Raises:
    UserError: if the batch has a single example, which has nothing to be compared with.
  """
  if len(batch['waveform']) < 2:
    raise UserError('batch_size=1: a contrastive loss compares the examples of a batch: use more')
  text_key, augment, rngs = None, None, {}
  if key is not None:
    text_key, mask_key, dropout_key = jax.random.split(key, 3)
    augment = lambda x_BFM: log_mel.spec_augment(
      mask_key,
      x_BFM,
      num_masks=config.num_masks,
      max_frames=round(config.mask_seconds * config.sample_rate / config.audio.hop_length),
      max_mels=config.mask_mels,
    )
    rngs = {'dropout': dropout_key}
  ids_BL, known_B = choose_text(batch['texts'], text_key)
  audio_BD, text_BD = MuLan(config).apply(
    {'params': params}, batch['waveform'], ids_BL, augment, rngs=rngs
  )
  scale = _scale(config, params)
  to_text_BN, to_audio_BN = (scale * x for x in similarities(config, audio_BD, text_BD))
  known_B = placement.whole(known_B)
  num_known = jnp.sum(known_B)
  other_BN = None
  num_negatives_B = jnp.broadcast_to(num_known - 1, known_B.shape)
  if config.equal_texts == 'ignored':
    other_BN = different_texts(ids_BL)
    num_negatives_B = jnp.sum(other_BN & known_B, axis=1)
  if config.form == 'multi_view':
    total = losses.multi_view_contrastive(to_text_BN, to_audio_BN, known_B, other_BN)
    num_equal_B = 2 * num_negatives_B
  else:
    total = losses.clip_contrastive(to_text_BN, to_audio_BN, known_B, other_BN)
    num_equal_B = num_negatives_B + 1
  # What equal similarities cost, over the rows that count.
  chance_B = jnp.log(jnp.maximum(num_equal_B, 1).astype(jnp.float32))
  chance = losses.masked_mean(chance_B, known_B & (num_negatives_B > 0))
  means = [known_B @ x_BD / jnp.maximum(num_known, 1) for x_BD in (audio_BD, text_BD)]
  return total, Aux(
    state,
    {
      'loss': total,
      'above_chance': total - chance,
      'text_accuracy': losses.pair_accuracy(to_text_BN, known_B),
      'audio_accuracy': losses.pair_accuracy(to_audio_BN, known_B),
      'scale': scale,
      'gap': jnp.linalg.norm(means[0] - means[1]),
    },
  )


def choose_text(
  texts_BCL: Int[Array, 'B C L'], key: Key | None
) -> tuple[Int[Array, 'B L'], Bool[Array, 'B']]:
  """Returns one text of each example, and whether it has any.

  Args:
    texts_BCL: byte ids; missing texts are all PAD.
    key: draws one of the example's texts, all equally likely; None takes the first.
  """
  there_BC = jnp.any(texts_BCL != PAD, axis=-1)
  order_BC = jnp.zeros(there_BC.shape) if key is None else jax.random.uniform(key, there_BC.shape)
  chosen_B = jnp.argmax(jnp.where(there_BC, order_BC, -1), axis=1)
  ids_BL = jnp.take_along_axis(texts_BCL, chosen_B[:, None, None], axis=1)[:, 0]
  return ids_BL, jnp.any(there_BC, axis=1)


def different_texts(ids_BL: Int[Array, 'B L']) -> Bool[Array, 'B B']:
  """Returns which texts of the global batch differ, by two 32-bit hashes of each.

  Args:
    ids_BL: byte ids of the texts.
  """
  random = np.random.default_rng(0)
  # Odd factors are invertible, so that texts that differ in one byte have different hashes.
  factor_L2 = random.integers(2**32, size=(ids_BL.shape[1], 2), dtype=np.uint32) | 1
  hash_B2 = placement.whole(jnp.sum(ids_BL.astype(jnp.uint32)[..., None] * factor_L2, axis=1))
  return jnp.any(hash_B2[:, None] != hash_B2, axis=-1)


def similarities(
  config: Config, audio_BD: Float[Array, 'B D'], text_BD: Float[Array, 'B D']
) -> tuple[Float[Array, 'B B'], Float[Array, 'B B']]:
  """Returns the cosines [clip, text] of the global batch, and [text, clip], in float32.

  Each device computes the rows of its own examples. To this end, the vectors of all devices are
  gathered, in bfloat16 if both towers compute in it.

  Args:
    config: of the stage.
    audio_BD: unit vectors of clips.
    text_BD: unit vectors of texts.
  """
  dtype = jnp.promote_types(config.audio.dtype, config.text.transformer.dtype)
  audio_BD, text_BD = (placement.by_batch(x.astype(dtype)) for x in (audio_BD, text_BD))
  cosines = lambda x_BD, y_ND: placement.by_batch(
    jnp.einsum('bd,nd->bn', x_BD, placement.whole(y_ND), preferred_element_type=jnp.float32)
  )
  return cosines(audio_BD, text_BD), cosines(text_BD, audio_BD)


def _scale(config, params):
  """Returns the limited scale; its gradient ignores the limit, so that it can fall again."""
  beyond = jnp.maximum(params['log_scale'] - math.log(config.max_scale), 0)
  return jnp.exp(params['log_scale'] - jax.lax.stop_gradient(beyond))


def audio_embeddings(
  config: Config, variables: Variables, wave_BT: Float[Array, 'B T']
) -> Float[Array, 'B D']:
  """Returns a unit vector of each waveform, which should have the length of a training crop.

  `joint_embedding.JointEmbedding` takes clips of any length.

  Args:
    config: of the stage.
    variables: parameters and state.
    wave_BT: waveforms in [-1, 1].

  Raises:
    UserError: if a waveform is shorter than `config.audio.window_length` samples.
  """
  checks.shapes(wave_BT=wave_BT)
  return MuLan(config).apply({'params': variables.params}, wave_BT, method='embed_audio')


def text_embeddings(
  config: Config, variables: Variables, ids_BL: Int[Array, 'B L']
) -> Float[Array, 'B D']:
  """Returns a unit vector of each text, given as byte ids (see `data.texts.encode`).

  Args:
    config: of the stage.
    variables: parameters and state.
    ids_BL: byte ids of the texts.
  """
  checks.shapes(ids_BL=ids_BL)
  return MuLan(config).apply({'params': variables.params}, ids_BL, method='embed_text')

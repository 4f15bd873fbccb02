"""AudioLM stage 3 (arXiv 2209.03143): fine acoustic tokens given coarse ones.

Input: codes_BFQ at 50 Hz, all levels; no semantic tokens. Sequence: the coarse codes of the crop
frame by frame, START, the fine codes frame by frame. Only fine codes are predicted (the paper does
not state whether the coarse part has a loss).

Deviation: the softmax of a position covers its own level only. The option `time_embedding` is not
in the paper and off by default.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from audiolm_jax import checks, tokens
from audiolm_jax.errors import UserError
from audiolm_jax.nn import language_model
from audiolm_jax.nn.code_tables import CodeVectors
from audiolm_jax.nn.language_model import LanguageModel, Prefix
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.stages.base import Aux, Batch, Feature, Stage, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures the fine stage; the defaults are the paper's (section IV-B).

  By default, there are 4 coarse and 8 fine levels.

  Raises:
    UserError: if a field is illegal.
  """

  crop_seconds: float = 3.0
  frame_rate: float = 50.0  # Hz
  total_quantizers: int = 12
  num_coarse: int = 4
  codebook_size: int = 1024
  time_embedding: bool = False
  transformer: TransformerConfig = TransformerConfig()

  def __post_init__(self):
    checks.fields(
      self,
      crop_seconds=checks.CLIP_SECONDS,
      frame_rate=checks.POSITIVE,
      total_quantizers=checks.WHOLE,
      num_coarse=checks.WHOLE,
      codebook_size=checks.WHOLE,
      time_embedding=checks.FLAG,
    )
    tokens.semantic_frames(self.crop_seconds, self.frame_rate, self.frame_rate)
    if self.num_coarse >= self.total_quantizers:
      raise UserError(
        f'num_coarse={self.num_coarse} leaves no fine level of '
        f'total_quantizers={self.total_quantizers}'
      )

  @property
  def spec(self) -> tokens.Spec:
    """The tokens that this stage is made for."""
    return tokens.Spec(
      frame_rate=self.frame_rate,
      num_quantizers=self.total_quantizers,
      codebook_size=self.codebook_size,
    )

  @property
  def num_frames(self) -> int:
    """Number of codec frames of a crop."""
    return round(self.crop_seconds * self.frame_rate)

  @property
  def language_model(self) -> LanguageModel:
    """Language model of the fine codes."""
    vocabulary = tokens.Vocabulary(
      parts=(tokens.Codebook(self.num_coarse, self.codebook_size, self.frame_rate),),
      target_levels=self.total_quantizers - self.num_coarse,
      target_size=self.codebook_size,
    )
    return LanguageModel(
      transformer=self.transformer,
      vocabulary=vocabulary,
      target_rate=self.frame_rate,
      time_embedding=self.time_embedding,
    )

  def prefix_and_target(self, batch: Batch) -> tuple[Prefix, Int[Array, 'B F Q2']]:
    """Returns the prefix (the coarse codes) and the target fine codes of a batch.

    Args:
      batch: batch of the stage.
    """
    codes_BFQ = jnp.asarray(batch['codes'])
    return (codes_BFQ[..., : self.num_coarse],), codes_BFQ[..., self.num_coarse :]

  def make(self, code_vectors: CodeVectors | None = None) -> Stage:
    """Returns the stage.

    Args:
      code_vectors: vectors from which the tables of codes start, see
        `nn.code_tables.CodeVectors`.
    """

    def init(key):
      vectors = None
      if code_vectors is not None:
        vectors = (code_vectors, code_vectors[self.num_coarse :])
      return Variables(language_model.init(self.language_model, key, vectors), {})

    def loss(params, state, batch, key):
      prefix, target = self.prefix_and_target(batch)
      nats, metrics = language_model.loss(self.language_model, params, prefix, target, key)
      return nats, Aux(state, metrics)

    shape = (self.num_frames, self.total_quantizers)
    return Stage(
      batch={'codes': Feature(shape, jnp.int32, self.frame_rate, self.codebook_size)},
      init=init,
      loss=loss,
    )

"""AudioLM stage 1 (arXiv 2209.03143): a language model over semantic tokens.

Input: semantic_BS at 25 Hz, frame-aligned; repeats are removed here. Sequence: START, z_1, ...,
z_N; all of z is predicted. There is no end token, because crops end anywhere. Choices that the
paper leaves open are listed in nn/transformer.py.

With `condition`, as in MusicLM (arXiv 2301.11325), the tokens of a text or of the crop's audio come
before START.

Deviation: the softmax covers semantic ids only, so START cannot be predicted. The option
`time_embedding`, for tiny models, is not in the paper and off by default; it needs
deduplicate=False, because deduplicated tokens have no time.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from audiolm_jax import checks, tokens
from audiolm_jax.errors import UserError
from audiolm_jax.nn import language_model
from audiolm_jax.nn.language_model import LanguageModel, Prefix
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.stages.base import Aux, Batch, Condition, Feature, Key, Stage, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures the semantic stage; the defaults are the paper's (section IV-B).

  Raises:
    UserError: if a field is illegal.
  """

  crop_seconds: float = 30.0
  semantic_rate: float = 25.0  # Hz
  num_clusters: int = 1024
  deduplicate: bool = True
  time_embedding: bool = False
  condition: Condition | None = None  # MusicLM; AudioLM has none
  transformer: TransformerConfig = TransformerConfig()

  def __post_init__(self):
    checks.fields(
      self,
      crop_seconds=checks.CLIP_SECONDS,
      semantic_rate=checks.POSITIVE,
      num_clusters=checks.WHOLE,
      deduplicate=checks.FLAG,
      time_embedding=checks.FLAG,
    )
    if self.time_embedding and self.deduplicate:
      raise UserError('time_embedding needs frame-aligned semantic tokens: set deduplicate=False')
    tokens.semantic_frames(self.crop_seconds, self.semantic_rate, self.semantic_rate)

  @property
  def spec(self) -> tokens.Spec:
    """The tokens that this stage is made for."""
    return tokens.Spec(
      semantic_rate=self.semantic_rate,
      num_clusters=self.num_clusters,
      condition_levels=self.condition and self.condition.levels,
      condition_size=self.condition and self.condition.size,
    )

  @property
  def num_semantic(self) -> int:
    """Number of semantic frames of a crop."""
    return round(self.crop_seconds * self.semantic_rate)

  @property
  def language_model(self) -> LanguageModel:
    """Language model of the tokens."""
    return LanguageModel(
      transformer=self.transformer,
      vocabulary=tokens.Vocabulary(
        parts=() if self.condition is None else (self.condition.codebook,),
        target_size=self.num_clusters,
      ),
      target_rate=self.semantic_rate,
      time_embedding=self.time_embedding,
    )

  def prefix_and_target(
    self, batch: Batch, key: Key | None = None
  ) -> tuple[Prefix, Int[Array, 'B S 1']]:
    """Returns the prefix (the condition, if there is one) and the target tokens of a batch.

    Args:
      batch: batch of the stage.
      key: PRNG key that hides conditions in training; None hides none.
    """
    semantic_BS = jnp.asarray(batch['semantic'])
    if self.deduplicate:
      semantic_BS = tokens.deduplicate(semantic_BS)[0]
    prefix = () if self.condition is None else (self.condition.read(batch, key),)
    return prefix, semantic_BS[..., None]

  def make(self) -> Stage:
    """Returns the stage; batches hold semantic tokens, and the condition if there is one."""
    features = {
      'semantic': Feature((self.num_semantic,), jnp.int32, self.semantic_rate, self.num_clusters)
    }
    if self.condition is not None:
      features[self.condition.name] = self.condition.feature

    def loss(params, state, batch, key):
      prefix, target = self.prefix_and_target(batch, key)
      nats, metrics = language_model.loss(self.language_model, params, prefix, target, key)
      return nats, Aux(state, metrics)

    return Stage(
      batch=features,
      init=lambda key: Variables(language_model.init(self.language_model, key), {}),
      loss=loss,
    )

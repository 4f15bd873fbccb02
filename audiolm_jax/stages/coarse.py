"""AudioLM stage 2 (arXiv 2209.03143): coarse acoustic tokens given semantic tokens.

Inputs: semantic_BS at 25 Hz, frame-aligned (repeats are removed here), and codes_BFQ at 50 Hz, of
which the first `num_quantizers` levels are used. Sequence: z_1, ..., z_N, START, y_1^1, ..., y_1^Q,
y_2^1, ...; only y is predicted. Piano (section IV-I): num_quantizers=3, codebook_size=2**14, and no
stage 3. With `condition`, as in MusicLM (arXiv 2301.11325), the tokens of a text or of the crop's
audio come first.

Deviation: the softmax of a position covers its own level only, so illegal codes have probability 0.
Two options for tiny models are not in the paper and off by default. `time_embedding` (needs
deduplicate=False): tiny models do not learn to match semantic tokens to frames by counting.
`code_dropout`: they learn to continue the previous codes long before they learn to use the semantic
tokens.

`aligned` is another option, which needs deduplicate=False: the column that predicts a frame also
reads the semantic token of its time.

`depth` is one, too: a depth model as in RQ-Transformer (arXiv 2203.01941) predicts the codes of a
frame, and the Transformer reads a frame as one column instead of `num_quantizers`.
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
from audiolm_jax.stages.base import Aux, Batch, Condition, Feature, Key, Stage, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures the coarse stage; the defaults are the paper's (section IV-B).

  Raises:
    UserError: if a field is illegal.
  """

  crop_seconds: float = 10.0
  semantic_rate: float = 25.0  # Hz
  frame_rate: float = 50.0  # Hz
  num_clusters: int = 1024
  total_quantizers: int = 12  # of the codec
  num_quantizers: int = 4  # predicted, coarse levels
  codebook_size: int = 1024
  condition_on_semantic: bool = True  # False: the acoustic-only ablation
  deduplicate: bool = True
  time_embedding: bool = False
  code_dropout: float = 0.0  # share of the codes hidden from the input in training
  aligned: bool = False  # add the semantic token of a frame to the column that predicts it
  condition: Condition | None = None  # MusicLM; AudioLM has none
  transformer: TransformerConfig = TransformerConfig()
  depth: TransformerConfig | None = None  # sizes of the depth model; AudioLM has none

  def __post_init__(self):
    checks.fields(
      self,
      crop_seconds=checks.CLIP_SECONDS,
      semantic_rate=checks.POSITIVE,
      frame_rate=checks.POSITIVE,
      num_clusters=checks.WHOLE,
      total_quantizers=checks.WHOLE,
      num_quantizers=checks.WHOLE,
      codebook_size=checks.WHOLE,
      condition_on_semantic=checks.FLAG,
      deduplicate=checks.FLAG,
      time_embedding=checks.FLAG,
      code_dropout=checks.BELOW_ONE,
      aligned=checks.FLAG,
    )
    tokens.semantic_frames(self.crop_seconds, self.semantic_rate, self.frame_rate)
    if self.num_quantizers > self.total_quantizers:
      raise UserError(
        f'num_quantizers={self.num_quantizers} is not in '
        f'1..total_quantizers={self.total_quantizers}'
      )
    if self.depth is not None and self.num_quantizers == 1:
      raise UserError(
        'depth: a depth model needs several codes per frame, and num_quantizers=1: leave it out'
      )
    if self.aligned and (self.deduplicate or not self.condition_on_semantic):
      raise UserError(
        'aligned needs frame-aligned semantic tokens: set deduplicate=False and '
        'condition_on_semantic=True'
      )
    if self.time_embedding and self.condition_on_semantic and self.deduplicate:
      raise UserError('time_embedding needs frame-aligned semantic tokens: set deduplicate=False')

  @property
  def spec(self) -> tokens.Spec:
    """The tokens that this stage is made for."""
    return tokens.Spec(
      semantic_rate=self.semantic_rate,
      num_clusters=self.num_clusters,
      frame_rate=self.frame_rate,
      num_quantizers=self.total_quantizers,
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

  @property
  def language_model(self) -> LanguageModel:
    """Language model of the coarse codes."""
    parts = () if self.condition is None else (self.condition.codebook,)
    if self.condition_on_semantic:
      parts += (tokens.Codebook(1, self.num_clusters, self.semantic_rate),)
    vocabulary = tokens.Vocabulary(
      parts=parts, target_levels=self.num_quantizers, target_size=self.codebook_size
    )
    return LanguageModel(
      transformer=self.transformer,
      vocabulary=vocabulary,
      target_rate=self.frame_rate,
      time_embedding=self.time_embedding,
      code_dropout=self.code_dropout,
      depth=self.depth,
      aligned=self.aligned,
    )

  def prefix_and_target(
    self, batch: Batch, key: Key | None = None
  ) -> tuple[Prefix, Int[Array, 'B F Q']]:
    """Returns the prefix (condition and semantic tokens, if there are) and the target codes.

    Args:
      batch: batch of the stage.
      key: PRNG key that hides conditions in training; None hides none.
    """
    prefix = () if self.condition is None else (self.condition.read(batch, key),)
    if self.condition_on_semantic:
      semantic_BS = jnp.asarray(batch['semantic'])
      if self.deduplicate:
        semantic_BS = tokens.deduplicate(semantic_BS)[0]
      prefix += (semantic_BS[..., None],)
    return prefix, jnp.asarray(batch['codes'])

  def make(self, code_vectors: CodeVectors | None = None) -> Stage:
    """Returns the stage.

    Args:
      code_vectors: vectors from which the tables of codes start, see
        `nn.code_tables.CodeVectors`.
    """
    codes = Feature(
      (self.num_frames, self.num_quantizers), jnp.int32, self.frame_rate, self.codebook_size
    )
    features = {'codes': codes}
    if self.condition_on_semantic:
      features['semantic'] = Feature(
        (self.num_semantic,), jnp.int32, self.semantic_rate, self.num_clusters
      )
    if self.condition is not None:
      features[self.condition.name] = self.condition.feature

    def init(key):
      model = self.language_model
      vectors = None
      if code_vectors is not None:
        vectors = [None] * len(model.vocabulary.parts) + [code_vectors]
      return Variables(language_model.init(model, key, vectors), {})

    def loss(params, state, batch, key):
      prefix, target = self.prefix_and_target(batch, key)
      nats, metrics = language_model.loss(self.language_model, params, prefix, target, key)
      return nats, Aux(state, metrics)

    return Stage(batch=features, init=init, loss=loss)

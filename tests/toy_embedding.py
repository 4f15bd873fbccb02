"""A joint embedding whose vectors can be computed by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from audiolm_jax.embedding_tokens import Quantizer
from audiolm_jax.joint_embedding import JointEmbedding, Towers
from audiolm_jax.stages.base import Variables
from audiolm_jax.tokenizer import MusicTokenizer

EIGHTHS = {'low': 0, 'middle': 1, 'high': 2}


@dataclasses.dataclass(frozen=True)
class Config:
  sample_rate: int = 200


def vectors(samples):
  """Returns the unit vectors [..., 2] of an angle: a quarter of pi times the sample."""
  angle = jnp.pi / 4 * jnp.asarray(samples)
  return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


# The vector of a window of 2 s is that of its first sample, the vector of a text that of an eighth.
EMBEDDING = JointEmbedding(
  config=Config(),
  variables=Variables({'none': np.zeros(1, np.float32)}, {}),
  towers=Towers(
    audio=lambda config, variables, wave_BT: vectors(wave_BT[:, 0]),
    text=lambda config, variables, ids_BL: vectors(ids_BL[:, 0] / 8),
    filled=lambda wave_T, length: np.pad(wave_T, (0, length - len(wave_T))),
  ),
  encode=lambda captions: np.array([[EIGHTHS[caption]] for caption in captions]),
  window_length=400,
  embedding_dim=2,
)


def tokenizer(num_quantizers: int = 2) -> MusicTokenizer:
  """Returns a tokenizer whose first token is 8 times the sample, rounded; all others are 0."""
  codes_KD = vectors(jnp.arange(8) / 8)
  rest_KD = jnp.full_like(codes_KD, 9.0).at[0].set(0.0)  # all but one are far from every residual
  return MusicTokenizer(
    EMBEDDING, Quantizer(jnp.stack([codes_KD, *[rest_KD] * (num_quantizers - 1)]))
  )

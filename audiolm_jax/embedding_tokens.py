"""The unit vector of a clip or a text to a few tokens: what MusicLM conditions on (arXiv
2301.11325).

A residual quantizer of 12 levels of 1024 is fitted to vectors of audio
(`pretrained.clap.audio_embeddings`); a music model is trained on tokens of audio and asked with
tokens of texts, through the same quantizer, since both lie in one space. The tokens of a level mean
nothing without those before it: each says what is left.

The paper does not say how its quantizer is fitted; here by k-means, level by level, on a sample of
the corpus. In CLAP, vectors of texts keep a distance from those of audio that the quantizer has not
seen; MusicLM takes no note of it.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from audiolm_jax import arrays_file, checks
from audiolm_jax.errors import UserError
from audiolm_jax.nn import quantizer

NUM_QUANTIZERS, CODEBOOK_SIZE = 12, 1024  # MusicLM


def fit(
  embeddings_ND: Float[Array | np.ndarray, 'N D'],
  num_quantizers: int = NUM_QUANTIZERS,
  codebook_size: int = CODEBOOK_SIZE,
  seed: int = 0,
) -> Float[Array, 'Q K D']:
  """Returns the code vectors of each level, the means of what the levels before left of a sample of
  embeddings.

  Needs about 8 * N * codebook_size bytes. Raises ValueError when there are fewer embeddings than
  codes, one is not finite, or the sizes are not positive.
  """
  checks.shapes(embeddings_ND=embeddings_ND)
  checks.values(
    num_quantizers=(num_quantizers, checks.WHOLE),
    codebook_size=(codebook_size, checks.WHOLE),
    seed=(seed, checks.SEED),
  )
  num_embeddings, dim = embeddings_ND.shape
  if num_embeddings < codebook_size:
    raise UserError(
      f'{num_embeddings} embeddings cannot make {codebook_size} codes: give more, or lower codebook_size'
    )
  finite_N = np.isfinite(np.asarray(embeddings_ND)).all(axis=1)
  if not finite_N.all():
    raise UserError(
      f'{np.sum(~finite_N)} of {num_embeddings} embeddings hold NaN or infinity: look at the model that made them'
    )
  init_key, fit_key = jax.random.split(jax.random.key(seed))
  codebooks = quantizer.init(init_key, num_quantizers, codebook_size, dim)
  return jax.jit(quantizer.fit)(
    codebooks, jnp.asarray(embeddings_ND, jnp.float32)[None], fit_key
  ).vectors_QKD


def assign(
  vectors_QKD: Float[Array, 'Q K D'], embeddings_BD: Float[Array, 'B N']
) -> Int[Array, 'B Q']:
  """Returns the tokens of embeddings, int32 in [0, K); `nn.quantizer.decode` turns them back.

  Raises ValueError when the embeddings are of another width than the code vectors.
  """
  checks.shapes(vectors_QKD=vectors_QKD)
  checks.shapes(embeddings_BD=embeddings_BD)
  if embeddings_BD.shape[-1] != vectors_QKD.shape[-1]:
    raise UserError(
      f'embeddings have width {embeddings_BD.shape[-1]}, the code vectors {vectors_QKD.shape[-1]}: were they fitted '
      'to those of another model?'
    )
  return quantizer.encode(vectors_QKD, embeddings_BD[:, None])[0][:, 0]


def save(path: str | os.PathLike, vectors_QKD: Float[Array, 'Q K D'], model: str) -> None:
  """Writes what `fit` returned; `model`: the fingerprint of the model of the embeddings."""
  arrays_file.save(path, {'vectors': vectors_QKD}, {'model': model})


def load(path: str | os.PathLike, model: str) -> Float[Array, 'Q K D']:
  """Returns the code vectors that `save` wrote.

  Raises UserError where they are missing or damaged, or were fitted to embeddings of another model
  than the one of that fingerprint.
  """
  if not os.path.isfile(path):
    raise UserError(f'{path} does not exist: save there what embedding_tokens.fit returns')
  arrays, metadata = arrays_file.load(path, ('vectors',), 'fit the quantizer again')
  if metadata['model'] != model:
    raise UserError(
      f'{path} was fitted to embeddings of the model {metadata["model"]}, not of {model}: fit it again, and train '
      'again what was trained on its tokens'
    )
  return arrays['vectors']

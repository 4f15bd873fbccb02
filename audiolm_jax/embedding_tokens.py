"""Quantizes embeddings of clips and texts to tokens, as MusicLM's conditioning (arXiv 2301.11325).

A residual quantizer (12 levels of 1024 codes) is fitted to audio embeddings
(`pretrained.clap.audio_embeddings`). A music model is trained on tokens of audio and prompted with
tokens of texts, through the same quantizer, because both share one space. The tokens of a level
depend on those of the previous levels: each encodes a residual.

The paper does not state how its quantizer is fitted; here it is k-means, level by level, on a
sample of the corpus. In CLAP, text embeddings are at a distance from audio embeddings that the
quantizer has not seen; MusicLM does not account for it.
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
  """Fits the code vectors of each level to the residuals of the previous levels, by k-means.

  Needs about 8 * N * codebook_size bytes.

  Args:
    embeddings_ND: embeddings of a sample of the corpus.
    num_quantizers: number of levels Q.
    codebook_size: number of codes K per level.
    seed: seed of the initialization.

  Raises:
    UserError: if there are fewer embeddings than codes, an embedding is not finite, or a size is
      not positive.
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
      f'{num_embeddings} embeddings cannot make {codebook_size} codes: give more, or lower '
      'codebook_size'
    )
  finite_N = np.isfinite(np.asarray(embeddings_ND)).all(axis=1)
  if not finite_N.all():
    raise UserError(
      f'{np.sum(~finite_N)} of {num_embeddings} embeddings contain NaN or infinity: check the model '
      'that made them'
    )
  init_key, fit_key = jax.random.split(jax.random.key(seed))
  codebooks = quantizer.init(init_key, num_quantizers, codebook_size, dim)
  return jax.jit(quantizer.fit)(
    codebooks, jnp.asarray(embeddings_ND, jnp.float32)[None], fit_key
  ).vectors_QKD


def assign(
  vectors_QKD: Float[Array, 'Q K D'], embeddings_BD: Float[Array, 'B N']
) -> Int[Array, 'B Q']:
  """Returns the tokens of embeddings, int32 in [0, K); `nn.quantizer.decode` inverts them.

  Raises:
    UserError: if the width of the embeddings differs from that of the code vectors.
  """
  checks.shapes(vectors_QKD=vectors_QKD)
  checks.shapes(embeddings_BD=embeddings_BD)
  if embeddings_BD.shape[-1] != vectors_QKD.shape[-1]:
    raise UserError(
      f'embeddings have width {embeddings_BD.shape[-1]}, the code vectors {vectors_QKD.shape[-1]}: '
      'were these fitted to those of another model?'
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

"""Quantizes embeddings of clips and texts to tokens, like the conditioning of MusicLM.

A residual quantizer (12 levels of 1024 codes) is fitted to audio embeddings
(`pretrained.clap.audio_embeddings`). A music model is trained on tokens of audio and prompted with
tokens of texts, through the same quantizer, because both kinds of embeddings share one space. Each
level encodes the residual of the previous levels.

Source: MusicLM (arXiv 2301.11325). It does not state how its quantizer is fitted; here it is
k-means, level by level, on a sample of the corpus. CLAP's text embeddings have an offset from its
audio embeddings, to which the quantizer is fitted; like MusicLM, this module does not correct it.
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
      f'{num_embeddings} embeddings are too few for {codebook_size} codes: pass more, or lower '
      'codebook_size'
    )
  finite_N = np.isfinite(np.asarray(embeddings_ND)).all(axis=1)
  if not finite_N.all():
    raise UserError(
      f'{np.sum(~finite_N)} of {num_embeddings} embeddings contain NaN or infinity: check the '
      'model that made them'
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
      f'embeddings have width {embeddings_BD.shape[-1]}, but code vectors '
      f'{vectors_QKD.shape[-1]}: fit the code vectors to embeddings of the same model'
    )
  return quantizer.encode(vectors_QKD, embeddings_BD[:, None])[0][:, 0]


def save(path: str | os.PathLike, vectors_QKD: Float[Array, 'Q K D'], model: str) -> None:
  """Writes code vectors from `fit` atomically.

  model: fingerprint of the model that made the embeddings.
  """
  arrays_file.save(path, {'vectors': vectors_QKD}, {'model': model})


def load(path: str | os.PathLike, model: str) -> Float[Array, 'Q K D']:
  """Returns code vectors that `save` wrote.

  Args:
    path: path of the file.
    model: fingerprint of the model that makes the embeddings to quantize.

  Raises:
    UserError: if the file is missing or damaged, or `model` is not the one given to `save`.
  """
  if not os.path.isfile(path):
    raise UserError(f'{path} does not exist: save the result of embedding_tokens.fit there')
  arrays, metadata = arrays_file.load(path, ('vectors',), 'fit the quantizer again')
  if metadata['model'] != model:
    raise UserError(
      f'{path} was fitted to embeddings of the model {metadata["model"]}, not of {model}: fit it '
      'again, then train the models of its tokens again'
    )
  return arrays['vectors']

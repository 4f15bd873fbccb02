"""Quantizes embeddings of clips and texts to tokens, like the conditioning of MusicLM.

A residual quantizer (12 levels of 1024 codes) is fitted to audio embeddings
(`joint_embedding.JointEmbedding.audio`). A music model is trained on tokens of audio and prompted
with tokens of texts, through the same quantizer, because both kinds of embeddings share one space.
Each level encodes the residual of the previous levels.

Source: MusicLM (arXiv 2301.11325). It does not state how its quantizer is fitted; here it is
k-means, level by level, on a sample of the corpus.

Embeddings of texts lie apart from those of audio, to which the quantizer is fitted, so that a text
and its own clip share the first tokens only. There are two remedies, which MusicLM does not use:
`levels` takes the first tokens only, and `fit_map` fits an affine map from text to audio space.
"""

import os
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from audiolm_jax import arrays_file, checks, losses, storage
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

  Returns:
    Code vectors of each level.

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
  _check_finite(embeddings_ND)
  init_key, fit_key = jax.random.split(jax.random.key(seed))
  codebooks = quantizer.init(init_key, num_quantizers, codebook_size, dim)
  return jax.jit(quantizer.fit)(
    codebooks, jnp.asarray(embeddings_ND, jnp.float32)[None], fit_key
  ).vectors_QKD


def _check_finite(embeddings_ND):
  finite_N = np.isfinite(np.asarray(embeddings_ND)).all(axis=1)
  if not finite_N.all():
    raise UserError(
      f'{np.sum(~finite_N)} of {len(finite_N)} embeddings contain NaN or infinity: check the model '
      'that made them'
    )


def assign(
  vectors_QKD: Float[Array, 'Q K D'],
  embeddings_BD: Float[Array | np.ndarray, 'B N'],
  levels: int | None = None,
) -> Int[Array, 'B Q2']:
  """Returns the tokens of embeddings, int32 in [0, K); `nn.quantizer.decode` inverts them.

  Args:
    vectors_QKD: code vectors.
    embeddings_BD: embeddings of audio, or of texts after `apply_map`.
    levels: number of levels, the first ones; None for all Q.

  Raises:
    UserError: if the width of the embeddings differs from that of the code vectors, or there are
      fewer than `levels` levels.
  """
  checks.shapes(vectors_QKD=vectors_QKD)
  checks.shapes(embeddings_BD=embeddings_BD)
  num_levels = len(vectors_QKD)
  checks.values(levels=(levels, checks.optional(checks.whole(1, num_levels))))
  if embeddings_BD.shape[-1] != vectors_QKD.shape[-1]:
    raise UserError(
      f'embeddings have width {embeddings_BD.shape[-1]}, but code vectors '
      f'{vectors_QKD.shape[-1]}: fit the code vectors to embeddings of the same model'
    )
  return quantizer.encode(vectors_QKD[:levels], jnp.asarray(embeddings_BD)[:, None])[0][:, 0]


def fit_map(
  text_ND: Float[Array | np.ndarray, 'N D'], audio_ND: Float[Array | np.ndarray, 'N D']
) -> Float[Array, 'E D']:
  """Fits the affine map from embeddings of texts to those of their clips, by least squares.

  Args:
    text_ND: embeddings of texts.
    audio_ND: embeddings of the clips that they describe, in the same order.

  Returns:
    Map for `apply_map`, E = D + 1; the last row is the offset.

  Raises:
    UserError: if there are fewer than D + 1 pairs, or an embedding is not finite.
  """
  checks.shapes(text_ND=text_ND, audio_ND=audio_ND)
  num_pairs, dim = text_ND.shape
  if num_pairs <= dim:
    raise UserError(
      f'{num_pairs} pairs are too few for a map of width {dim}: pass at least {dim + 1}'
    )
  for embeddings_ND in (text_ND, audio_ND):
    _check_finite(embeddings_ND)
  affine_NE = np.pad(np.asarray(text_ND, np.float64), ((0, 0), (0, 1)), constant_values=1)
  map_ED, *_ = np.linalg.lstsq(affine_NE, np.asarray(audio_ND, np.float64))
  return jnp.asarray(map_ED, jnp.float32)


def apply_map(
  map_ED: Float[Array, 'E D'], text_BN: Float[Array | np.ndarray, 'B N']
) -> Float[Array, 'B D']:
  """Returns embeddings of texts moved into audio space, of unit length.

  Args:
    map_ED: from `fit_map`.
    text_BN: unit vectors of texts.

  Raises:
    UserError: if the map is for embeddings of another width.
  """
  checks.shapes(map_ED=map_ED)
  checks.shapes(text_BN=text_BN)
  if len(map_ED) != text_BN.shape[-1] + 1:
    raise UserError(
      f'embeddings have width {text_BN.shape[-1]}, the map {len(map_ED) - 1}: fit it to embeddings '
      'of the same model'
    )
  return losses.unit(text_BN @ map_ED[:-1] + map_ED[-1])


class Quantizer(NamedTuple):
  """Holds what makes tokens of embeddings.

  Fields:
    vectors_QKD: code vectors from `fit`.
    map_ED: map from `fit_map`, for texts; None if they are quantized as they are.
  """

  vectors_QKD: Float[Array, 'Q K D']
  map_ED: Float[Array, 'E D'] | None = None


def text_tokens(
  fitted: Quantizer, text_BD: Float[Array | np.ndarray, 'B D'], levels: int | None = None
) -> Int[Array, 'B Q']:
  """Returns the tokens of embeddings of texts, through the map if there is one; see `assign`.

  Args:
    fitted: quantizer, possibly with a map.
    text_BD: unit vectors of texts.
    levels: number of levels Q; None: all.
  """
  if fitted.map_ED is not None:
    text_BD = apply_map(fitted.map_ED, text_BD)
  return assign(fitted.vectors_QKD, text_BD, levels)


def save(path: str | os.PathLike, fitted: Quantizer, model: str, words: Iterable[str] = ()) -> None:
  """Writes a quantizer atomically.

  Args:
    path: path of the file.
    fitted: code vectors, and the map of texts.
    model: fingerprint of the model that made the embeddings.
    words: words of the texts that `model` was trained on, without spaces; see `load_words`.
  """
  arrays = {'vectors': fitted.vectors_QKD, 'map': fitted.map_ED}
  arrays_file.save(
    path,
    {name: array for name, array in arrays.items() if array is not None},
    {'model': model, 'words': ' '.join(sorted(words))},
  )


def load(path: str | os.PathLike, model: str) -> Quantizer:
  """Returns a quantizer that `save` wrote.

  Args:
    path: path of the file.
    model: fingerprint of the model that makes the embeddings to quantize.

  Raises:
    UserError: if the file is missing or damaged, or `model` is not the one given to `save`.
  """
  arrays, metadata = _load(path)
  if metadata['model'] != model:
    raise UserError(
      f'{path} was fitted to embeddings of the model {metadata["model"]}, not of {model}: fit it '
      'again, then train the models of its tokens again'
    )
  return Quantizer(arrays['vectors'], arrays.get('map'))


def load_words(path: str | os.PathLike) -> frozenset[str]:
  """Returns the words given to `save`; none if they are not known.

  Args:
    path: path of the file.

  Raises:
    UserError: if the file is missing or damaged.
  """
  return frozenset(_load(path)[1].get('words', '').split())


def _load(path: str | os.PathLike) -> tuple[dict[str, Array], dict[str, str]]:
  if not storage.is_file(path):
    raise UserError(f'{path} does not exist: save the result of embedding_tokens.fit there')
  return arrays_file.load(path, ('vectors',), 'fit the quantizer again', ('map',))

"""K-means over features such as w2v-BERT's, which turns frames into semantic tokens.

Each dimension is normalized to zero mean and unit variance before clustering, which improves the
phonetic discrimination of the tokens. Source: AudioLM (arXiv 2209.03143), section III-B.
"""

import os
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from audiolm_jax import arrays_file, checks, storage
from audiolm_jax.errors import UserError

_BLOCK = 2**14  # frames that are normalized at a time, in float64


class SemanticQuantizer(NamedTuple):
  """Holds centroids of normalized features, (features - mean_D) / scale_D."""

  mean_D: Float[Array, 'D']
  scale_D: Float[Array, 'D']
  centroids_KD: Float[Array, 'K D']


def fit(
  features_ND: Float[Array | np.ndarray, 'N D'], num_clusters: int, seed: int
) -> SemanticQuantizer:
  """Returns `num_clusters` clusters of a sample of frames, computed on the host.

  A dimension that does not vary keeps scale 1. Memory: the sample and one normalized copy of it, in
  float32.

  Args:
    features_ND: frames of the corpus, a sample.
    num_clusters: number of clusters K.
    seed: seed of the initial centroids.

  Raises:
    UserError: if there are fewer frames than clusters, or a feature is not finite.
  """
  from sklearn.cluster import MiniBatchKMeans  # slow to import, and needed only here

  features_ND = np.asarray(features_ND, np.float32)
  checks.shapes(features_ND=features_ND)
  checks.values(num_clusters=(num_clusters, checks.WHOLE), seed=(seed, checks.SEED))
  num_frames = features_ND.shape[0]
  if num_frames < num_clusters:
    raise UserError(
      f'{num_frames} frames cannot make {num_clusters} clusters: give more frames, or lower '
      'num_clusters'
    )
  blocks = [slice(start, start + _BLOCK) for start in range(0, num_frames, _BLOCK)]
  num_bad = sum(np.sum(~np.isfinite(features_ND[block]).all(axis=1)) for block in blocks)
  if num_bad:
    raise UserError(
      f'{num_bad} of {num_frames} frames contain NaN or infinity: check the model that made them'
    )
  mean64_D = sum(features_ND[block].sum(axis=0, dtype=np.float64) for block in blocks) / num_frames
  variance_D = sum(np.square(features_ND[block] - mean64_D).sum(axis=0) for block in blocks)
  mean_D = mean64_D.astype(np.float32)
  scale_D = np.sqrt(variance_D / num_frames).astype(np.float32)
  scale_D = np.where(scale_D > 1e-6, scale_D, 1).astype(np.float32)
  normalized_ND = np.empty_like(features_ND)
  for block in blocks:
    normalized_ND[block] = (features_ND[block] - mean_D) / scale_D
  model = MiniBatchKMeans(
    num_clusters,
    init='k-means++',
    batch_size=4096,
    max_iter=100,
    n_init=3,
    max_no_improvement=20,
    random_state=seed,
    compute_labels=False,  # the labels of the frames are not used
  ).fit(normalized_ND)
  return SemanticQuantizer(
    *(jnp.asarray(x, jnp.float32) for x in (mean_D, scale_D, model.cluster_centers_))
  )


def assign(quantizer: SemanticQuantizer, features_BSD: Float[Array, 'B S D']) -> Int[Array, 'B S']:
  """Returns the index of the nearest centroid of every frame, int32.

  Distances are in float32, because those of near centroids differ little.

  Args:
    quantizer: from `fit` or `load`.
    features_BSD: features from the layer to which the clusters were fitted.

  Raises:
    UserError: if features and centroids have different widths.
  """
  checks.shapes(features_BSD=features_BSD)
  width, expected = features_BSD.shape[-1], quantizer.mean_D.shape[-1]
  if width != expected:
    raise UserError(
      f'features have width {width}, the centroids {expected}: use the layer they were fitted to'
    )
  normalized_BSD = (features_BSD.astype(jnp.float32) - quantizer.mean_D) / quantizer.scale_D
  # |x - c|^2 without |x|^2, which is the same for every centroid.
  products_BSK = jnp.einsum(
    'bsd,kd->bsk', normalized_BSD, quantizer.centroids_KD, precision='highest'
  )
  distances_BSK = jnp.sum(jnp.square(quantizer.centroids_KD), axis=-1) - 2 * products_BSK
  return jnp.argmin(distances_BSK, axis=-1).astype(jnp.int32)


class Stored(NamedTuple):
  """Holds the contents of a file of clusters: the clusters, and what they were fitted to."""

  quantizer: SemanticQuantizer
  layer: int  # of the model
  frames_per_token: int
  model: str  # fingerprint of the model
  fingerprint: str  # of the clusters


def save(
  path: str | os.PathLike,
  quantizer: SemanticQuantizer,
  *,
  layer: int,
  frames_per_token: int,
  model: str,
) -> None:
  """Writes clusters and what they were fitted to.

  Args:
    path: path of the file.
    quantizer: the clusters.
    layer: layer of the model.
    frames_per_token: number of frames that are averaged for one token.
    model: fingerprint of the model (`tokenizer.SemanticEncoder.fingerprint`).
  """
  metadata = {'layer': str(layer), 'frames_per_token': str(frames_per_token), 'w2v_bert': model}
  arrays_file.save(path, quantizer._asdict(), metadata)


def load(path: str | os.PathLike, remedy: str = 'fit the clusters again') -> Stored:
  """Returns the clusters in a file written by `save`.

  Args:
    path: path of the file.
    remedy: what error messages advise to do.

  Raises:
    UserError: with `remedy`, if the file is missing or damaged.
  """
  if not storage.is_file(path):
    raise UserError(f'{path} does not exist: {remedy}')
  arrays, metadata = arrays_file.load(path, SemanticQuantizer._fields, remedy)
  try:
    layer, frames = int(metadata['layer']), int(metadata.get('frames_per_token', 1))
    model = metadata['w2v_bert']
  except (KeyError, ValueError) as error:
    raise UserError(f'{path} is damaged ({error!r}): delete it and {remedy}') from error
  return Stored(SemanticQuantizer(**arrays), layer, frames, model, metadata['digest'])

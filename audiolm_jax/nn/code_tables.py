"""Starts the tables of code embeddings from the vectors that the codec has for its codes.

Codes that sound alike then have similar embeddings and similar logits from the first step on, so
that what a model learns of one code holds for its neighbours. AudioLM and SoundStorm start from
random tables, and learn from thousands of hours which codes are alike; small budgets cannot.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from audiolm_jax.errors import UserError

# Vectors of the K codes of Q levels of a codec (`Codec.code_vectors`). Stages of codes take them as
# the argument `code_vectors` of `Config.make`, and start their tables of codes from them. Without
# them (None), the tables are random, as in the papers. Recipes ask for them by `from_code_vectors`.
CodeVectors = Float[Array | np.ndarray, 'Q K D']


def projected(key: jax.Array, vectors_QKD: CodeVectors, width: int) -> Float[Array, 'Q K W']:
  """Returns random projections of the vectors of each level, of mean 0 and variance 1.

  Vectors of one level keep their distances relative to each other, up to the error of a random
  projection; vectors of different levels are nearly orthogonal, because each level has a projection
  of its own.

  Args:
    key: PRNG key of the projections.
    vectors_QKD: vectors of the K codes of Q levels (`Codec.code_vectors`).
    width: width W of the result.
  """
  vectors_QKD = jnp.asarray(vectors_QKD)
  centred_QKD = vectors_QKD - vectors_QKD.mean(axis=1, keepdims=True)
  power_Q11 = jnp.mean(centred_QKD**2, axis=(1, 2), keepdims=True)
  unit_QKD = centred_QKD / jnp.sqrt(jnp.maximum(power_Q11, 1e-12))
  levels, _, depth = vectors_QKD.shape
  projection_QDW = jax.random.normal(key, (levels, depth, width)) * depth**-0.5
  return jnp.einsum('qkd,qdw->qkw', unit_QKD, projection_QDW)


def check(vectors_QKD: CodeVectors, levels: int, size: int) -> Float[Array, 'q K D']:
  """Returns the vectors of the first `levels` levels.

  Raises:
    UserError: if there are fewer levels, or not `size` codes per level.
  """
  if vectors_QKD.shape[0] < levels or vectors_QKD.shape[1] != size:
    raise UserError(
      f'code_vectors has shape {vectors_QKD.shape}, but the model has {levels} levels of {size} '
      'codes: pass the code_vectors() of the codec whose codes the model learns'
    )
  return jnp.asarray(vectors_QKD[:levels])


def fill(
  table_VD: Array, tables: Sequence[Float[Array, '_ _ D'] | None], offsets: Sequence[int]
) -> Array:
  """Returns a table of ids in which the rows from each offset on are those of a level table.

  Args:
    table_VD: embeddings of all ids.
    tables: embeddings of the codes of each part of a vocabulary; None leaves a part as it is.
    offsets: first id of each part.
  """
  for table_QKD, offset in zip(tables, offsets, strict=True):
    if table_QKD is not None:
      rows_VD = table_QKD.reshape(-1, table_QKD.shape[-1]).astype(table_VD.dtype)
      table_VD = jax.lax.dynamic_update_slice(table_VD, rows_VD, (offset, 0))
  return table_VD

"""Whose voice it is, and whether it stays: similarity of speaker embeddings, whichever model makes them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def similarity(one_ND: Float[np.ndarray, 'N D'], other_ND: Float[np.ndarray, 'N D']) -> Float[np.ndarray, 'N']:
  """Returns the cosine of each pair of embeddings, in [-1, 1]."""
  norm = lambda x_ND: np.maximum(np.linalg.norm(x_ND, axis=-1), 1e-12)
  return np.sum(one_ND * other_ND, axis=-1) / (norm(one_ND) * norm(other_ND))


def drift(
    prompts: Sequence[Float[np.ndarray, 'D']], clips: Sequence[Float[np.ndarray, '_ D']]
) -> Float[np.ndarray, 'N']:
  """Returns how similar the n-th window of a clip is to the clip's prompt: the mean cosine over clips, for each n.

  prompts: the embedding of each clip's prompt. clips: the embeddings of its windows, in their order; a clip that is
    over counts no more.
  Source: SoundStorm (arXiv 2305.09636), section 4.2, "Acoustic consistency drift" and figure 2.
  """
  longest = max(map(len, clips))
  cosine_BN = np.full((len(clips), longest), np.nan)
  for row_N, prompt_D, clip_ND in zip(cosine_BN, prompts, clips, strict=True):
    row_N[: len(clip_ND)] = similarity(np.broadcast_to(prompt_D, clip_ND.shape), clip_ND)
  return np.nanmean(cosine_BN, axis=0)

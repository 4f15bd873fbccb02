"""Measures speaker similarity from embeddings of any speaker model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from audiolm_jax.errors import UserError
from audiolm_jax.metrics import detection


class Verification(NamedTuple):
  """Holds mean cosines of clips with their own prompts and with prompts of other speakers.

  `equal_error_rate` is that of separating the two kinds of pairs by their cosine; 0.5 is chance.
  """

  own: float
  others: float
  equal_error_rate: float


def similarity(
  one_ND: Float[np.ndarray, 'N D'], other_ND: Float[np.ndarray, 'N D']
) -> Float[np.ndarray, 'N']:
  """Returns the cosine of each pair of embeddings, in [-1, 1].

  Args:
    one_ND: embeddings, of any length above 0.
    other_ND: embeddings to compare with these, row by row.
  """
  norm = lambda x_ND: np.maximum(np.linalg.norm(x_ND, axis=-1), 1e-12)
  return np.sum(one_ND * other_ND, axis=-1) / (norm(one_ND) * norm(other_ND))


def verification(
  prompt_BD: Float[np.ndarray, 'B D'], clip_BD: Float[np.ndarray, 'B D'], speaker_B: np.ndarray
) -> Verification:
  """Compares each clip with each prompt.

  The mean prompt embedding is subtracted first, because a component shared by all voices would make
  all similar.

  Args:
    prompt_BD: embeddings of the prompts.
    clip_BD: embeddings of the clips; clip b continues prompt b.
    speaker_B: speaker of each prompt.

  Returns:
    Rates and similarities.

  Raises:
    UserError: if all prompts have the same speaker.
  """
  speaker_B = np.asarray(speaker_B)
  if len(set(speaker_B.tolist())) < 2:
    raise UserError(
      f'all {len(speaker_B)} prompts are of one speaker: similarity needs others to compare with'
    )
  mean_D, count = prompt_BD.mean(axis=0), len(speaker_B)
  clip_N, prompt_N = (index_BB.ravel() for index_BB in np.indices((count, count)))
  cosine_N = similarity(clip_BD[clip_N] - mean_D, prompt_BD[prompt_N] - mean_D)
  own_N, others_N = clip_N == prompt_N, speaker_B[clip_N] != speaker_B[prompt_N]
  kept_N = own_N | others_N  # excludes other prompts of the same speaker
  error = detection.equal_error_rate(cosine_N[kept_N], own_N[kept_N].astype(int))
  return Verification(float(cosine_N[own_N].mean()), float(cosine_N[others_N].mean()), error)


def drift(
  prompts: Sequence[Float[np.ndarray, 'D']], clips: Sequence[Float[np.ndarray, '_ D']]
) -> Float[np.ndarray, 'N']:
  """Returns the mean cosine of the n-th window of a clip with the clip's prompt, for each n.

  Args:
    prompts: embedding [D] of the prompt of each clip.
    clips: embeddings [N, D] of the consecutive windows of each clip; clips may differ in length.

  Source: SoundStorm (arXiv 2305.09636), section 4.2, "Acoustic consistency drift" and figure 2.
  """
  longest = max(map(len, clips))
  cosine_BN = np.full((len(clips), longest), np.nan)
  for row_N, prompt_D, clip_ND in zip(cosine_BN, prompts, clips, strict=True):
    row_N[: len(clip_ND)] = similarity(np.broadcast_to(prompt_D, clip_ND.shape), clip_ND)
  return np.nanmean(cosine_BN, axis=0)

"""What counting achieves: unigram and bigram baselines in nats per token, on the tokens that an LM predicts."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from audiolm_jax.tokens import PAD


class Counts(NamedTuple):
  """Counts of each level: unigram_QV, and bigram_QUV[q, u, v] of v at level q after the code u before it in
  row-major order (u = V: START)."""

  unigram_QV: Float[np.ndarray, 'Q V']
  bigram_QUV: Float[np.ndarray, 'Q U V']


def fit(codes_BFQ: Int[np.ndarray, 'B F Q'], codebook_size: int) -> Counts:
  """Counts codes (PAD left out) and pairs of neighbours in the flattened sequence, level by level."""
  levels = codes_BFQ.shape[-1]
  before_BFQ = _before(codes_BFQ, codebook_size)
  unigram_QV = np.zeros((levels, codebook_size), np.float32)
  bigram_QUV = np.zeros((levels, codebook_size + 1, codebook_size), np.float32)
  level_BFQ = np.broadcast_to(np.arange(levels), codes_BFQ.shape)
  here = codes_BFQ != PAD
  np.add.at(unigram_QV, (level_BFQ[here], codes_BFQ[here]), 1)
  np.add.at(bigram_QUV, (level_BFQ[here], before_BFQ[here], codes_BFQ[here]), 1)
  return Counts(unigram_QV, bigram_QUV)


def unigram_nats(counts: Counts, codes_BFQ: Int[np.ndarray, 'B F Q'], smoothing: float = 1.0) -> float:
  """Returns nats per token of held-out codes under the unigram of each level with add-`smoothing` counts."""
  probability_QV = _unigram(counts, smoothing)
  here = codes_BFQ != PAD
  level_BFQ = np.broadcast_to(np.arange(codes_BFQ.shape[-1]), codes_BFQ.shape)
  return float(-np.log(probability_QV[level_BFQ[here], codes_BFQ[here]]).mean())


def bigram_nats(
    counts: Counts, codes_BFQ: Int[np.ndarray, 'B F Q'], concentration: float = 10.0, smoothing: float = 1.0
) -> float:
  """Returns nats per token of held-out codes under the bigram, backed off to the unigram (Dirichlet prior).

  p(v | u) = (count(u, v) + concentration * unigram(v)) / (count(u) + concentration).
  """
  probability_QV = _unigram(counts, smoothing)
  here = codes_BFQ != PAD
  level = np.broadcast_to(np.arange(codes_BFQ.shape[-1]), codes_BFQ.shape)[here]
  before, code = _before(codes_BFQ, counts.unigram_QV.shape[1])[here], codes_BFQ[here]
  pair = counts.bigram_QUV[level, before, code] + concentration * probability_QV[level, code]
  return float(-np.log(pair / (counts.bigram_QUV.sum(axis=-1)[level, before] + concentration)).mean())


def _unigram(counts, smoothing):
  smoothed_QV = counts.unigram_QV + smoothing
  return smoothed_QV / smoothed_QV.sum(axis=-1, keepdims=True)


def _before(codes_BFQ, codebook_size):
  """Returns the code before each one in row-major order; START (and PAD) as `codebook_size`."""
  flat_BL = codes_BFQ.reshape(codes_BFQ.shape[0], -1)
  start_B1 = np.full_like(flat_BL[:, :1], codebook_size)
  before_BL = np.concatenate([start_B1, flat_BL[:, :-1]], axis=1)
  return np.where(before_BL == PAD, codebook_size, before_BL).reshape(codes_BFQ.shape)

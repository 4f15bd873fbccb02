"""Measures token language models: n-gram baselines and preference between two recordings.

Counting: unigram and bigram baselines, in nats per token. Preference: sWUGGY and sBLIMP of
ZeroSpeech 2021 (arXiv 2011.11588), where a model should assign the correct recording of a pair the
higher likelihood.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from audiolm_jax.errors import UserError
from audiolm_jax.tokens import PAD


class Counts(NamedTuple):
  """Holds unigram and bigram counts of each level.

  `bigram_QUV[q, u, v]` counts code v at level q after code u in row-major order; u = V is START.
  """

  unigram_QV: Float[np.ndarray, 'Q V']
  bigram_QUV: Float[np.ndarray, 'Q U V']


def fit(codes_BFQ: Int[np.ndarray, 'B F Q'], codebook_size: int) -> Counts:
  """Counts codes and pairs of neighbours in the flattened sequence, level by level, except PAD.

  Args:
    codes_BFQ: codes of the training set; PAD is padding.
    codebook_size: codes per level.

  Returns:
    Counts of both.
  """
  levels = codes_BFQ.shape[-1]
  before_BFQ = _before(codes_BFQ, codebook_size)
  unigram_QV = np.zeros((levels, codebook_size), np.float32)
  bigram_QUV = np.zeros((levels, codebook_size + 1, codebook_size), np.float32)
  level_BFQ = np.broadcast_to(np.arange(levels), codes_BFQ.shape)
  here = codes_BFQ != PAD
  np.add.at(unigram_QV, (level_BFQ[here], codes_BFQ[here]), 1)
  np.add.at(bigram_QUV, (level_BFQ[here], before_BFQ[here], codes_BFQ[here]), 1)
  return Counts(unigram_QV, bigram_QUV)


def unigram_nats(
  counts: Counts, codes_BFQ: Int[np.ndarray, 'B F Q'], smoothing: float = 1.0
) -> float:
  """Returns nats per held-out token under the unigram of each level with add-`smoothing` counts.

  Args:
    counts: from `fit`.
    codes_BFQ: held-out codes; PAD is padding.
    smoothing: added to each count.
  """
  probability_QV = _unigram(counts, smoothing)
  here = codes_BFQ != PAD
  level_BFQ = np.broadcast_to(np.arange(codes_BFQ.shape[-1]), codes_BFQ.shape)
  return float(-np.log(probability_QV[level_BFQ[here], codes_BFQ[here]]).mean())


def bigram_nats(
  counts: Counts,
  codes_BFQ: Int[np.ndarray, 'B F Q'],
  concentration: float = 10.0,
  smoothing: float = 1.0,
) -> float:
  """Returns nats per token of held-out codes under `bigram_log_probabilities`.

  Args:
    counts: from `fit`.
    codes_BFQ: held-out codes; PAD is padding.
    concentration: weight of the unigram, in counts.
    smoothing: added to each count of the unigram.
  """
  return -float(
    bigram_log_probabilities(counts, codes_BFQ, concentration, smoothing)[codes_BFQ != PAD].mean()
  )


def bigram_log_probabilities(
  counts: Counts,
  codes_BFQ: Int[np.ndarray, 'B F Q'],
  concentration: float = 10.0,
  smoothing: float = 1.0,
) -> Float[np.ndarray, 'B F Q']:
  """Returns the log-probability of each code, in nats, under the backed-off bigram; 0 at PAD.

    p(v | u) = (count(u, v) + concentration * unigram(v)) / (count(u) + concentration)

  The unigram (Dirichlet prior) has add-`smoothing` counts.

  Args:
    counts: from `fit`.
    codes_BFQ: codes; PAD is padding.
    concentration: weight of the unigram, in counts.
    smoothing: added to each count of the unigram.
  """
  level_BFQ = np.broadcast_to(np.arange(codes_BFQ.shape[-1]), codes_BFQ.shape)
  before_BFQ, code_BFQ = _before(codes_BFQ, counts.unigram_QV.shape[1]), np.maximum(codes_BFQ, 0)
  pair = counts.bigram_QUV[level_BFQ, before_BFQ, code_BFQ]
  pair = pair + concentration * _unigram(counts, smoothing)[level_BFQ, code_BFQ]
  probability_BFQ = pair / (counts.bigram_QUV.sum(axis=-1)[level_BFQ, before_BFQ] + concentration)
  return np.where(codes_BFQ == PAD, 0, np.log(probability_BFQ))


class Recording(NamedTuple):
  """Identifies one recording of a pair; the `correct` one should be likelier."""

  pair: str
  voice: str
  correct: bool
  kind: str  # group for separate results; a pair has the kind of its correct recording


class Preference(NamedTuple):
  """Holds preference accuracies in [0, 1].

  Fields:
    accuracy: mean over pairs, each pair averaged over its voices.
    by_kind: the same for each kind.
    pairs: number of pairs.
  """

  accuracy: float
  by_kind: dict[str, float]
  pairs: int


def preference(recordings: Sequence[Recording], scores: Sequence[float]) -> Preference:
  """Returns how often the correct recording of a pair has the higher score; ties count half.

  Averages over the voices of a pair, then over pairs, as the lexical and syntactic tasks of
  ZeroSpeech 2021.

  Args:
    recordings: correct and wrong recordings of each pair and voice.
    scores: score of each recording, such as its log-likelihood.

  Raises:
    UserError: if a recording lacks its counterpart or occurs twice, or a score is not finite.
  """
  if len(recordings) != len(scores) or not recordings:
    raise UserError(f'{len(recordings)} recordings and {len(scores)} scores: give one for each')
  found: dict[tuple[str, str], dict[bool, tuple[float, str]]] = {}
  for recording, score in zip(recordings, scores, strict=True):
    sides = found.setdefault((recording.pair, recording.voice), {})
    if recording.correct in sides or not np.isfinite(score):
      raise UserError(f'{recording} occurs twice, or its score {score} is not finite')
    sides[recording.correct] = (float(score), recording.kind)
  by_pair: dict[tuple[str, str], list[float]] = {}
  for (pair, voice), sides in found.items():
    if len(sides) != 2:
      raise UserError(
        f'pair {pair}, voice {voice} has no {"wrong" if True in sides else "correct"} recording'
      )
    (right, kind), (wrong, _) = sides[True], sides[False]
    by_pair.setdefault((kind, pair), []).append(1.0 * (right > wrong) + 0.5 * (right == wrong))
  kinds: dict[str, list[float]] = {}
  for (kind, _), won in by_pair.items():
    kinds.setdefault(kind, []).append(float(np.mean(won)))
  accuracy = float(np.mean([value for values in kinds.values() for value in values]))
  return Preference(
    accuracy, {kind: float(np.mean(values)) for kind, values in kinds.items()}, len(by_pair)
  )


def _unigram(counts, smoothing):
  smoothed_QV = counts.unigram_QV + smoothing
  return smoothed_QV / smoothed_QV.sum(axis=-1, keepdims=True)


def _before(codes_BFQ, codebook_size):
  """Returns the preceding code in row-major order; `codebook_size` stands for START and PAD."""
  flat_BL = codes_BFQ.reshape(codes_BFQ.shape[0], -1)
  start_B1 = np.full_like(flat_BL[:, :1], codebook_size)
  before_BL = np.concatenate([start_B1, flat_BL[:, :-1]], axis=1)
  return np.where(before_BL == PAD, codebook_size, before_BL).reshape(codes_BFQ.shape)

"""How well discrete tokens follow phones (or speakers), from two aligned integer sequences.

Negative entries, in either sequence, are padding or unlabelled and are left out. Source of the two purities: HuBERT
(arXiv 2106.07447), section IV-D.
"""

import numpy as np
from jaxtyping import Int


def phone_purity(tokens_N: Int[np.ndarray, '_'], phones_N: Int[np.ndarray, '_']) -> float:
  """Returns the accuracy, in [0, 1], of guessing each frame's phone as its token's most frequent one."""
  counts = _contingency(tokens_N, phones_N)
  return float(counts.max(axis=1).sum() / counts.sum())


def cluster_purity(tokens_N: Int[np.ndarray, '_'], phones_N: Int[np.ndarray, '_']) -> float:
  """Returns the accuracy, in [0, 1], of guessing each frame's token as its phone's most frequent one."""
  counts = _contingency(tokens_N, phones_N)
  return float(counts.max(axis=0).sum() / counts.sum())


def normalized_mutual_information(tokens_N: Int[np.ndarray, '_'], labels_N: Int[np.ndarray, '_']) -> float:
  """Returns the mutual information over the mean of the two entropies, in [0, 1]."""
  from sklearn.metrics import normalized_mutual_info_score  # slow to import

  return float(normalized_mutual_info_score(*_labelled(tokens_N, labels_N)))


def _labelled(tokens_N, labels_N):
  if tokens_N.shape != labels_N.shape:
    raise ValueError(f'{tokens_N.shape[0]} tokens and {labels_N.shape[0]} labels: cut both at the same frames')
  keep = (tokens_N >= 0) & (labels_N >= 0)
  if not keep.any():
    raise ValueError(f'none of the {tokens_N.shape[0]} frames has both a token and a label')
  return tokens_N[keep], labels_N[keep]


def _contingency(tokens_N, labels_N) -> np.ndarray:
  """Returns how often each token (row) meets each label (column)."""
  tokens_N, labels_N = _labelled(tokens_N, labels_N)
  counts = np.zeros((tokens_N.max() + 1, labels_N.max() + 1), np.int64)
  np.add.at(counts, (tokens_N, labels_N), 1)
  return counts

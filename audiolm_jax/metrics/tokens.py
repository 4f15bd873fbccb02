"""Measures tokens against phones or speakers, and decodes them linearly to frames.

Negative entries in either sequence mark padding or unlabelled frames and are ignored. Source of the
purities: HuBERT (arXiv 2106.07447), section IV-D.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from audiolm_jax.errors import UserError


def phone_purity(tokens_N: Int[np.ndarray, '_'], phones_N: Int[np.ndarray, '_']) -> float:
  """Returns the accuracy, in [0, 1], of guessing each frame's phone from its token.

  Args:
    tokens_N: token of each frame.
    phones_N: phone of each frame.
  """
  counts = _contingency(tokens_N, phones_N)
  return float(counts.max(axis=1).sum() / counts.sum())


def normalized_mutual_information(
  tokens_N: Int[np.ndarray, '_'], labels_N: Int[np.ndarray, '_']
) -> float:
  """Returns the mutual information divided by the mean of the two entropies, in [0, 1].

  Args:
    tokens_N: token of each frame.
    labels_N: label of each frame.
  """
  from sklearn.metrics import normalized_mutual_info_score  # slow to import

  return float(normalized_mutual_info_score(*_labelled(tokens_N, labels_N)))


class LinearDecoder(NamedTuple):
  """Holds a linear map from a frame with its neighbours to a target frame.

  The inputs I are the frames from `context` before to `context` after, in time order, and a
  constant 1.
  """

  weight_ID: Float[np.ndarray, 'I D']
  context: int


def fit_linear_decoder(
  inputs: Sequence[Float[np.ndarray, '_ E']],
  targets: Sequence[Float[np.ndarray, '_ D']],
  context: int,
  ridge: float = 1.0,
) -> LinearDecoder:
  """Fits the linear map from frames in context to targets by ridge regression.

  Args:
    inputs: frames [S, E] of each clip.
    targets: frames [S, D] of each clip.
    context: number of neighbours on each side.
    ridge: constant added to the diagonal of the input's Gram matrix.

  Returns:
    The decoder.

  Raises:
    UserError: if clips differ in number or length.
  """
  lengths = [[len(one) for one in side] for side in (inputs, targets)]
  if lengths[0] != lengths[1] or not sum(lengths[0]):
    raise UserError(
      f'inputs of {lengths[0][:8]} frames, targets of {lengths[1][:8]}: cut both at the same frames'
    )
  squares_II, products_ID = 0.0, 0.0
  for input_SE, target_SD in zip(inputs, targets, strict=True):
    window_SI = _in_context(input_SE, context)
    squares_II, products_ID = (
      squares_II + window_SI.T @ window_SI,
      products_ID + window_SI.T @ target_SD,
    )
  weight_ID = np.linalg.solve(squares_II + ridge * np.eye(len(squares_II)), products_ID)
  return LinearDecoder(weight_ID.astype(np.float32), context)


def decode_linearly(
  decoder: LinearDecoder, input_SE: Float[np.ndarray, 'S E']
) -> Float[np.ndarray, 'S D']:
  """Returns the decoded frames [S, D] of a clip.

  Args:
    decoder: from `fit_linear_decoder`.
    input_SE: frames of the clip.
  """
  return (_in_context(input_SE, decoder.context) @ decoder.weight_ID).astype(np.float32)


def _in_context(frames_SE: np.ndarray, context: int) -> np.ndarray:
  """Returns each frame with its neighbours and a 1, [S, (2 context + 1) E + 1], zero-padded."""
  padded = np.pad(frames_SE.astype(np.float64), ((context, context), (0, 0)))
  shifted = [padded[n : n + len(frames_SE)] for n in range(2 * context + 1)]
  return np.concatenate([*shifted, np.ones((len(frames_SE), 1))], axis=1)


def _labelled(tokens_N, labels_N):
  if tokens_N.shape != labels_N.shape:
    raise UserError(
      f'{tokens_N.shape[0]} tokens and {labels_N.shape[0]} labels: cut both at the same frames'
    )
  keep = (tokens_N >= 0) & (labels_N >= 0)
  if not keep.any():
    raise UserError(f'none of the {tokens_N.shape[0]} frames has both a token and a label')
  return tokens_N[keep], labels_N[keep]


def _contingency(tokens_N, labels_N) -> np.ndarray:
  """Counts how often each token (row) coincides with each label (column)."""
  tokens_N, labels_N = _labelled(tokens_N, labels_N)
  counts = np.zeros((tokens_N.max() + 1, labels_N.max() + 1), np.int64)
  np.add.at(counts, (tokens_N, labels_N), 1)
  return counts

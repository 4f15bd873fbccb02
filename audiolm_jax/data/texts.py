"""Encodes texts as their UTF-8 bytes, the input of MuLan's text tower."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from audiolm_jax import checks
from audiolm_jax.errors import UserError
from audiolm_jax.tokens import PAD

NUM_IDS = 256  # byte values


def encode(
  texts: Sequence[Any], num_bytes: int, num_texts: int | None = None
) -> Int[np.ndarray, 'C L']:
  """Returns the UTF-8 bytes of texts as int32 ids from 0 to 255, padded with PAD (-1).

  Args:
    texts: one or more texts, such as all captions of an example.
    num_bytes: length L of a row, the most bytes of a text.
    num_texts: number of rows C; rows after the last text are PAD. None is the number of texts.

  Raises:
    UserError: if there are no texts or more than `num_texts`, or a text is no string, blank, no
      Unicode (lone surrogates), or longer than `num_bytes` bytes.
  """
  checks.values(
    num_bytes=(num_bytes, checks.WHOLE), num_texts=(num_texts, checks.optional(checks.WHOLE))
  )
  if isinstance(texts, (str, bytes)):
    raise UserError(f'texts={texts[:40]!r} is a single text: put it into a list')
  num_texts = len(texts) if num_texts is None else num_texts
  if not 1 <= len(texts) <= num_texts:
    raise UserError(f'{len(texts)} texts: pass from 1 to {max(1, num_texts)}')
  ids_CL = np.full((num_texts, num_bytes), PAD, np.int32)
  for row_L, text in zip(ids_CL, texts):
    data = _utf8(text)
    if len(data) > num_bytes:
      raise UserError(
        f'the text {text[:40]!r}... has {len(data)} bytes in UTF-8, the model reads at most '
        f'{num_bytes}: shorten it'
      )
    row_L[: len(data)] = np.frombuffer(data, np.uint8)
  return ids_CL


def _utf8(text: Any) -> bytes:
  if not isinstance(text, str):
    raise UserError(f'the text {text!r:.60} is of type {type(text).__name__}: pass a string')
  if not text.strip():
    raise UserError(f'the text {text[:40]!r} is blank: pass one with words')
  try:
    return text.encode('utf-8')
  except UnicodeEncodeError as error:
    raise UserError(
      f'the text {text[:40]!r} is not Unicode ({error.reason}): correct it'
    ) from error

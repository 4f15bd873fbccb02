"""Encodes texts as their UTF-8 bytes, the input of MuLan's text tower."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from audiolm_jax import checks
from audiolm_jax.errors import UserError
from audiolm_jax.tokens import PAD


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
  rows = utf8(texts)
  num_texts = len(rows) if num_texts is None else num_texts
  if len(rows) > num_texts:
    raise UserError(f'{len(rows)} texts: there is room for num_texts={num_texts}, pass fewer')
  ids_CL = np.full((num_texts, num_bytes), PAD, np.int32)
  for row_L, data, text in zip(ids_CL, rows, texts):
    if len(data) > num_bytes:
      raise UserError(
        f'the text {text[:40]!r}... has {len(data)} bytes in UTF-8, the model reads at most '
        f'{num_bytes}: shorten it'
      )
    row_L[: len(data)] = np.frombuffer(data, np.uint8)
  return ids_CL


def utf8(texts: Sequence[Any]) -> list[bytes]:
  """Returns the UTF-8 bytes of each text.

  Raises:
    UserError: if there are no texts, or one is no string, blank, or no Unicode (lone surrogates).
  """
  if isinstance(texts, (str, bytes)):
    raise UserError(f'texts={texts[:40]!r} is a single text: put it into a list')
  if not len(texts):
    raise UserError('no texts: give at least one')
  return [_utf8(text) for text in texts]


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


def words(texts: Iterable[str]) -> set[str]:
  """Returns the words of texts, in lower case: runs of a to z and digits, and single other letters.

  Scripts without spaces have no words to compare, their letters they have.

  Args:
    texts: any number of texts.
  """
  return {word for text in texts for word in re.findall(r'[a-z0-9]+|[^\W_]', text.lower())}


def decode(ids_CL: Int[np.ndarray, 'C L']) -> list[str]:
  """Returns the texts that `encode` encoded, without missing ones."""
  rows = [row_L[row_L != PAD] for row_L in np.asarray(ids_CL)]
  return [row_N.astype(np.uint8).tobytes().decode('utf-8') for row_N in rows if len(row_N)]

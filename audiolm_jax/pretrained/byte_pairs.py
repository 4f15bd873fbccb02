"""Tokenizes texts by byte pair encoding, as GPT-2 and RoBERTa.

Source: Sennrich et al., 2016; Radford et al., 2019. A text is split into words, a word into UTF-8
bytes, each represented by a visible character, and neighbours are merged in the order of
`merges.txt`. No part of a text becomes a special token: `<s>` in a text is three characters.
"""

import functools
import pathlib
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import tensors

FILES = VOCABULARY, MERGES = ('vocab.json', 'merges.txt')
FIRST, PADDING, LAST = '<s>', '<pad>', '</s>'
MAX_MERGES_BYTES = 2**23  # RoBERTa's file has half a megabyte
MAX_CHARACTERS = 2**13  # per text: merging takes time quadratic in the word length
SUFFIXES = re.compile("'(?:s|t|re|ve|m|ll|d)")
# Matches kinds of characters (see `_kind`); a space belongs to the word after it.
WORDS = re.compile(r' ?L+| ?N+| ?O+|[ S]+(?![LNO])|[ S]+')


class BytePairs(NamedTuple):
  """Holds a vocabulary: ids by token, and ranks by merged pair (lowest first)."""

  ids: dict[str, int]
  ranks: dict[tuple[str, str], int]


@functools.cache
def _visible() -> tuple[str, ...]:
  """Returns the character of each byte: itself if visible in Latin-1, else one from 256 on."""
  shown = [
    *range(ord('!'), ord('~') + 1),
    *range(ord('¡'), ord('¬') + 1),
    *range(ord('®'), ord('ÿ') + 1),
  ]
  others = [byte for byte in range(256) if byte not in shown]
  return tuple(chr(byte) if byte in shown else chr(256 + others.index(byte)) for byte in range(256))


def load(folder: pathlib.Path, vocab_size: int, padding: int) -> BytePairs:
  """Loads the vocabulary in `folder`.

  Raises:
    UserError: if a file is missing or damaged, the three special tokens or a byte are missing, ids
      exceed `vocab_size`, or the id of padding is not `padding`.
  """
  folder = pathlib.Path(folder)
  ids = tensors.read_json(folder / VOCABULARY)
  bad = [
    token
    for token, number in ids.items()
    if type(number) is not int or not 0 <= number < vocab_size
  ]
  if bad:
    number = str(ids[bad[0]])[:80]
    raise UserError(
      f'{folder / VOCABULARY}: {bad[0]!r} has the id {number}; the model has {vocab_size:,}'
    )
  if missing := [token for token in (FIRST, PADDING, LAST, *_visible()) if token not in ids]:
    raise UserError(
      f'{folder / VOCABULARY} lacks {missing[:5]}: this is no vocabulary of byte pairs like '
      "RoBERTa's"
    )
  if ids[PADDING] != padding:
    raise UserError(
      f'{folder / VOCABULARY}: {PADDING} has the id {ids[PADDING]}, in the model {padding}'
    )
  ranks = {}
  for line in _lines(folder / MERGES):
    pair = tuple(line.split(' '))
    if len(pair) != 2 or ''.join(pair) not in ids:
      raise UserError(
        f'{folder / MERGES}: {line[:80]!r} joins no two tokens to one of {VOCABULARY}: fetch both '
        'again'
      )
    ranks.setdefault(pair, len(ranks))
  return BytePairs(ids, ranks)


def _lines(path: pathlib.Path) -> list[str]:
  try:
    with path.open('rb') as file:
      data = file.read(MAX_MERGES_BYTES + 1)
    text = data.decode()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f'{path} cannot be read: {error}; texts need {VOCABULARY} and {MERGES}'
    ) from error
  if len(data) > MAX_MERGES_BYTES:
    raise UserError(
      f'{path} has more than {MAX_MERGES_BYTES:,} bytes: this is no list of byte pairs'
    )
  first, *lines = text.split('\n')
  return [
    line.rstrip('\r')
    for line in ([] if first.startswith('#version') else [first]) + lines
    if line.strip()
  ]


def _kind(character: str) -> str:
  """Returns L for letters, N for numbers, S for white space and O for others; ' ' stays ' '."""
  if character == ' ':
    return ' '
  if character.isspace() and not '\x1c' <= character <= '\x1f':  # Unicode excludes these four
    return 'S'
  category = unicodedata.category(character)[0]
  return category if category in 'LN' else 'O'


def words(text: str) -> list[str]:
  """Splits a text into the parts that are tokenized separately; their concatenation is the text."""
  kinds, result, at = ''.join(map(_kind, text)), [], 0
  while at < len(text):
    match = SUFFIXES.match(text, at) or WORDS.match(kinds, at)
    result.append(text[at : match.end()])
    at = match.end()
  return result


def _join(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
  """Merges neighbours of the lowest rank repeatedly, until no pair has a rank."""
  while len(symbols) > 1:
    pair = min(zip(symbols, symbols[1:]), key=lambda pair: ranks.get(pair, len(ranks)))
    if pair not in ranks:
      break
    joined, at = [], 0
    while at < len(symbols):
      size = 2 if tuple(symbols[at : at + 2]) == pair else 1
      joined.append(''.join(symbols[at : at + size]))
      at += size
    symbols = joined
  return symbols


def encode(pairs: BytePairs, text: str) -> list[int]:
  """Returns the ids of a text between the start and end tokens."""
  parts = [_join([_visible()[byte] for byte in word.encode()], pairs.ranks) for word in words(text)]
  return [pairs.ids[token] for token in (FIRST, *(token for part in parts for token in part), LAST)]


def encode_all(
  pairs: BytePairs, texts: Sequence[str], max_tokens: int, multiple: int = 1
) -> np.ndarray:
  """Returns the ids of texts, int32 [B, L], padded to the longest and to a `multiple`.

  Raises:
    UserError: if there is no text, or a text has more than `max_tokens` or MAX_CHARACTERS.
  """
  if not texts:
    raise UserError('no texts: give at least one')
  for text in texts:
    if len(text) > MAX_CHARACTERS:
      raise UserError(
        f'{text[:40]!r}... has {len(text):,} characters, more than {MAX_CHARACTERS:,}: shorten the '
        'text'
      )
  rows = [encode(pairs, text) for text in texts]
  longest = max(rows, key=len)
  if len(longest) > max_tokens:
    text = texts[rows.index(longest)]
    raise UserError(
      f'{text[:40]!r}... makes {len(longest)} tokens, the model reads {max_tokens}: shorten the '
      'text'
    )
  length = min(max_tokens, -(-len(longest) // multiple) * multiple)
  return np.array([row + [pairs.ids[PADDING]] * (length - len(row)) for row in rows], np.int32)

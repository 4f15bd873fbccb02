"""Texts to token ids without the original: by hand, and what is refused. See
test_clap_oracle.py.
"""

import json

import numpy as np
import pytest

from audiolm_jax.pretrained import byte_pairs
from tests.pretrained import vocabulary

SIZE = 400


@pytest.fixture
def folder(tmp_path):
  return vocabulary.write(tmp_path / 'clap')


@pytest.fixture
def pairs(folder):
  return byte_pairs.load(folder, SIZE, padding=1)


@pytest.mark.parametrize(
  'text, expected',
  [
    ("the singer's 80s  hit", ['the', ' singer', "'s", ' 80', 's', ' ', ' hit']),
    ("don't we'll CAN'T", ['don', "'t", ' we', "'ll", ' CAN', "'", 'T']),
    ('a\n\n b\t', ['a', '\n\n', ' b', '\t']),
    ('x²y ½ _z !!ok', ['x', '²', 'y', ' ½', ' _', 'z', ' !!', 'ok']),
    ('  ', ['  ']),
    ('', []),
  ],
)
def test_words(text, expected):
  assert byte_pairs.words(text) == expected


def test_joins_are_made_in_their_order_wherever_they_are():
  ranks = {('a', 'b'): 0, ('b', 'c'): 1, ('ab', 'c'): 2, ('c', 'ab'): 3}
  assert byte_pairs._join(list('abcab'), ranks) == ['abc', 'ab']
  assert byte_pairs._join(list('bcbc'), ranks) == ['bc', 'bc']
  assert byte_pairs._join(list('ccabxab'), ranks) == ['c', 'cab', 'x', 'ab']
  assert byte_pairs._join(['a'], ranks) == ['a'] and byte_pairs._join([], ranks) == []


def test_the_bytes_are_those_of_the_text(pairs):
  token_of = {number: token for token, number in pairs.ids.items()}
  byte_of = {character: byte for byte, character in enumerate(byte_pairs._visible())}
  for text in ("calm piano of the 1980s, 'round 音楽\n", '<s> is no token', 'é\x00\x7f\xad 🎸'):
    first, *inner, last = byte_pairs.encode(pairs, text)
    assert (first, last) == (pairs.ids['<s>'], pairs.ids['</s>'])
    joined = ''.join(token_of[number] for number in inner)
    assert bytes(byte_of[character] for character in joined).decode() == text
    assert not {first, last, pairs.ids['<pad>']} & set(inner)
  inner = [token_of[number] for number in byte_pairs.encode(pairs, 'calm guitar of theer')[1:-1]]
  assert inner == ['calm', 'Ġguitar', 'Ġof', 'Ġthe', 'er']


def test_texts_are_filled_up(pairs):
  got = byte_pairs.encode_all(pairs, ['calm', '', 'calm guitar'], max_tokens=20, multiple=8)
  assert got.shape == (3, 8) and got.dtype == np.int32
  for row, text in zip(got, ('calm', '', 'calm guitar')):
    ids = byte_pairs.encode(pairs, text)
    np.testing.assert_array_equal(row, ids + [1] * (8 - len(ids)))
  assert byte_pairs.encode_all(pairs, ['x' * 18], max_tokens=20, multiple=16).shape == (1, 20)
  with pytest.raises(ValueError, match="'xxx.*makes 21 tokens, the model reads 20"):
    byte_pairs.encode_all(pairs, ['calm', 'x' * 19], max_tokens=20)
  with pytest.raises(ValueError, match='has 8,193 characters, more than 8,192'):
    byte_pairs.encode_all(pairs, ['calm', 'x' * 8193], max_tokens=20)
  with pytest.raises(ValueError, match='no texts'):
    byte_pairs.encode_all(pairs, [], max_tokens=20)


def test_bad_files_are_refused(folder):
  ids = json.loads((folder / 'vocab.json').read_text())
  without = lambda *tokens: {token: number for token, number in ids.items() if token not in tokens}
  cases = [
    (without('<pad>'), "lacks \\['<pad>'\\]"),
    (without('a', 'Ġ'), "lacks \\['Ġ', 'a'\\]|lacks \\['a', 'Ġ'\\]"),
    (ids | {'a': SIZE}, f"'a' has the id {SIZE}; the model has {SIZE}"),
    (ids | {'a': 'one'}, "'a' has the id one"),
    (ids | {'a': True}, "'a' has the id True"),
    (ids | {'<pad>': 0}, '<pad> has the id 0, in the model 1'),
    (without('Ġof'), "'Ġo f' joins no two tokens"),
  ]
  for data, message in cases:
    (folder / 'vocab.json').write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
      byte_pairs.load(folder, SIZE, padding=1)
  (folder / 'vocab.json').write_text(json.dumps(ids))
  for content, message in (
    (b'a b c\n', 'joins no two'),
    (b'\xff\xfe', 'merges.txt cannot be read'),
    (b'\n' * (byte_pairs.MAX_MERGES_BYTES + 1), 'more than'),
  ):
    (folder / 'merges.txt').write_bytes(content)
    with pytest.raises(ValueError, match=message):
      byte_pairs.load(folder, SIZE, padding=1)
  (folder / 'merges.txt').unlink()
  with pytest.raises(ValueError, match='merges.txt cannot be read.*texts need'):
    byte_pairs.load(folder, SIZE, padding=1)

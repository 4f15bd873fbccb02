"""Texts: what they name, and words that no training text has."""

import functools
import itertools
import re

import numpy as np

from audiolm_jax.data import descriptions, music
from audiolm_jax.data.arrangements import ATTRIBUTES


@functools.cache
def all_texts(unseen):
  found = []
  for seed, values in enumerate(itertools.product(*ATTRIBUTES.values())):
    attributes = dict(zip(ATTRIBUTES, values))
    random = np.random.default_rng(seed)
    texts = descriptions.describe(attributes, 4, random, unseen=unseen)
    found.append((attributes, texts))
  return found


def test_the_first_text_names_all_attributes_and_each_the_instrument():
  for attributes, texts in all_texts(unseen=False):
    for name, value in attributes.items():
      assert any(word in texts[0] for word in descriptions.WORDS[name][value]), (texts[0], name)
      others = [
        word for v, words in descriptions.WORDS[name].items() if v != value for word in words
      ]
      for text in texts:
        assert not any(re.search(rf'\b{word}\b', text) for word in others), (text, name)
    assert all(attributes['instrument'] in text for text in texts)
    assert len(set(texts)) > 1


def test_unseen_texts_use_words_that_no_other_text_has():
  words = lambda texts: {word for text in texts for word in re.findall(r'[\w-]+', text.lower())}
  seen = words(text for _, texts in all_texts(unseen=False) for text in texts)
  for values in descriptions.UNSEEN.values():
    for value, phrase in values.items():
      assert not words([phrase]) <= seen, (value, phrase)
  for attributes, texts in all_texts(unseen=True):
    assert all(descriptions.UNSEEN['instrument'][attributes['instrument']] in t for t in texts)
    assert not any(re.search(rf'\b{attributes["mode"]}\b', text) for text in texts)


def test_the_longest_text_is_as_long_as_stated():
  longest = max(
    len(text.encode())
    for unseen in (False, True)
    for _, texts in all_texts(unseen)
    for text in texts
  )
  assert descriptions.LONGEST - 8 < longest <= descriptions.LONGEST <= music.Config().text_bytes
  # The longest template and words: a recording of, instrument, colon, four words, and a texture.
  assert descriptions.LONGEST == len(
    'a recording of choir of voices: bright, forceful, unhurried, cheerful with a harmonized melody'
  )

"""A vocabulary of byte pairs in the publisher's form: the bytes, and joins of a few words and of
bytes of others.
"""

import json

from audiolm_jax.pretrained import byte_pairs

WORDS = (' the', ' of', ' guitar', 'calm', ' piano', 'er', ' 1980', ' é', "'s", '音', ' --')


def write(folder, words=WORDS):
  """Writes vocab.json and merges.txt; each word is joined from the left."""
  shown = byte_pairs._visible()
  ids = {token: number for number, token in enumerate(('<s>', '<pad>', '</s>', '<unk>', *shown))}
  merges = []
  for word in words:
    symbols = [shown[byte] for byte in word.encode()]
    for end in range(1, len(symbols)):
      pair = (''.join(symbols[:end]), symbols[end])
      if ''.join(pair) not in ids:
        ids[''.join(pair)] = len(ids)
        merges.append(' '.join(pair))
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'vocab.json').write_text(json.dumps(ids))
  (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges, '']))
  return folder

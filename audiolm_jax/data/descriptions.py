"""Describes clips of `data.music` in words: several texts per clip, with synonyms."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from audiolm_jax.data.arrangements import ATTRIBUTES

# Words of each value. Texts of `describe` use WORDS, those with `unseen=True` UNSEEN, which contain
# a word that no other text has.
WORDS = MappingProxyType(
  {
    'instrument': {
      'piano': ('piano', 'grand piano'),
      'harp': ('harp', 'plucked harp'),
      'choir': ('choir', 'choir of voices'),
      'flute': ('flute', 'wooden flute'),
      'cello': ('cello', 'bowed cello'),
      'sitar': ('sitar', 'Indian sitar'),
    },
    'register': {'low': ('low', 'deep'), 'high': ('high', 'bright')},
    'dynamics': {'soft': ('soft', 'quiet'), 'loud': ('loud', 'forceful')},
    'texture': {
      'line': ('single notes', 'a plain melody'),
      'chords': ('chords', 'a harmonized melody'),
    },
    'tempo': {
      'slow': ('slow', 'unhurried'),
      'medium': ('moderate', 'walking'),
      'fast': ('fast', 'quick'),
    },
    'mode': {'minor': ('minor', 'sad'), 'major': ('major', 'cheerful')},
  }
)
UNSEEN = MappingProxyType(
  {
    'instrument': {
      'piano': 'pianoforte',
      'harp': 'harpist',
      'choir': 'choral singing',
      'flute': 'flutist',
      'cello': 'violoncello',
      'sitar': 'sitarist',
    },
    'register': {'low': 'bass', 'high': 'treble'},
    'dynamics': {'soft': 'gentle', 'loud': 'powerful'},
    'texture': {'line': 'a lone tune', 'chords': 'chordal playing'},
    'tempo': {'slow': 'leisurely', 'medium': 'mid-tempo', 'fast': 'rapid'},
    'mode': {'minor': 'melancholy', 'major': 'happy'},
  }
)
LONGEST = 94  # bytes of a text
_TEMPLATES = (
  '{adjectives} {instrument} music{texture}',
  'a recording of {instrument}: {adjectives}{texture}',
  '{adjectives} piece for {instrument}{texture}',
  '{instrument}, {adjectives}{texture}',
)


def describe(
  attributes: Mapping[str, str],
  num_texts: int,
  random: np.random.Generator,
  *,
  unseen: bool = False,
) -> list[str]:
  """Returns texts about a clip.

  The first names all attributes, the others the instrument and at least one more.

  Args:
    attributes: value of each attribute (`arrangements.ATTRIBUTES`).
    num_texts: number of texts.
    random: draws words, their order and attributes.
    unseen: whether to use UNSEEN, which no training text uses.
  """
  others = [name for name in ATTRIBUTES if name != 'instrument']
  texts = []
  for number in range(num_texts):
    count = len(others) if number == 0 else int(random.integers(1, len(others) + 1))
    named = [others[i] for i in random.permutation(len(others))[:count]]
    words = {name: _word(name, attributes[name], random, unseen) for name in ('instrument', *named)}
    adjectives = [words[name] for name in named if name != 'texture'] or ['simple']
    template = _TEMPLATES[random.integers(len(_TEMPLATES))]
    texts.append(
      template.format(
        adjectives=', '.join(adjectives),
        instrument=words['instrument'],
        texture=f' with {words["texture"]}' if 'texture' in words else '',
      )
    )
  return texts


def _word(name: str, value: str, random: np.random.Generator, unseen: bool) -> str:
  if unseen:
    return UNSEEN[name][value]
  words = WORDS[name][value]
  return words[random.integers(len(words))]

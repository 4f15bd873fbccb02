"""Synthesizes a benchmark like ZeroSpeech 2021, in its layout and with known ground truth.

  phonetic   syllables that differ in one phone (pit, bit, pat, ...), spoken twice by each voice,
             with known phones and times
  lexical    words of the corpus' vocabulary against nonwords that differ in one phone
  syntactic  sentences of the corpus' grammar (counting and templates) against the same words in a
             wrong order

Voices and texts are from the test split of `synthesized.Config`; its training split contains only
the single words.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
import soxr

from audiolm_jax import audio, checks
from audiolm_jax.data import synthesized, zerospeech

SUBSET = 'twin'
# Increment if the audio of a config changes, to invalidate folders of older versions.
_FORMAT = 1

_ONSETS = ('p', 'b', 't', 'd', 's', 'm')
_RHYMES = ('it', 'at', 'eet', 'oat', 'en', 'an')
_EDGE = 0.04  # seconds of an adjacent pause that belong to an item

_WORDS = (
  ('zero', 'vero'),
  ('one', 'wum'),
  ('two', 'thoo'),
  ('three', 'shree'),
  ('four', 'thore'),
  ('five', 'fithe'),
  ('six', 'thix'),
  ('seven', 'sezzen'),
  ('eight', 'aith'),
  ('nine', 'nithe'),
  ('sailor', 'zailor'),
  ('sister', 'zister'),
  ('small', 'smool'),
  ('teacher', 'teesher'),
  ('neighbour', 'neighdour'),
  ('young', 'yug'),
  ('king', 'keng'),
  ('black', 'blick'),
  ('farmer', 'farver'),
  ('brother', 'bruzzer'),
  ('doctor', 'doptor'),
  ('found', 'vound'),
  ('followed', 'fossowed'),
  ('remembered', 'remempered'),
  ('watched', 'woshed'),
  ('bought', 'bawth'),
  ('dropped', 'droffed'),
  ('heavy', 'hezzy'),
  ('letter', 'lecker'),
  ('green', 'greeb'),
  ('boat', 'boath'),
  ('silver', 'silner'),
  ('river', 'rizzer'),
  ('garden', 'garzen'),
  ('bridge', 'brizz'),
  ('fresh', 'fref'),
  ('morning', 'morling'),
  ('golden', 'goalzen'),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """Configures the amount of speech.

  The first `num_voices` test voices speak words and phrases; all test voices speak the syllables.
  """

  num_voices: int = 4
  num_words: int = len(_WORDS)  # pairs
  num_phrases: int = 12  # pairs of each type

  def __post_init__(self):
    checks.fields(
      self,
      num_voices=checks.WHOLE,
      num_words=checks.whole(1, len(_WORDS)),
      num_phrases=checks.WHOLE,
    )


def folder(
  config: synthesized.Config, cache_dir: str | os.PathLike, sizes: Sizes = Sizes()
) -> pathlib.Path:
  """Returns the benchmark's folder below `cache_dir`; the first call synthesizes it.

  Raises:
    UserError: if espeakng-loader is missing.
  """
  key = json.dumps([_FORMAT, dataclasses.asdict(config), dataclasses.asdict(sizes)], sort_keys=True)
  root = pathlib.Path(cache_dir) / f'benchmark-{hashlib.sha256(key.encode()).hexdigest()[:16]}'
  if not root.is_dir():
    os.makedirs(cache_dir, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix='benchmark-', suffix='.tmp') as partial:
      write(config, pathlib.Path(partial) / 'whole', sizes)
      try:
        os.rename(pathlib.Path(partial) / 'whole', root)
      except OSError:  # another process wrote it first
        if not root.is_dir():
          raise
  return root


def write(config: synthesized.Config, root: pathlib.Path, sizes: Sizes = Sizes()):
  """Synthesizes the benchmark into `root`, with the subset 'twin'."""
  voices = synthesized.voices(config)[config.num_train_voices :]
  speaking = voices[: sizes.num_voices]
  syllables, words = _syllables(config, voices), list(_lexical(config, speaking, sizes.num_words))
  phrases = list(_syntactic(config, speaking, sizes.num_phrases))
  wanted = [*syllables, *(request for request, _ in words), *(request for request, _ in phrases)]
  spoken = synthesized.speak(wanted)
  folders = {task: root / task / SUBSET for task in ('phonetic', 'lexical', 'syntactic')}
  for path in folders.values():
    path.mkdir(parents=True)
  items = []
  for request, (header, wave_T) in zip(wanted, spoken, strict=True):
    wave_T = soxr.resample(wave_T.astype(np.float32) / 32768, header['rate'], config.sample_rate)
    audio.save(
      folders[request['task']] / f'{request["file"]}.wav',
      synthesized.level(wave_T),
      config.sample_rate,
    )
    if request['task'] == 'phonetic':
      items += _items(request, header)
  zerospeech.write_items(folders['phonetic'] / f'{SUBSET}.item', items)
  for task, columns, rows in (
    ('lexical', zerospeech.LEXICAL_COLUMNS, words),
    ('syntactic', zerospeech.SYNTACTIC_COLUMNS, phrases),
  ):
    zerospeech.write_gold(folders[task] / 'gold.csv', columns, [row for _, row in rows])


def _request(
  voice: synthesized.Voice, number: int, task: str, file: str, text: str, gap: int
) -> dict:
  return {
    'task': task,
    'file': file,
    'speaker': f'voice{number}',
    'text': text,
    'gap': gap,
    'seed': 1,
    'voice': voice.name,
    'pitch': voice.pitch,
    'rate': voice.rate,
  }


def _syllables(config: synthesized.Config, voices: list[synthesized.Voice]) -> list[dict]:
  """Returns requests for all syllables, twice per voice in different orders.

  Each order is divided into two recordings of about 8 s.
  """
  random = np.random.default_rng([config.seed, 5])
  syllables = [onset + rhyme for onset in _ONSETS for rhyme in _RHYMES]
  made = []
  for n, voice in enumerate(voices):
    takes = [half for _ in range(2) for half in np.split(random.permutation(syllables), 2)]
    made += [
      _request(voice, n, 'phonetic', f'voice{n}-{take}', ' '.join(said), gap=8)
      for take, said in enumerate(takes)
    ]
  return made


def _items(request: dict, header: dict) -> Iterator[zerospeech.Item]:
  """Yields each phone with its neighbours; of a neighbouring pause, at most _EDGE is included."""
  phones = [(0.0, '_')]  # espeak-ng omits the initial pause of an utterance
  phones += [
    (sample / header['rate'], synthesized.plain_phone(name)) for sample, name in header['phones']
  ]
  times = [time for time, _ in phones] + [header['num_samples'] / header['rate']]
  for n in range(1, len(phones) - 1):
    (before, phone, after) = (name for _, name in phones[n - 1 : n + 2])
    if phone == '_':
      continue
    onset, offset = times[n - 1], times[n + 2]
    onset = max(onset, times[n] - _EDGE) if before == '_' else onset
    offset = min(offset, times[n + 1] + _EDGE) if after == '_' else offset
    yield zerospeech.Item(
      request['file'], round(onset, 4), round(offset, 4), phone, before, after, request['speaker']
    )


def _lexical(config, voices, num_words: int) -> Iterator[tuple[dict, dict]]:
  """Yields requests and their rows of gold.csv; frequencies are counts in the training split."""
  heard = collections.Counter(
    word
    for request in synthesized.requests(config, 'train')
    for word in request['text'].replace('.', '').split()
  )
  for n, voice in enumerate(voices):
    for pair, texts in enumerate(_WORDS[:num_words]):
      for correct, text in zip((1, 0), texts, strict=True):
        file = f'word{pair}-{"right" if correct else "wrong"}-voice{n}'
        row = dict(
          filename=file, id=pair, voice=f'voice{n}', word=text, length=len(text), correct=correct
        )
        yield (
          _request(voice, n, 'lexical', file, text, gap=8),
          row | ({'frequency': heard[text]} if correct else {}),
        )


def _syntactic(config, voices, num_phrases: int) -> Iterator[tuple[dict, dict]]:
  """Yields requests and their rows of gold.csv; all voices speak the same phrases."""
  random = np.random.default_rng([config.seed, 6])
  pairs = []
  for pair in range(num_phrases):
    counting = synthesized.counting_text(random, config, 'test', 6)
    pairs.append(
      (
        pair,
        'counting',
        counting,
        ' '.join(_out_of_step(random, counting.split(), config.highest_number + 1)),
      )
    )
    sentence = synthesized.sentences_text(random, 'test', 1).removesuffix('.')
    pairs.append((pair, 'sentence', sentence, ' '.join(_disordered(random, sentence.split()))))
  for n, voice in enumerate(voices):
    for pair, kind, *texts in pairs:
      for correct, text in zip((1, 0), texts, strict=True):
        file = f'{kind}{pair}-{"right" if correct else "wrong"}-voice{n}'
        row = dict(
          filename=file,
          id=pair,
          voice=f'voice{n}',
          type=kind,
          subtype=kind,
          transcription=text,
          correct=correct,
        )
        yield _request(voice, n, 'syntactic', file, text, gap=8 if kind == 'counting' else 1), row


def _out_of_step(random: np.random.Generator, words: list[str], period: int) -> list[str]:
  """Returns the numbers in an order where no two neighbours are consecutive."""
  numbers = [synthesized.NUMBERS.index(word) for word in words]
  while any(
    (after - before) % period in (1, period - 1) for before, after in zip(numbers, numbers[1:])
  ):
    numbers = [int(number) for number in random.permutation(numbers)]
  return [synthesized.NUMBERS[number] for number in numbers]


def _disordered(random: np.random.Generator, words: list[str]) -> list[str]:
  """Returns the words in an order without any of their adjacent pairs."""
  neighbours = set(zip(words, words[1:]))
  mixed = words
  while neighbours & set(zip(mixed, mixed[1:])):
    mixed = [str(word) for word in random.permutation(words)]
  return mixed

"""Synthesizes a corpus of counting and short sentences, with known phones and words.

Nothing is downloaded: espeak-ng (the extra `synth`, GPL-3, loaded at run time) speaks the texts.
Utterances are bitwise reproducible. The splits 'train' and 'test' share neither voices nor texts:

  counting (about 60 %): 'seven eight nine ...', up or down, wrapping around after `highest_number`.
    A recognizer of few words can check this structure. Pairs of start and step are in one split.
  sentences: from a template grammar. The checksum of a sentence decides its split.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import soxr

from audiolm_jax import checks, files
from audiolm_jax.data import espeak
from audiolm_jax.data.example import Example
from audiolm_jax.errors import UserError, install

PHONE_RATE = 25.0  # phone labels per second, the rate of semantic tokens
# Increment if the audio of a config changes, to invalidate caches of older versions.
_FORMAT = 1

_ACCENTS = (
  'en-us',
  'en-gb-scotland',
  'en-gb-x-rp',
  'en-029',
  'en-gb-x-gbclan',
  'en-us-nyc',
  'en-gb-x-gbcwmd',
  'en',
)
_VARIANTS = ('m1', 'f2', 'm3', 'f4', 'm5', 'f5', 'm7', 'f1', 'm2', 'f3', 'm4', 'm8', 'm6')

NUMBERS = (
  'zero',
  'one',
  'two',
  'three',
  'four',
  'five',
  'six',
  'seven',
  'eight',
  'nine',
  'ten',
  'eleven',
  'twelve',
  'thirteen',
  'fourteen',
  'fifteen',
  'sixteen',
  'seventeen',
  'eighteen',
  'nineteen',
  'twenty',
)

_SUBJECTS = (
  'the old sailor',
  'my sister',
  'a small dog',
  'the teacher',
  'our neighbour',
  'the young king',
  'a black cat',
  'the farmer',
  'her brother',
  'the quiet doctor',
)
_VERBS = (
  'found',
  'carried',
  'painted',
  'followed',
  'remembered',
  'wanted',
  'watched',
  'lost',
  'bought',
  'dropped',
)
_OBJECTS = (
  'a golden ring',
  'the heavy box',
  'a letter',
  'the green boat',
  'three apples',
  'the wooden door',
  'a long rope',
  'some fresh bread',
  'the broken clock',
  'a silver key',
)
# Without 'in the', 'on the' and 'of the': espeak-ng speaks each as one word and reports no start of
# 'the'.
_PLACES = (
  'near the river',
  'behind the garden',
  'after the rain',
  'over the hill',
  'before dinner',
  'under the bridge',
  'at the market',
  'one morning',
)

# espeak-ng's phone names without stress marks, for all accents and words above; '_' is a pause, '?'
# stands for other phones.
PHONES = tuple(
  '_ ? 0 3 3: @ @2 @L A@ D E I I# I2 IR N O2 O: O@ S T U V a a# aI aI2 aI@ aU aa b d dZ eI f g h '
  'i i: i@ i@3 j k l m n o@ oU p r s t t# tS t[ u: v w z'.split()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Configures the corpus.

  Raises:
    UserError: if a field is illegal.
  """

  num_train_voices: int = 32
  num_test_voices: int = 8  # not in the training split
  train_minutes: float = 30.0
  test_minutes: float = 4.0
  utterance_seconds: float = 10.0  # approximate, within about 20 %
  counting_share: float = 0.6
  highest_number: int = 20  # counting wraps around after it
  steps: tuple[int, ...] = (1, -1)
  sample_rate: int = 16_000  # Hz
  seed: int = 0

  def __post_init__(self):
    step = checks.whole(-checks.LARGEST)
    checks.fields(
      self,
      num_train_voices=checks.WHOLE,
      num_test_voices=checks.WHOLE,
      train_minutes=checks.POSITIVE,
      test_minutes=checks.POSITIVE,
      utterance_seconds=checks.CLIP_SECONDS,
      counting_share=checks.SHARE,
      highest_number=checks.whole(1, len(NUMBERS) - 1),
      steps=checks.each(step),
      sample_rate=checks.WHOLE,
      seed=checks.SEED,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voice:
  """Describes one speaker by espeak-ng's parameters (pitch 0 to 99, rate in words per minute)."""

  name: str
  pitch: int
  rate: int


def voices(config: Config) -> list[Voice]:
  """Returns the training voices, then the test voices; no two share both variant and pitch."""
  total = config.num_train_voices + config.num_test_voices
  num_pitches = -(-total // len(_VARIANTS))
  if num_pitches > 20:
    raise UserError(f'{total} voices requested; more than {20 * len(_VARIANTS)} would sound alike')
  pitches = np.linspace(10, 90, num_pitches).round().astype(int) if num_pitches > 1 else [50]
  pairs = [(variant, int(pitch)) for pitch in pitches for variant in _VARIANTS]
  random = np.random.default_rng([config.seed, 1])
  made = []
  for i, pair in enumerate(random.permutation(len(pairs))[:total]):
    variant, pitch = pairs[pair]
    rate = int(random.integers(140, 196))
    made.append(Voice(name=f'{_ACCENTS[i % len(_ACCENTS)]}+{variant}', pitch=pitch, rate=rate))
  return made


def counting_text(random: np.random.Generator, config: Config, split: str, num_words: int) -> str:
  """Returns `num_words` numbers, counted with a random start and step of the split."""
  period = config.highest_number + 1
  keys = [(start, step) for start in range(period) for step in config.steps]
  order = np.random.default_rng([config.seed, 2]).permutation(len(keys))
  num_test = max(1, len(keys) // 5)
  allowed = order[:num_test] if split == 'test' else order[num_test:]
  start, step = keys[random.choice(allowed)]
  return ' '.join(NUMBERS[(start + step * i) % period] for i in range(num_words))


def sentences_text(random: np.random.Generator, split: str, num_words: int) -> str:
  """Returns sentences of the split with at least `num_words` words in total."""
  said = []
  while sum(len(sentence.split()) for sentence in said) < num_words:
    sentence = ' '.join(
      words[random.integers(len(words))] for words in (_SUBJECTS, _VERBS, _OBJECTS, _PLACES)
    )
    if (zlib.crc32(sentence.encode()) % 5 == 0) == (split == 'test'):
      said.append(sentence)
  return '. '.join(said) + '.'


def requests(config: Config, split: str) -> list[dict]:
  """Returns a dict {speaker, kind, voice, pitch, rate, gap, seed, text} for each utterance.

  Speakers alternate. Test speakers are numbered after training speakers.
  """
  if split not in ('train', 'test'):
    raise UserError(f"split is {split!r}; there are 'train' and 'test'")
  minutes = config.train_minutes if split == 'train' else config.test_minutes
  first, count = (
    (0, config.num_train_voices)
    if split == 'train'
    else (config.num_train_voices, config.num_test_voices)
  )
  all_voices = voices(config)
  made = []
  for i in range(max(1, round(60 * minutes / config.utterance_seconds))):
    random = np.random.default_rng([config.seed, 3 if split == 'train' else 4, i])
    speaker = first + i % count
    voice = all_voices[speaker]
    # The share of counting is the same in each block of `count` utterances; over many blocks, each
    # speaker has both kinds.
    turn, place = divmod(i, count)
    counting = (place * 0.618034 + turn * 0.381966 + 0.5 / count) % 1.0 < config.counting_share
    # Measured seconds per word at 170 words per minute: 0.40 and a gap of 0.08 in counting, 0.34 in
    # sentences.
    if counting:
      text = counting_text(
        random,
        config,
        split,
        max(2, round(config.utterance_seconds / (0.40 * 170 / voice.rate + 0.08))),
      )
    else:
      text = sentences_text(
        random, split, max(2, round(config.utterance_seconds / (0.34 * 170 / voice.rate)))
      )
    made.append(
      {
        'speaker': speaker,
        'kind': 'counting' if counting else 'sentences',
        'voice': voice.name,
        'pitch': voice.pitch,
        'rate': voice.rate,
        'gap': 8 if counting else 1,  # pause between words, in 10 ms
        'seed': i + 1,
        'text': text,
      }
    )
  return made


class Examples:
  """Random access source of utterances (see `data.example`).

  Examples have 'waveform', 'speaker', 'phones', 'text', 'kind' and 'words'. The 'phones' are S =
  ceil(25 T / sample_rate) indices into `phone_names`.
  """

  phone_names = PHONES

  def __init__(self, sample_rate: int, utterances: list[dict], samples: np.ndarray):
    self.sample_rate = sample_rate
    self._utterances = utterances
    self._samples = samples  # int16, concatenated utterances
    self._ends = np.cumsum([utterance['num_samples'] for utterance in utterances])

  def __len__(self) -> int:
    return len(self._utterances)

  def inventory(self) -> list[str]:
    """Returns one line per utterance."""
    return [f'{u["text"]}\t{u["speaker"]}\t{u["num_samples"]}' for u in self._utterances]

  def __getitem__(self, i: int) -> Example:
    i = range(len(self))[i]
    utterance = self._utterances[i]
    num_samples = utterance['num_samples']
    wave_T = self._samples[self._ends[i] - num_samples : self._ends[i]].astype(np.float32) / 32768
    return {
      'waveform': wave_T,
      'speaker': np.int32(utterance['speaker']),
      'phones': _frame_phones(utterance['phones'], num_samples, self.sample_rate),
      'text': utterance['text'],
      'kind': utterance['kind'],
      'words': [tuple(word) for word in utterance['words']],
    }


def examples(
  config: Config,
  split: str,
  *,
  cache_dir: str | os.PathLike | None = None,
  num_workers: int | None = None,
) -> Examples:
  """Returns the utterances of a split, from `cache_dir` if an earlier call has written them.

  Args:
    config: config of the corpus.
    split: 'train' or 'test'.
    cache_dir: folder for the audio; None keeps no file.
    num_workers: number of processes that speak; None uses the number of cores.

  Raises:
    UserError: if the split is unknown, a cached file is damaged, or espeakng-loader is missing.
  """
  path = None
  if cache_dir is not None:
    key = json.dumps([_FORMAT, dataclasses.asdict(config)], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = os.path.join(os.path.abspath(cache_dir), f'synthesized-{split}-{digest}.npz')
    if os.path.exists(path):
      return _stored(path, config)
  utterances, waves = [], []
  for request, (header, wave_T) in zip(
    wanted := requests(config, split), speak(wanted, num_workers), strict=True
  ):
    wave_T = level(
      soxr.resample(wave_T.astype(np.float32) / 32768, header['rate'], config.sample_rate)
    )
    scale = config.sample_rate / header['rate']
    utterances.append(
      {
        'speaker': request['speaker'],
        'kind': request['kind'],
        'text': request['text'],
        'num_samples': len(wave_T),
        'phones': [[round(sample * scale), name] for sample, name in header['phones']],
        'words': _words(request['text'], header, scale, len(wave_T)),
      }
    )
    waves.append(np.round(wave_T * 32767).astype(np.int16))
  samples = np.concatenate(waves)
  if path is not None:
    _store(path, utterances, samples)
  return Examples(config.sample_rate, utterances, samples)


def speak(wanted: list[dict], num_workers: int | None = None) -> list[tuple[dict, np.ndarray]]:
  """Returns (header, int16 samples at header['rate']) of each request (see `data.espeak`).

  Raises:
    UserError: if espeakng-loader is missing.
    RuntimeError: if espeak-ng fails.
  """
  try:
    import espeakng_loader
  except ImportError as error:
    raise UserError(f'the synthesized corpus needs espeak-ng: {install("synth")}') from error
  # -I: the program must not import from this process's path.
  command = [sys.executable, '-I', espeak.__file__, str(espeakng_loader.get_library_path())]
  command.append(str(espeakng_loader.get_data_path()))

  def work(share: list[dict]) -> list[tuple[dict, np.ndarray]]:
    done = subprocess.run(
      command, input=json.dumps(share).encode(), capture_output=True, check=False
    )
    if done.returncode:
      raise RuntimeError(f'espeak-ng failed: {done.stderr.decode(errors="replace")[-500:]}')
    return _parse(done.stdout, len(share))

  num_workers = num_workers or min(
    len(wanted), len(os.sched_getaffinity(0)) if sys.platform == 'linux' else 2
  )
  spoken = [None] * len(wanted)
  with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
    for first, results in enumerate(
      pool.map(work, [wanted[i::num_workers] for i in range(num_workers)])
    ):
      spoken[first::num_workers] = results
  return spoken


def _parse(output: bytes, count: int) -> list[tuple[dict, np.ndarray]]:
  spoken, at = [], 0
  for _ in range(count):
    end = output.index(b'\n', at)
    header = json.loads(output[at:end])
    at = end + 1 + 2 * header['num_samples']
    spoken.append((header, np.frombuffer(output[end + 1 : at], np.int16)))
  return spoken


def level(wave_T: np.ndarray) -> np.ndarray:
  """Returns a waveform scaled to a root mean square of 0.08, or less to keep its peak at 0.95."""
  gain = min(0.08 / max(np.sqrt(np.mean(wave_T**2)), 1e-4), 0.95 / max(np.abs(wave_T).max(), 1e-4))
  return wave_T * np.float32(gain)


def plain_phone(name: str) -> str:
  """Returns a phone name without stress marks and pause lengths."""
  return '_' if name.startswith('_') else name.lstrip("',%=") or '_'


def _words(text: str, header: dict, scale: float, num_samples: int) -> list[list]:
  """Returns [[word, first sample, end sample]]; a word lasts until the next pause or word."""
  pauses = [sample for sample, name in header['phones'] if plain_phone(name) == '_'] + [
    header['num_samples']
  ]
  starts = header['words'] + [header['num_samples']]
  words = []
  for word, start, following in zip(
    text.replace('.', '').split(), header['words'], starts[1:], strict=True
  ):
    end = min(following, min(pause for pause in pauses if pause > start))
    words.append([word, round(start * scale), min(round(end * scale), num_samples)])
  return words


def _frame_phones(phones: list, num_samples: int, sample_rate: int) -> np.ndarray:
  hop = sample_rate / PHONE_RATE
  onsets = np.array([sample for sample, _ in phones])
  ids = np.array([0, *(_phone_ids().get(plain_phone(name), 1) for _, name in phones)], np.int32)
  centres_S = (np.arange(int(np.ceil(num_samples / hop))) + 0.5) * hop
  # Before the first onset, the index is 0, a pause.
  return ids[np.searchsorted(onsets, centres_S, side='right')]


@functools.cache
def _phone_ids() -> dict[str, int]:
  return {name: i for i, name in enumerate(PHONES)}


def _stored(path: str, config: Config) -> Examples:
  """Returns the split written by `_store`.

  Raises:
    UserError: if it is damaged.
  """
  torn = (OSError, EOFError, zipfile.BadZipFile, zlib.error)
  try:
    with np.load(path, allow_pickle=False) as stored:
      utterances = json.loads(stored['utterances'].tobytes())
      return Examples(config.sample_rate, utterances, stored['samples'])
  except (*torn, ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(f'{path} is damaged ({error!r}): delete it to synthesize it again') from error


def _store(path: str, utterances: list[dict], samples: np.ndarray):
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with files.atomically(path) as partial, open(partial, 'wb') as file:
    np.savez(
      file, utterances=np.frombuffer(json.dumps(utterances).encode(), np.uint8), samples=samples
    )

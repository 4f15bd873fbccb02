"""Which examples a stage learns from, and which are held out."""

import functools
import os
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from audiolm_jax import audio, kmeans
from audiolm_jax.data import inventory, skipped, synthesized_benchmark
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import speech
from audiolm_jax.tokens import Spec

from . import corpora, workspace
from .recipe import Recipe, SemanticTokens

# utterances are padded to a multiple of this (whole semantic frames): few compilations
BUCKET_SECONDS = 3.2
BATCH_SIZE = 8  # examples
# Process 0 clusters them, holding them twice: 32 GiB of 1024 features in float32.
MAX_SAMPLE_FRAMES = 2**22


class Sources(NamedTuple):
  training: Any
  held_out: Any
  fingerprints: dict[str, str]  # of the models that made the examples


def report_skipped(workdir: pathlib.Path):
  """Prints how many files of the corpus are left out, and where they are listed."""
  listing = corpora.listing(workdir / 'corpus')
  if jax.process_index() == 0 and (left_out := skipped.read(listing)):
    print(f'{len(left_out)} files are left out; they and the reasons: {listing}', file=sys.stderr)


def check_held_out(name: str, held_out: Any):
  """Raises ValueError where none of the held-out examples can be read: training would find out at
  its end.
  """
  first = lambda length: (0, min(1, length))
  read = (lambda i: held_out.crop(i, first)) if hasattr(held_out, 'crop') else held_out.__getitem__
  if not any(read(index) is not None for index in range(len(held_out))):
    raise UserError(
      f'stage {name}: none of its {len(held_out)} held-out examples can be read, by which '
      'training is judged: hold '
      'out more, as by --set corpus.held_out=0.1 or --set corpus.test_root=FOLDER, and make '
      'what was made of the '
      'corpus again'
    )


def check_tokens(name: str, model: Any, made: Spec):
  """Raises UserError where a stage's config is for other tokens than those that are `made`."""
  if wrong := model.spec.differences(made):
    raise UserError(
      f'{name} was made for other tokens: {"; ".join(wrong)}. Set them, as in --set {name}.model.FIELD=VALUE'
    )


def corpus(recipe: Recipe, split: str, workdir: pathlib.Path, sample_rate: int | None = None):
  """Returns the recipe's audio examples of a split, 'train' or 'test', at a model's rate (None: the
  corpus's own).
  """
  source = recipe.corpus.examples(split, workdir / 'corpus')
  return source if sample_rate in (None, source.sample_rate) else Resampled(source, sample_rate)


class Resampled:
  """A source whose waveforms, noises and times of words are brought to another rate when they are
  read.
  """

  def __init__(self, source, sample_rate: int):
    self._source, self.sample_rate = source, sample_rate

  def __len__(self) -> int:
    return len(self._source)

  def inventory(self) -> list[str]:
    """Returns the lines of the source: a rate changes no file."""
    return inventory.of(self._source)

  def __getitem__(self, index: int):
    example = self._source[index]
    if example is None:
      return None
    at_rate = lambda wave_T: audio.resample(
      wave_T[None], self._source.sample_rate, self.sample_rate
    )[0]
    sounds = {
      name: at_rate(np.asarray(example[name], np.float32))
      for name in ('waveform', 'noise')
      if name in example
    }
    if not len(sounds['waveform']):
      if hasattr(self._source, 'refuse'):
        self._source.refuse(index, f'too short: no sample of it is left at {self.sample_rate} Hz')
      return None
    scale = self.sample_rate / self._source.sample_rate
    if 'words' in example:
      sounds['words'] = [
        (word, round(scale * first), round(scale * end)) for word, first, end in example['words']
      ]
    return {**example, **sounds}


def held_out_voices(
  recipe: Recipe, workdir: pathlib.Path, sample_rate: int | None = None
) -> tuple[list[dict], list[dict]]:
  """Returns two lists of examples of the test split's voices: one to enrol them with, one to be
  judged by.

  'label' counts the voices from 0. Half of each voice's utterances goes to either side.

  Raises ValueError where the corpus does not tell who speaks.
  """
  examples = [e for e in corpus(recipe, 'test', workdir, sample_rate) if e is not None]
  if missing := sum('speaker' not in example for example in examples):
    raise UserError(
      f'the corpus does not tell the speakers of {missing} of {len(examples)} held-out '
      'examples: where folders are '
      'speakers --set corpus.speaker_folders=True, of a TFDS data set --set '
      'corpus.speaker_name=FEATURE'
    )
  voices = sorted({int(example['speaker']) for example in examples})
  sides = ([], [])
  for label, voice in enumerate(voices):
    own = [example for example in examples if int(example['speaker']) == voice]
    for index, example in enumerate(own):
      sides[index % 2].append({**example, 'label': np.int32(label)})
  return sides


def prompts(recipe: Recipe, workdir: pathlib.Path, sample_rate: int) -> list[dict]:
  """Returns `evaluation.num_prompts` held-out utterances to be continued; few are repeated in turn.

  Of a corpus that says so, those that count; of others, those that last through prompt and
  continuation, cut to that length. With a stage `speaker` they are of its judged side, and 'label'
  is the voice.

  Raises ValueError where there are none.
  """
  settings = recipe.evaluation
  length = round((settings.prompt_seconds + settings.seconds) * sample_rate)
  if 'speaker' in recipe.stages:
    _, candidates = held_out_voices(recipe, workdir, sample_rate)
  else:
    candidates = corpus(recipe, 'test', workdir, sample_rate)
    candidates = corpora.Subset(candidates, len(candidates), seed=settings.seed, shuffle=True)
  found = []
  for example in (example for example in candidates if example is not None):
    if 'kind' in example and example['kind'] == 'counting':
      found.append(example)
    elif 'kind' not in example and len(example['waveform']) >= length:
      found.append({**example, 'waveform': example['waveform'][:length]})
    if len(found) == settings.num_prompts:
      break
  if not found:
    raise UserError(
      f'no held-out utterance lasts {length / sample_rate:g} s, to be a prompt and to be '
      'compared with its '
      'continuation: lower --set evaluation.seconds or evaluation.prompt_seconds, or hold out '
      'longer recordings'
    )
  return [found[index % len(found)] for index in range(settings.num_prompts)]


def counting_voices(recipe: Recipe, workdir: pathlib.Path) -> tuple[list[dict], list[dict]]:
  """Returns the counting utterances of the training voices and of the held-out voices.

  Raises ValueError where the corpus has none: only the synthesized one does.
  """
  splits = (corpus(recipe, split, workdir) for split in ('train', 'test'))
  sides = tuple(
    [e for e in split if e is not None and e.get('kind') == 'counting'] for split in splits
  )
  if not all(sides):
    raise UserError(
      'the corpus has no utterances that are known to count, of which the stage numbers '
      'learns: leave that stage out '
      '(--set numbers=None)'
    )
  return sides


def labelled_windows(examples: list[dict], length: int) -> list[dict]:
  """Returns windows of `length` samples with the number in their middle as label
  (metrics.speech).
  """
  pairs = [
    pair for e in examples for pair in speech.number_windows(e['waveform'], e['words'], length)
  ]
  return [{'waveform': window_W, 'label': np.int32(label)} for window_W, label in pairs]


def reconstructions(
  examples: list[dict], workdir: pathlib.Path, num_quantizers: int | None = None
) -> list[dict]:
  """Returns the examples with their waveforms passed through the codec, so that codec artefacts
  give nothing away.
  """
  codec = workspace.load_codec(workdir)
  through = functools.partial(codec.reconstruct, levels=num_quantizers)
  decoded = map_waveforms(through, examples, codec.sample_rate)
  return [
    {**example, 'waveform': wave_T} for example, wave_T in zip(examples, decoded, strict=True)
  ]


def benchmark(recipe: Recipe, workdir: pathlib.Path) -> tuple[pathlib.Path, str] | None:
  """Returns the folder of a benchmark in the layout of ZeroSpeech 2021 and the subset to take of
  it.

  That is `recipe.evaluation.data`, or the synthesized twin where the corpus is synthesized; None
  where there is neither. Raises ValueError when the folder that the recipe names is not there.
  """
  settings = recipe.evaluation
  if settings.data:
    if not os.path.isdir(settings.data):
      raise UserError(
        f"{settings.data!r} is not a folder: give that of ZeroSpeech 2021, or of Libri-Light's item files"
      )
    return pathlib.Path(settings.data), settings.subset
  if isinstance(recipe.corpus, corpora.Synthesized):
    return synthesized_benchmark.folder(
      recipe.corpus.config, workdir / 'corpus'
    ), synthesized_benchmark.SUBSET
  return None


def map_waveforms(function, examples: list[dict], sample_rate: int, batch_size: int = BATCH_SIZE):
  """Yields function(wave_BT)[b, :T] for each example, where function keeps the length; see
  `padded_batches`.
  """
  for batch, wave_BT in padded_batches(examples, sample_rate, batch_size):
    result_BT = np.asarray(function(wave_BT))
    yield from (row_T[: len(example['waveform'])] for example, row_T in zip(batch, result_BT))


def map_frames(
  function,
  examples,
  sample_rate: int,
  *,
  hop_length: int,
  batch_size: int = BATCH_SIZE,
  bucket_seconds: float = BUCKET_SECONDS,
):
  """Yields function(wave_BT)[b, :S] for each example, where function makes one frame of
  `hop_length` samples.
  """
  for batch, wave_BT in padded_batches(
    examples, sample_rate, batch_size, bucket_seconds=bucket_seconds
  ):
    result_BS = np.asarray(function(wave_BT))
    yield from (
      row[: -(-len(example['waveform']) // hop_length)] for example, row in zip(batch, result_BS)
    )


def fit_clusters(extract, corpus, config, settings: SemanticTokens) -> kmeans.SemanticQuantizer:
  """Fits k-means on `settings.sample_seconds` of frames from the corpus in random order.

  extract: (examples, sample rate) -> iterator of frames_SD; config: of the frames, for their rates.
  """
  wanted = num_sample_frames(config, settings)
  batches = FrameBatches(extract, corpus, config.sample_rate, settings.seed)
  return kmeans.fit(
    joined([sample_frames(batches, wanted)], wanted, batches), settings.num_clusters, settings.seed
  )


def num_sample_frames(config, settings: SemanticTokens) -> int:
  frames, most = settings.sample_seconds * config.frame_rate, MAX_SAMPLE_FRAMES
  if frames > most:
    raise UserError(
      f'semantic_tokens.sample_seconds={settings.sample_seconds:g} are {frames:g} frames, more than '
      f'the {most} that one process clusters: --set semantic_tokens.sample_seconds='
      f'{int(most / config.frame_rate)}'
    )
  return round(frames)


class FrameBatches:
  """Batches of a corpus in random order: [i] -> a list of frames_SD, of those of its examples that
  can be read.

  extract: (examples, sample rate) -> iterator of frames_SD.
  """

  def __init__(self, extract, corpus, sample_rate: int, seed: int):
    self._extract, self._sample_rate = extract, sample_rate
    self._order = corpora.Subset(corpus, len(corpus), seed=seed, shuffle=True)

  def __len__(self) -> int:
    return -(-len(self._order) // BATCH_SIZE)

  def __getitem__(self, number: int) -> list[np.ndarray]:
    end = min((number + 1) * BATCH_SIZE, len(self._order))
    examples = [self._order[index] for index in range(number * BATCH_SIZE, end)]
    return list(self._extract(examples, self._sample_rate))


def sample_frames(
  batches: FrameBatches, wanted: int, process_index: int = 0, process_count: int = 1
) -> list[list[np.ndarray]]:
  """Returns one process's share of the first `wanted` frames: every `process_count`th batch, until
  it has its part.
  """
  part = -(-wanted // process_count)
  share, count = [], 0
  with workspace.progress(part, 'frames for k-means', 'frame') as bar:
    for number in range(process_index, len(batches), process_count):
      share.append(batches[number])
      found = sum(map(len, share[-1]))
      count += found
      bar.update(found)
      if count >= part:
        break
  return share


def joined(shares: list[list[list[np.ndarray]]], wanted: int, batches: FrameBatches) -> np.ndarray:
  """Returns the first `wanted` frames [N, D] of the batches, whoever has them.

  Batches differ in length: those that no share holds, since its process had its part, are made
  here.

  Raises ValueError when no example can be read.
  """
  frames, count = [], 0
  for number in range(len(batches)):
    share, turn = shares[number % len(shares)], number // len(shares)
    batch = share[turn] if turn < len(share) else batches[number]
    frames += batch
    count += sum(map(len, batch))
    if count >= wanted:
      break
  if not count:
    raise UserError('no example of the corpus could be read: there are no frames to cluster')
  return np.concatenate(frames)[:wanted]


def padded_batches(
  examples,
  sample_rate: int,
  batch_size: int = BATCH_SIZE,
  silence: int = 0,
  bucket_seconds: float = BUCKET_SECONDS,
):
  """Yields (list of examples, their waveforms as wave_BT), zero-padded to a bucket; the last batch
  has empty rows.

  silence: samples of padding that there are at least.
  """
  bucket = round(bucket_seconds * sample_rate)
  for start in range(0, len(examples), batch_size):
    read = (examples[index] for index in range(start, min(start + batch_size, len(examples))))
    # what cannot be read is listed by its source
    batch = [example for example in read if example is not None]
    if not batch:
      continue
    longest = max(len(example['waveform']) for example in batch) + silence
    wave_BT = np.zeros((batch_size, -(-longest // bucket) * bucket), np.float32)
    for row, example in enumerate(batch):
      wave_BT[row, : len(example['waveform'])] = example['waveform']
    yield batch, wave_BT

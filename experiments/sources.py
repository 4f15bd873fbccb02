"""Reads the examples of a corpus for stages, tokens and evaluations."""

import functools
import hashlib
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from audiolm_jax import audio, kmeans, parts, storage
from audiolm_jax.codec import Codec
from audiolm_jax.data import inventory, skipped, synthesized_benchmark, texts
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import speech
from audiolm_jax.tokens import Spec

from . import corpora, workspace
from .cli import compilation_cache
from .recipe import Recipe, SemanticTokens

# Utterances are padded to a multiple of this (whole semantic frames), for few compilations.
BUCKET_SECONDS = 3.2
BATCH_SIZE = 8  # examples
# Clips become rows of these lengths to be encoded, BATCH_SIZE at once on each device: their memory
# is bounded (docs/results/tpu.md).
ROW_SECONDS = (2.0, 4.0, 8.0, 16.0, 32.0)
# That two parts of a long clip share at each side of a cut. All that our codecs read for a frame;
# the semantic encoder, which reads the whole row, gives nearly the same tokens.
CONTEXT_SECONDS = 2.0
TEXT_EXAMPLES = 2000  # whose texts are read for `training_words`
MAX_WORDS = 2**18
# Process 0 clusters them, holding them twice: 32 GiB of 1024 features in float32.
MAX_SAMPLE_FRAMES = 2**22


class Sources(NamedTuple):
  training: Any
  held_out: Any
  fingerprints: dict[str, str]  # of the models that made the examples


def report_skipped(workdir: storage.Path):
  """Prints the number of skipped files of the corpus, and the path of their list."""
  listing = corpora.listing(corpus_folder(workdir))
  if jax.process_index() == 0 and (left_out := skipped.read(listing)):
    print(f'{len(left_out)} files are skipped, with reasons in {listing}', file=sys.stderr)


def corpus_folder(workdir: storage.Path) -> pathlib.Path:
  """Returns the folder of prepared audio and of the list of skipped files, always on a disk."""
  if storage.in_bucket(workdir):
    name = hashlib.sha256(str(workdir).encode()).hexdigest()[:16]
    return compilation_cache.user_folder().with_name('corpora') / name
  return workdir / 'corpus'


def check_held_out(name: str, held_out: Any):
  """Checks before training that held-out examples can be read.

  Raises:
    UserError: if none can.
  """
  first = lambda length: (0, min(1, length))
  read = (lambda i: held_out.crop(i, first)) if hasattr(held_out, 'crop') else held_out.__getitem__
  if not any(read(index) is not None for index in range(len(held_out))):
    raise UserError(
      f'stage {name}: none of its {len(held_out)} held-out examples can be read, which evaluation '
      'needs: hold out more, such as by --set corpus.held_out=0.1 or '
      '--set corpus.test_root=FOLDER, and encode the corpus again'
    )


def check_tokens(name: str, model: Any, made: Spec):
  """Checks that a stage's config fits the tokens `made`.

  Raises:
    UserError: naming the fields that differ.
  """
  if wrong := model.spec.differences(made):
    raise UserError(
      f'{name} was made for other tokens: {"; ".join(wrong)}. '
      f'Set them, such as by --set {name}.model.FIELD=VALUE'
    )


def corpus(recipe: Recipe, split: str, workdir: storage.Path, sample_rate: int | None = None):
  """Returns the recipe's audio examples of a split, 'train' or 'test'.

  They are resampled to `sample_rate` in Hz, unless it is None.
  """
  source = recipe.corpus.examples(split, corpus_folder(workdir))
  return source if sample_rate in (None, source.sample_rate) else Resampled(source, sample_rate)


class Resampled:
  """A source whose waveforms, noises, covers and word times are resampled when read."""

  def __init__(self, source, sample_rate: int):
    self._source, self.sample_rate = source, sample_rate

  def __len__(self) -> int:
    return len(self._source)

  def inventory(self) -> list[str]:
    """Returns the lines of the source, because resampling changes no file."""
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
      for name in ('waveform', 'noise', 'cover')
      if name in example
    }
    if not len(sounds['waveform']):
      if hasattr(self._source, 'refuse'):
        self._source.refuse(index, f'too short: no samples are left at {self.sample_rate} Hz')
      return None
    scale = self.sample_rate / self._source.sample_rate
    if 'words' in example:
      sounds['words'] = [
        (word, round(scale * first), round(scale * end)) for word, first, end in example['words']
      ]
    return {**example, **sounds}


def held_out_voices(
  recipe: Recipe, workdir: storage.Path, sample_rate: int | None = None
) -> tuple[list[dict], list[dict]]:
  """Returns the test voices' utterances in two halves: to train classifiers, and to test them.

  'label' numbers the voices from 0.

  Raises:
    UserError: if the corpus does not name speakers.
  """
  examples = [e for e in corpus(recipe, 'test', workdir, sample_rate) if e is not None]
  if missing := sum('speaker' not in example for example in examples):
    raise UserError(
      f'{missing} of {len(examples)} held-out examples have no speaker: if folders are speakers, '
      'use --set corpus.speaker_folders=True; for a TFDS data set, '
      '--set corpus.speaker_name=FEATURE'
    )
  voices = sorted({int(example['speaker']) for example in examples})
  sides = ([], [])
  for label, voice in enumerate(voices):
    own = [example for example in examples if int(example['speaker']) == voice]
    for index, example in enumerate(own):
      sides[index % 2].append({**example, 'label': np.int32(label)})
  return sides


def prompts(
  recipe: Recipe, workdir: storage.Path, sample_rate: int, split: str = 'test'
) -> list[dict]:
  """Returns `evaluation.num_prompts` held-out utterances to continue, repeated if there are fewer.

  A corpus with kinds of utterances gives its counting ones; any other gives those as long as prompt
  and continuation, cut to that length. With a stage `speaker`, they are of the second half of
  `held_out_voices`, and 'label' is the voice.

  Raises:
    UserError: if there are none.
  """
  settings = recipe.evaluation
  length = round((settings.prompt_seconds + settings.seconds) * sample_rate)
  if 'speaker' in recipe.stages:
    _, candidates = held_out_voices(recipe, workdir, sample_rate)
  else:
    candidates = corpus(recipe, split, workdir, sample_rate)
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
      f'no held-out utterance has the {length / sample_rate:g} s of a prompt and its continuation: '
      'lower evaluation.seconds or evaluation.prompt_seconds by --set, '
      'or hold out longer recordings'
    )
  return [found[index % len(found)] for index in range(settings.num_prompts)]


def counting_voices(recipe: Recipe, workdir: storage.Path) -> tuple[list[dict], list[dict]]:
  """Returns the counting utterances of training voices and of held-out voices.

  Raises:
    UserError: if there are none, as in every corpus that is not synthesized.
  """
  splits = (corpus(recipe, split, workdir) for split in ('train', 'test'))
  sides = tuple(
    [e for e in split if e is not None and e.get('kind') == 'counting'] for split in splits
  )
  if not all(sides):
    raise UserError(
      'the corpus has no utterances that are known to count, on which the stage numbers is '
      'trained: remove that stage (--set numbers=None)'
    )
  return sides


def labelled_windows(examples: list[dict], length: int) -> list[dict]:
  """Returns windows of `length` samples, labelled by the number in their middle."""
  pairs = [
    pair for e in examples for pair in speech.number_windows(e['waveform'], e['words'], length)
  ]
  return [{'waveform': window_W, 'label': np.int32(label)} for window_W, label in pairs]


def reconstructions(
  examples: list[dict], workdir: storage.Path, num_quantizers: int | None = None
) -> list[dict]:
  """Returns the examples passed through the codec, to have the artefacts of generated audio."""
  codec = workspace.load_codec(workdir)
  through = functools.partial(codec.reconstruct, levels=num_quantizers)
  decoded = map_waveforms(through, examples, codec.sample_rate)
  return [
    {**example, 'waveform': wave_T} for example, wave_T in zip(examples, decoded, strict=True)
  ]


def benchmark(recipe: Recipe, workdir: storage.Path) -> tuple[pathlib.Path, str] | None:
  """Returns the folder of a benchmark in the layout of ZeroSpeech 2021, and its subset.

  These are `recipe.evaluation.data` and `subset`, or those of the synthesized twin if the corpus is
  synthesized, or None.

  Raises:
    UserError: if `recipe.evaluation.data` is not a folder.
  """
  settings = recipe.evaluation
  if settings.data:
    if not os.path.isdir(settings.data):
      raise UserError(
        f'{settings.data!r} is not a folder: give that of ZeroSpeech 2021, '
        "or of Libri-Light's item files"
      )
    return pathlib.Path(settings.data), settings.subset
  if isinstance(recipe.corpus, corpora.Synthesized):
    return synthesized_benchmark.folder(
      recipe.corpus.config, corpus_folder(workdir)
    ), synthesized_benchmark.SUBSET
  return None


def map_waveforms(function, examples: list[dict], sample_rate: int, batch_size: int = BATCH_SIZE):
  """Yields function(wave_BT)[b, :T] for each example; `function` keeps lengths.

  Unreadable examples are skipped, see `padded_batches`.
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
  """Yields function(wave_BT)[b, :S] for each example; a frame has `hop_length` samples.

  Unreadable examples are skipped, see `padded_batches`.
  """
  for batch, wave_BT in padded_batches(
    examples, sample_rate, batch_size, bucket_seconds=bucket_seconds
  ):
    result_BS = np.asarray(function(wave_BT))
    yield from (
      row[: -(-len(example['waveform']) // hop_length)] for example, row in zip(batch, result_BS)
    )


def cut(frame_rate: float, frame_length: int, *, context: int = 0, silence: int = 0) -> parts.Cut:
  """Returns how clips of a corpus become rows for encoding.

  Args:
    frame_rate: frames per second, of the function with the fewest.
    frame_length: samples per frame.
    context: frames that a function reads on each side of a frame, if it has such a bound.
    silence: samples of silence after each clip.
  """
  whole = lambda seconds: max(1, round(seconds * frame_rate))
  return parts.Cut(
    frame_length=frame_length,
    lengths=tuple(map(whole, ROW_SECONDS)),
    context=max(whole(CONTEXT_SECONDS), context),
    silence=silence,
  )


def row_cut(codec: Codec, spec: Spec) -> parts.Cut:
  """Returns how clips become rows for codec and semantic encoder; a frame is a semantic one."""
  ratio = spec.frames_per_semantic
  return cut(
    spec.semantic_rate,
    ratio * codec.hop_length,
    context=-(-(codec.past or 0) // ratio),
    silence=codec.context * codec.hop_length,
  )


def map_parts(encoder, examples, sample_rate: int) -> Iterator[np.ndarray]:
  """Yields the features [S, D] of each readable example, of any length.

  encoder: a `tokenizer.SemanticEncoder`.
  """
  clips = ((None, example['waveform']) for example in examples if example is not None)
  rows = cut(encoder.frame_rate, encoder.hop_length)
  function = lambda wave_BT: (encoder.features(wave_BT),)
  for _, [features_SD] in parts.mapped(function, clips, rows, BATCH_SIZE):
    yield features_SD


def map_windows(
  embedding, examples: list[dict], sample_rate: int, *, with_texts: bool = False
) -> Iterator[np.ndarray]:
  """Yields the vectors [N, D] of the windows of each readable example, one per second.

  With `with_texts`, each row continues with the vector of the example's first text, [N, 2 D].

  Raises:
    UserError: if a text is missing.
  """
  for example in (example for example in examples if example is not None):
    vectors_ND = embedding.windows(np.asarray(example['waveform'], np.float32)[None])[0]
    if with_texts:
      captions = texts.decode(example['texts']) if 'texts' in example else []
      if not captions:
        raise UserError(
          'music_tokens.text_map needs a text of every example, but one has none: use '
          '--set music_tokens.text_map=False, or a corpus with texts'
        )
      text_1D = embedding.texts(captions[:1])
      vectors_ND = np.concatenate([vectors_ND, text_1D.repeat(len(vectors_ND), axis=0)], axis=1)
    yield vectors_ND


def training_words(recipe: Recipe, workdir: storage.Path) -> set[str]:
  """Returns the words of the texts of the training split, as `texts.words`; none without texts.

  Where texts can only be read with their audio, they are those of `TEXT_EXAMPLES` random examples.
  More than `MAX_WORDS` words are no vocabulary to compare with, and not returned.
  """
  source = corpus(recipe, 'train', workdir)
  if hasattr(source, 'captions'):
    found = texts.words(source.captions())
  else:
    found = set()
    for example in corpora.Subset(source, TEXT_EXAMPLES, seed=0, shuffle=True):
      if example is None:
        continue
      if 'texts' not in example:
        break
      found |= texts.words(texts.decode(example['texts']))
  return found if len(found) <= MAX_WORDS else set()


def fit_clusters(extract, corpus, config, settings: SemanticTokens) -> kmeans.SemanticQuantizer:
  """Fits k-means on `settings.sample_seconds` of frames from the corpus in random order.

  Args:
    extract: (examples, sample rate) -> iterator of frames_SD.
    corpus: source of examples.
    config: has the `sample_rate` and the `frame_rate` of frames.
    settings: number of clusters, size of the sample, and seed.
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
      f'semantic_tokens.sample_seconds={settings.sample_seconds:g} are {frames:g} frames, more '
      'than '
      f'the {most} that one process clusters: --set semantic_tokens.sample_seconds='
      f'{int(most / config.frame_rate)}'
    )
  return round(frames)


class FrameBatches:
  """Batches of a corpus in random order; batch i is a list of frames_SD, per readable example.

  Args:
    extract: (examples, sample rate) -> iterator of frames_SD.
    corpus: source of examples.
    sample_rate: of the examples in Hz.
    seed: of the order.
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
  """Returns one process's share of the first `wanted` frames.

  A process takes every `process_count`th batch, until it has its part of `wanted`.
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
  """Returns the first `wanted` frames [N, D] of the batches, joined from all processes' shares.

  Since batches differ in length, a share may be full before a batch that is needed. Such batches
  are computed here.

  Raises:
    UserError: if no example can be read.
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
  """Yields batches of readable examples, with their waveforms as wave_BT, zero-padded.

  Args:
    examples: source or list of examples.
    sample_rate: Hz.
    batch_size: rows of wave_BT; rows without an example are zeros.
    silence: minimum padding in samples.
    bucket_seconds: the length T is a multiple of this.
  """
  bucket = round(bucket_seconds * sample_rate)
  for start in range(0, len(examples), batch_size):
    read = (examples[index] for index in range(start, min(start + batch_size, len(examples))))
    # Unreadable examples are None, and listed by their source.
    batch = [example for example in read if example is not None]
    if not batch:
      continue
    longest = max(len(example['waveform']) for example in batch) + silence
    wave_BT = np.zeros((batch_size, -(-longest // bucket) * bucket), np.float32)
    for row, example in enumerate(batch):
      wave_BT[row, : len(example['waveform'])] = example['waveform']
    yield batch, wave_BT

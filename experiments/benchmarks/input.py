"""Measures input pipeline throughput per CPU core, and the cores that a TPU slice keeps busy.

  python -m experiments.benchmark input
  python -m experiments.benchmark input --recipe=librilight --chips=16 --mfu=0.5
  python -m experiments.benchmark input --bucket=gs://bucket/benchmark --steps=200

Writes token shards and audio files (FLAC at the codec's rate) to a temporary folder and reads them
by the training pipeline, which decodes crops only. Seconds are CPU seconds of this process with one
reading thread, so that other load has little influence. The chips' demand follows from the model's
arithmetic (6 FLOPs per parameter and token; for the codec, three times the operations of its loss)
at the share `mfu` of their peak.

With --bucket, token shards are written and read there as one host of the slice does in training:
by as many threads, in its rows of the recipe's batches, one batch after each step. A step is a
sleep of the time that the chips take; what counts is how long it then waits for the next batch.

Few or busy cores lack the processor that a host has. With --stretch=50 the chips take fifty times
as long, as if the processor were fifty times as fast; an emulator of the bucket has to answer fifty
times as late.
"""

import argparse
import itertools
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import soundfile

from audiolm_jax import audio, storage, tokens
from audiolm_jax.data import folders, pipeline, token_shards
from audiolm_jax.training import sharding

from .. import recipe as recipe_lib
from ..cli import command_line, recipe_pages

# bfloat16 peak per chip, and chips per host of v5e (in slices of 16 and more).
V5E_FLOPS, CHIPS_PER_HOST = 197e12, 4
SECONDS = 60.0  # per recording
# Examples of a source, which repeats a few: with only 8, Grain's shuffle takes 3 ms per choice.
EXAMPLES = 4096
FILES = {  # (rate, channels, name of the file)
  'FLAC 16 kHz mono': (16_000, 1, 'wave.flac'),
  'FLAC 44.1 kHz stereo': (44_100, 2, 'wave.flac'),
  'FLAC 48 kHz mono': (48_000, 1, 'wave.flac'),
  'MP3 44.1 kHz stereo': (44_100, 2, 'wave.mp3'),
  'WAV 44.1 kHz stereo': (44_100, 2, 'wave.wav'),
}
STAGES = ('soundstream', 'w2v_bert', 'semantic', 'coarse', 'fine', 'soundstorm')


class Row(NamedTuple):
  """Holds the throughput of one stage.

  Fields:
    read: examples per second that a core reads.
    consumed: examples per second that the chips consume.
    seconds: seconds of audio per example.
  """

  read: float
  consumed: float
  seconds: float


class BucketRow(NamedTuple):
  """Holds how a host reads the batches of one stage from a bucket while its chips train.

  Fields:
    consumed: examples per second that the chips of the host consume.
    read: examples per CPU second.
    by_clock: examples per second, read ahead or consumed.
    first: seconds until the first batch.
    steps: number of steps after it.
    waiting: share of the time after the first batch that steps waited for a batch.
  """

  consumed: float
  read: float
  by_clock: float
  first: float
  steps: int
  waiting: float


def add_arguments(parser: argparse.ArgumentParser):
  parser.add_argument(
    '--recipe', default='librilight', help=f'one of: {", ".join(recipe_pages.names())} (librilight)'
  )
  parser.add_argument('--chips', type=command_line.COUNT, default=16, help='of TPU v5e (16)')
  parser.add_argument(
    '--mfu', type=command_line.SHARE, default=0.5, help='share of their peak that is reached (0.5)'
  )
  parser.add_argument(
    '--examples', type=command_line.COUNT, default=512, help='to read for each timing (512)'
  )
  parser.add_argument('--stage', choices=STAGES, help='the only one to read for (all)')
  parser.add_argument(
    '--bucket',
    type=command_line.stored,
    metavar='FOLDER',
    help='read token shards from gs://BUCKET/FOLDER instead',
  )
  parser.add_argument(
    '--steps', type=command_line.COUNT, default=100, help='of the chips, with --bucket (100)'
  )
  parser.add_argument(
    '--stretch',
    type=command_line.COUNT,
    default=1,
    help='with --bucket: how many times as long a step takes (1)',
  )


def run(args: argparse.Namespace) -> str:
  recipe = recipe_lib.load(args.recipe)
  if args.bucket is not None:
    command_line.check_folder(args.bucket, '--bucket')
    return bucket_table(_bucket_rows(recipe, args), args)
  with tempfile.TemporaryDirectory() as folder:
    decoded = decoding_speeds(pathlib.Path(folder))
    sources = _sources(pathlib.Path(folder), recipe)
    rows = {
      name: _row(
        recipe.stages[name].model, sources, args.examples, args.chips * args.mfu * V5E_FLOPS
      )
      for name in _names(recipe, args)
    }
  return table(decoded, rows, args)


def table(decoded: dict[str, float], rows: dict[str, Row], args: argparse.Namespace) -> str:
  """Returns the report as text."""
  lines = ['decoding to 16 kHz mono: audio seconds for each second of one core']
  lines += [f'  {name:22}{speed:8.0f}' for name, speed in decoded.items()]
  hosts = _hosts(args)
  lines += [
    f'{args.recipe}, {args.chips} chips at {args.mfu:.0%} of their peak, {hosts} hosts',
    f'  {"stage":12}{"read by a core":>16}{"consumed":>12}{"cores a host":>14}{"audio s":>9}',
    f'  {"":12}{"examples/s":>16}{"examples/s":>12}{"busy reading":>14}{"each":>9}',
  ]
  for name, row in rows.items():
    busy = row.consumed / row.read / hosts
    lines.append(f'  {name:12}{row.read:16.0f}{row.consumed:12.0f}{busy:14.3f}{row.seconds:9.2f}')
  return '\n'.join(lines)


def bucket_table(rows: dict[str, BucketRow], args: argparse.Namespace) -> str:
  """Returns the report of reading from a bucket as text."""
  lines = [
    f'{args.recipe}, {args.chips} chips at {args.mfu:.0%} of their peak, {_hosts(args)} hosts, '
    f'shards in {args.bucket}; seconds are those of a clock {args.stretch:g} times as slow',
    f'  {"stage":12}{"consumed by a host":>20}{"read":>12}{"cores a host":>14}{"first batch":>13}'
    f'{"steps":>7}{"waiting":>9}',
    f'  {"":12}{"examples/s":>20}{"examples/s":>12}{"busy reading":>14}{"s":>13}',
  ]
  for name, row in rows.items():
    lines.append(
      f'  {name:12}{row.consumed:20.0f}{row.by_clock:12.0f}{row.consumed / row.read:14.2f}'
      f'{row.first:13.2f}{row.steps:7}{row.waiting:9.2%}'
    )
  return '\n'.join(lines)


def _names(recipe, args: argparse.Namespace) -> list[str]:
  return [name for name in STAGES if name in recipe.stages and args.stage in (None, name)]


def _hosts(args: argparse.Namespace) -> int:
  return max(args.chips // CHIPS_PER_HOST, 1)


def _bucket_rows(recipe, args: argparse.Namespace) -> dict[str, BucketRow]:
  _write_tokens(args.bucket, recipe)
  shards = token_shards.TokenShards(args.bucket, 'train')
  rows, hosts = {}, _hosts(args)
  for name in _names(recipe, args):
    config, train = recipe.stages[name].model, recipe.stages[name].train
    stage = config.make()
    if 'waveform' in stage.batch:
      continue
    source = _Repeated(shards)
    batches = pipeline.batches(
      source, stage.batch, batch_size=train.batch_size, seed=0, process_count=hosts
    )
    consumed = args.chips * args.mfu * V5E_FLOPS / _flops(config, stage) / hosts
    rows[name] = _read_while_training(batches, source, consumed, args)
  return rows


def _read_while_training(
  batches: pipeline.Batches, source: '_Repeated', consumed: float, args: argparse.Namespace
) -> BucketRow:
  """Takes a batch after each of some steps, which sleep."""
  busy, began = time.process_time(), time.monotonic()
  num_rows = len(next(iter(next(batches).values())))
  first, waiting = time.monotonic() - began, 0.0
  for _ in range(args.steps):
    time.sleep(args.stretch * num_rows / consumed)
    asked = time.monotonic()
    next(batches)
    waiting += time.monotonic() - asked
  seconds, num_read = time.monotonic() - began, source.num_read
  busy = time.process_time() - busy
  batches.set_state(batches.get_state())  # ends what reads ahead
  return BucketRow(
    consumed=consumed,
    read=num_read / busy,
    by_clock=args.stretch * num_read / seconds,
    first=first / args.stretch,
    steps=args.steps,
    waiting=waiting / (seconds - first),
  )


def decoding_speeds(folder: pathlib.Path) -> dict[str, float]:
  """Returns audio seconds decoded and resampled to 16 kHz per CPU second, by kind of file."""
  speeds = {}
  for name, (rate, channels, file) in FILES.items():
    path = folder / f'{rate}-{channels}-{file}'
    soundfile.write(path, _music(rate, channels), rate)
    audio.load(path, 16_000)  # warms the file cache

    started = time.process_time()
    audio.load(path, 16_000)
    speeds[name] = SECONDS / (time.process_time() - started)
  return speeds


def _music(rate: int, channels: int) -> np.ndarray:
  """Returns gliding tones in noise, with a decoding speed typical of recordings.

  Silence is decoded faster, pure noise slower.
  """
  seconds_T = np.arange(round(SECONDS * rate)) / rate
  tones_T = sum(
    np.sin(2 * np.pi * pitch * seconds_T * (1 + 0.01 * np.sin(seconds_T))) / 8
    for pitch in (110, 221, 443)
  )
  noise_TC = 0.02 * np.random.default_rng(0).normal(size=(len(seconds_T), channels))
  return (tones_T[:, None] + noise_TC).astype(np.float32)


def _sources(folder: pathlib.Path, recipe) -> dict[str, Any]:
  """Returns the sources of stages, by kind.

  'waveform' holds 60 s FLAC files, as Libri-Light's parts; 'tokens' holds their token shards.
  """
  for index in range(8):
    soundfile.write(folder / f'part{index}.flac', np.roll(_music(16_000, 1), 997 * index), 16_000)
  _write_tokens(folder, recipe)
  parts = [folders.Part(str(folder / f'part{index % 8}.flac')) for index in range(EXAMPLES)]
  return {
    'waveform': folders.AudioFiles(parts, 16_000),
    'tokens': _Repeated(token_shards.TokenShards(folder, 'train')),
  }


def _write_tokens(folder: storage.Path, recipe):
  random = np.random.default_rng(0)
  examples = (
    _random_tokens(random, recipe.stages['soundstream'].model, recipe.stages['semantic'].model)
    for _ in range(64)
  )
  token_shards.write_shard(folder, 'train', 0, 1, examples)
  token_shards.write_manifest(folder, 'train', 1, {})


def _random_tokens(random: np.random.Generator, codec: Any, semantic: Any) -> dict[str, np.ndarray]:
  """Returns random tokens of one recording: codes [F, Q] and semantic [S]."""
  frames = round(SECONDS * codec.frame_rate)
  ratio = tokens.frames_per_semantic(codec.frame_rate, semantic.semantic_rate)
  return {
    'semantic': random.integers(0, semantic.num_clusters, frames // ratio),
    'codes': random.integers(0, codec.codebook_size, (frames, codec.num_quantizers)),
  }


class _Repeated:
  def __init__(self, source: Any):
    self._source, self.num_threads = source, source.num_threads
    self._count, self.num_read = itertools.count(1), 0

  def __len__(self) -> int:
    return EXAMPLES

  def __getitem__(self, i: int) -> Any:
    example = self._source[i % len(self._source)]
    self.num_read = next(self._count)  # a single call, which threads do not interrupt
    return example


def _row(config: Any, sources: dict[str, Any], examples: int, flops_per_second: float) -> Row:
  stage = config.make()
  source = sources['waveform' if 'waveform' in stage.batch else 'tokens']
  batches = pipeline.batches(source, stage.batch, batch_size=8, seed=0, num_threads=1)
  seconds = max(feature.shape[0] / feature.rate for feature in stage.batch.values() if feature.rate)
  read = _read_per_second(batches, examples)
  return Row(read, flops_per_second / _flops(config, stage), seconds)


def _read_per_second(batches: Iterator, count: int) -> float:
  """Returns the examples read per CPU second, without the first batch."""
  next(batches)
  started, read = time.process_time(), 0
  while read < count:
    read += len(next(iter(next(batches).values())))
  return read / (time.process_time() - started)


def _flops(config: Any, stage: Any) -> float:
  """Returns the FLOPs of a training step per example."""
  variables = jax.eval_shape(stage.init, jax.random.key(0))
  if type(config).__module__.endswith('.soundstream'):
    batch = {name: jax.ShapeDtypeStruct((1, *f.shape), f.dtype) for name, f in stage.batch.items()}
    lowered = jax.jit(stage.loss).lower(*sharding.unbox(variables), batch, None)
    return 3 * lowered.cost_analysis()['flops']
  num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables.params))
  if 'waveform' in stage.batch:
    num_tokens = stage.batch['waveform'].shape[0] / config.hop_length
  else:
    num_tokens = sum(math.prod(feature.shape) for feature in stage.batch.values())
  return 6 * num_params * num_tokens

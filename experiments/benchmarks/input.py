"""Measures input pipeline throughput per CPU core, and the cores that a TPU slice keeps busy.

  python -m experiments.benchmark input
  python -m experiments.benchmark input --recipe=librilight --chips=16 --mfu=0.5

Writes token shards and audio files (FLAC at the codec's rate) to a temporary folder and reads them
by the training pipeline, which decodes crops only. Seconds are CPU seconds of this process with one
reading thread, so that other load has little influence. The chips' demand follows from the model's
arithmetic (6 FLOPs per parameter and token; for the codec, three times the operations of its loss)
at the share `mfu` of their peak.
"""

import argparse
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import soundfile

from audiolm_jax import audio, tokens
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


def run(args: argparse.Namespace) -> str:
  recipe = recipe_lib.load(args.recipe)
  with tempfile.TemporaryDirectory() as folder:
    decoded = decoding_speeds(pathlib.Path(folder))
    sources = _sources(pathlib.Path(folder), recipe)
    rows = {
      name: _row(
        recipe.stages[name].model, sources, args.examples, args.chips * args.mfu * V5E_FLOPS
      )
      for name in STAGES
      if name in recipe.stages
    }
  return table(decoded, rows, args)


def table(decoded: dict[str, float], rows: dict[str, Row], args: argparse.Namespace) -> str:
  """Returns the report as text."""
  lines = ['decoding to 16 kHz mono: audio seconds for each second of one core']
  lines += [f'  {name:22}{speed:8.0f}' for name, speed in decoded.items()]
  hosts = max(args.chips // CHIPS_PER_HOST, 1)
  lines += [
    f'{args.recipe}, {args.chips} chips at {args.mfu:.0%} of their peak, {hosts} hosts',
    f'  {"stage":12}{"read by a core":>16}{"consumed":>12}{"cores a host":>14}{"audio s":>9}',
    f'  {"":12}{"examples/s":>16}{"examples/s":>12}{"busy reading":>14}{"each":>9}',
  ]
  for name, row in rows.items():
    busy = row.consumed / row.read / hosts
    lines.append(f'  {name:12}{row.read:16.0f}{row.consumed:12.0f}{busy:14.3f}{row.seconds:9.2f}')
  return '\n'.join(lines)


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
  random = np.random.default_rng(0)
  for index in range(8):
    soundfile.write(folder / f'part{index}.flac', np.roll(_music(16_000, 1), 997 * index), 16_000)
  examples = (
    _random_tokens(random, recipe.stages['soundstream'].model, recipe.stages['semantic'].model)
    for _ in range(64)
  )
  token_shards.write_shard(folder, 'train', 0, 1, examples)
  token_shards.write_manifest(folder, 'train', 1, {})
  parts = [folders.Part(str(folder / f'part{index % 8}.flac')) for index in range(EXAMPLES)]
  return {
    'waveform': folders.AudioFiles(parts, 16_000),
    'tokens': _Repeated(token_shards.TokenShards(folder, 'train')),
  }


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
    self._source = source

  def __len__(self) -> int:
    return EXAMPLES

  def __getitem__(self, i: int) -> Any:
    return self._source[i % len(self._source)]


def _row(config: Any, sources: dict[str, Any], examples: int, flops_per_second: float) -> Row:
  stage = config.make()
  source = sources['waveform' if 'waveform' in stage.batch else 'tokens']
  batches = pipeline.batches(source, stage.batch, batch_size=8, seed=0, num_threads=1)
  seconds = max(feature.shape[0] / feature.rate for feature in stage.batch.values() if feature.rate)
  return Row(_read_per_second(batches, examples), flops_per_second / _flops(config, stage), seconds)


def _read_per_second(batches: Iterator, count: int) -> float:
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

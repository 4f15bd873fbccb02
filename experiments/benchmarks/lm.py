"""Times a train step of a language model: attention in blocks against plain products, and GPT-2.

  python -m experiments.benchmark lm
  python -m experiments.benchmark lm --lengths=256x2,750x2,2250x1 --repeats=5

Sequences are semantic tokens in a Transformer of --width and --layers with random weights, float32,
no dropout; `LENGTHxROWS` are the shapes of batches. A step is loss, gradients, clipping and Adam.
Variants take turns in one process; ratios are medians over turns, of processor time, which is more
reliable on a shared machine. The memory of the compiled step excludes its arguments. The peer
is GPT-2 of `transformers` with the same sizes and tokens; without torch and transformers
(tests/requirements-oracle.txt) only our variants are timed.
"""

import argparse
from collections.abc import Callable
from unittest import mock

import jax
import numpy as np

from audiolm_jax.errors import UserError
from audiolm_jax.nn import attention
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.stages import semantic
from audiolm_jax.training import optimizers

from ..cli import command_line
from . import peers
from .timing import in_turns, train_step

CLUSTERS = 1024
OPTIMIZER = optimizers.OptimizerConfig(learning_rate=3e-4, clip_norm=0.5)


def add_arguments(parser: argparse.ArgumentParser):
  parser.add_argument(
    '--lengths',
    default='750x2,2250x1',
    metavar='LENGTHxROWS,...',
    help='tokens and rows of each batch (750x2,2250x1)',
  )
  parser.add_argument('--width', type=command_line.COUNT, default=512, help='of the model (512)')
  parser.add_argument(
    '--layers', type=command_line.COUNT, default=6, help='layers of the Transformer (6)'
  )
  parser.add_argument('--heads', type=command_line.COUNT, default=8, help='attention heads (8)')
  parser.add_argument(
    '--repeats', type=command_line.COUNT, default=3, help='turns, after one to warm up (3)'
  )


def run(args: argparse.Namespace) -> str:
  shapes = [_shape(text) for text in args.lengths.split(',')]
  config = TransformerConfig(
    num_layers=args.layers,
    num_heads=args.heads,
    width=args.width,
    mlp_width=4 * args.width,
    dropout_rate=0.0,
    dtype='float32',
    remat=False,
  )
  lines = [
    f'train step, {args.layers} layers of width {args.width}, {jax.devices()[0].device_kind}'
  ]
  if not peers.installed():
    lines.append(peers.MISSING)
  lines.append(f'{"tokens x rows":16}{"variant":18}{"seconds":>9}{"ratio":>8}{"memory, MiB":>13}')
  for length, rows in shapes:
    blocks, memory = ours(config, length, rows)
    with mock.patch.object(attention, 'block_size', lambda *args: None):
      plain, plain_memory = ours(config, length, rows)
    steps, memories = {'blocks': blocks, 'plain': plain}, {'blocks': memory, 'plain': plain_memory}
    if peers.installed():
      steps['GPT-2'] = peers.train_step(config, CLUSTERS, length, rows, OPTIMIZER)
    seconds, ratios = in_turns(steps, args.repeats)
    for name in steps:
      shown = f'{memories[name] / 2**20:13.0f}' if name in memories else ''
      shape = f'{length}x{rows}'
      lines.append(f'{shape:16}{name:18}{seconds[name]:9.3f}{ratios[name]:8.2f}{shown}')
  return '\n'.join(lines)


def _shape(text: str) -> tuple[int, int]:
  try:
    length, rows = map(int, text.split('x'))
  except ValueError:
    length = rows = 0
  if length < 1 or rows < 1:
    raise UserError(f'--lengths: {text!r} is not LENGTHxROWS, as in 750x2')
  return length, rows


def ours(config: TransformerConfig, length: int, rows: int) -> tuple[Callable[[], None], int]:
  """Returns a function that runs a train step, and the bytes it needs beyond its arguments."""
  stage = semantic.Config(
    crop_seconds=length / semantic.Config.semantic_rate,
    num_clusters=CLUSTERS,
    deduplicate=False,
    transformer=config,
  ).make()
  tokens_BS = np.random.default_rng(0).integers(0, CLUSTERS, (rows, length), np.int32)
  return train_step(stage, OPTIMIZER, {'semantic': tokens_BS})

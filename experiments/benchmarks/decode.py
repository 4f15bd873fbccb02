"""Times decoding with a cache: semantic tokens, coarse tokens after semantic ones, and GPT-2.

  python -m experiments.benchmark decode
  python -m experiments.benchmark decode --rows=1,8,64 --steps=32

Two Transformers of --width and --layers with random weights, in float32 on CPUs, which emulate
bfloat16: one draws 250 semantic tokens per row, the other 400 coarse tokens (100 frames of 4
levels) after 50 semantic ones, without and with a depth model, which has half of the width and a
third of the layers. Times --steps steps, rounded up to whole frames, after compilation: all
frames take the same time, because the cache has its full size from the start. Decoders take turns
in one process; times are medians of processor time. The peer is GPT-2 of `transformers` with the
same sizes, whose cache grows; it draws all tokens. Without torch and transformers
(tests/requirements-oracle.txt) it is not timed.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from audiolm_jax import decoding
from audiolm_jax.errors import UserError
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.sampling import Rule
from audiolm_jax.stages import coarse, semantic
from audiolm_jax.training import sharding

from ..cli import command_line
from . import peers
from .timing import in_turns

SEMANTIC_TOKENS = 250
PREFIX, LEVELS, FRAMES = 50, 4, 100


def add_arguments(parser: argparse.ArgumentParser):
  parser.add_argument('--rows', default='1,8,64', help='rows decoded at once (1,8,64)')
  parser.add_argument(
    '--steps', type=command_line.COUNT, default=32, help='number of timed tokens per row (32)'
  )
  parser.add_argument('--width', type=command_line.COUNT, default=512, help='of the models (512)')
  parser.add_argument(
    '--layers', type=command_line.COUNT, default=6, help='layers of the Transformer (6)'
  )
  parser.add_argument('--heads', type=command_line.COUNT, default=8, help='attention heads (8)')
  parser.add_argument(
    '--repeats', type=command_line.COUNT, default=3, help='turns, after one to warm up (3)'
  )


def run(args: argparse.Namespace) -> str:
  try:
    rows_of_runs = [int(text) for text in args.rows.split(',')]
  except ValueError:
    rows_of_runs = [0]
  if min(rows_of_runs) < 1:
    raise UserError(f'--rows={args.rows}: give positive numbers, as in 1,8,64')
  config = TransformerConfig(
    num_layers=args.layers,
    num_heads=args.heads,
    width=args.width,
    mlp_width=4 * args.width,
    dtype='float32' if jax.default_backend() == 'cpu' else 'bfloat16',
  )
  depth = dataclasses.replace(
    config,
    num_layers=-(-args.layers // 3),
    width=config.width // 2,
    mlp_width=config.mlp_width // 2,
  )
  all_steps = -(-args.steps // LEVELS) * LEVELS
  with_depth = functools.partial(coarse_decoder, depth=depth)
  lines = [f'decoding, {args.layers} layers of width {args.width}, {jax.devices()[0].device_kind}']
  if not peers.installed():
    lines.append(peers.MISSING)
  lines.append(f'{"rows":>4}  {"tokens":28}{"ms a step":>10}{"tokens/s":>10}{"s for all":>10}')
  for rows in rows_of_runs:
    decoders, counts = {}, {}
    for name, prefix, new, one in (
      (f'{SEMANTIC_TOKENS} semantic', 0, SEMANTIC_TOKENS, semantic_decoder),
      (f'{FRAMES * LEVELS} coarse after {PREFIX}', PREFIX, FRAMES * LEVELS, coarse_decoder),
      ('the same, depth model', PREFIX, FRAMES * LEVELS, with_depth),
    ):
      decoders[name], counts[name] = one(config, rows, min(all_steps, new)), (all_steps, new)
      if peers.installed() and one is not with_depth:
        vocabulary = semantic.Config.num_clusters
        own = f'{name}, GPT-2'
        decoders[own] = peers.decoder(config, vocabulary, max(prefix, 1), new, rows)
        counts[own] = (new, new)
    seconds, _ = in_turns(decoders, args.repeats)
    for name, (steps, new) in counts.items():
      step = seconds[name] / min(steps, new)
      lines.append(f'{rows:4}  {name:28}{1000 * step:10.2f}{rows / step:10.0f}{new * step:10.2f}')
  return '\n'.join(lines)


def semantic_decoder(config: TransformerConfig, rows: int, steps: int) -> Callable[[], np.ndarray]:
  """Returns a function that draws `steps` of 250 semantic tokens per row."""
  stage = semantic.Config(
    crop_seconds=SEMANTIC_TOKENS / semantic.Config.semantic_rate,
    deduplicate=False,
    transformer=config,
  )
  return _decoder(stage, np.zeros((rows, 0, 1), np.int32), SEMANTIC_TOKENS, steps)


def coarse_decoder(
  config: TransformerConfig, rows: int, steps: int, depth: TransformerConfig | None = None
) -> Callable[[], np.ndarray]:
  """Returns a function that draws `steps` of 400 coarse tokens per row, after 50 semantic ones."""
  stage = coarse.Config(
    crop_seconds=FRAMES / coarse.Config.frame_rate,
    num_quantizers=LEVELS,
    deduplicate=False,
    transformer=config,
    depth=depth,
  )
  return _decoder(stage, np.zeros((rows, PREFIX, 1), np.int32), FRAMES * LEVELS, steps)


def _decoder(stage, prefix_BPN: np.ndarray, capacity: int, steps: int):
  model = stage.language_model
  params = jax.jit(lambda key: sharding.unbox(stage.make().init(key).params))(jax.random.key(0))
  prompt_BFQ = np.zeros((len(prefix_BPN), 0, model.vocabulary.target_levels), np.int32)

  def decode():
    return np.asarray(
      decoding.sample_targets(
        model,
        params,
        jax.random.key(0),
        prefix_BPN,
        prompt_BFQ,
        steps,
        Rule(0.8),
        capacity=capacity,
      )
    )

  return decode

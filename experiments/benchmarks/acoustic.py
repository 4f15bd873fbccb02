"""Times the acoustic stages for one clip: coarse and fine language models against SoundStorm.

  python -m experiments.benchmark acoustic
  python -m experiments.benchmark acoustic --recipe=tiny --seconds=4

Uses the models of the recipe (librilight: the papers' sizes) with random weights and batch 1, after
compilation. Times --steps of the language models and --passes of SoundStorm and extrapolates to all
(0 runs all): steps use a cache of fixed size and passes a window of fixed size, so that all take
the same time. As in generation.py, the coarse model runs in windows, and the fine model's chunks
form one batch.

Reports wall time and processor time, which is more reliable on a shared machine. nan: the machine
was too busy for the given --steps.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import decoding
from audiolm_jax.errors import UserError
from audiolm_jax.sampling import ParallelRule, Rule
from audiolm_jax.stages import soundstorm, soundstream
from audiolm_jax.tokens import PAD
from audiolm_jax.training import sharding

from .. import recipe as recipe_lib
from ..cli import command_line, recipe_pages


class Seconds(NamedTuple):
  """Holds wall time and the time of all processors of this host, in seconds."""

  wall: float
  processors: float


class Timing(NamedTuple):
  """Holds the projected time, the total number of passes, and the number measured."""

  seconds: Seconds
  passes: int
  measured: int


def add_arguments(parser: argparse.ArgumentParser):
  parser.add_argument(
    '--recipe', default='librilight', help=f'one of: {", ".join(recipe_pages.names())} (librilight)'
  )
  parser.add_argument('--seconds', type=command_line.SECONDS, default=30.0, help='of audio (30)')
  parser.add_argument(
    '--steps',
    type=command_line.COUNT_OR_ALL,
    default=64,
    help='number of timed passes of each language model; 0: all (64)',
  )
  parser.add_argument(
    '--passes',
    type=command_line.COUNT_OR_ALL,
    default=0,
    help='number of timed passes of SoundStorm; 0: all (0)',
  )
  parser.add_argument(
    '--dtype',
    help='dtype of activations (float32 on CPUs, which emulate bfloat16; else that of the recipe)',
  )


def run(args: argparse.Namespace) -> str:
  recipe = recipe_lib.load(args.recipe)
  if missing := [name for name in ('coarse', 'fine', 'soundstorm') if name not in recipe.stages]:
    raise UserError(
      f'--recipe={args.recipe} has no {" and no ".join(missing)}: choose librilight or tiny'
    )
  if 'soundstream' in recipe.imports:
    raise UserError(
      f'--recipe={args.recipe} imports its codec, which has no random weights: choose librilight '
      'or tiny'
    )
  if args.seconds * recipe.stages['coarse'].model.semantic_rate < 1:
    raise UserError(f'--seconds={args.seconds}: must be at least one semantic frame')
  dtype = args.dtype or ('float32' if jax.default_backend() == 'cpu' else None)
  coarse, fine, parallel = (
    _in_dtype(recipe.stages[name].model, dtype) for name in ('coarse', 'fine', 'soundstorm')
  )
  semantic_frames = round(args.seconds * coarse.semantic_rate)
  parts = {
    'coarse': time_coarse(coarse, semantic_frames, recipe.evaluation.carry_seconds, args.steps),
    'fine': time_fine(fine, coarse.frames_per_semantic * semantic_frames, args.steps),
    'SoundStorm': time_soundstorm(
      parallel, semantic_frames, recipe.sampling.soundstorm, args.passes
    ),
    'codec decoder': time_decoder(
      recipe.stages['soundstream'].model, coarse.frames_per_semantic * semantic_frames
    ),
  }
  return table(
    parts,
    args.seconds,
    f'{args.recipe}, {dtype or "dtype of the recipe"}, {jax.devices()[0].device_kind}',
  )


def table(parts: dict[str, Timing], seconds: float, where: str) -> str:
  """Returns timings and ratios as text."""
  both = Seconds(*(sum(pair) for pair in zip(parts['coarse'].seconds, parts['fine'].seconds)))
  ratios = [mine / theirs for mine, theirs in zip(both, parts['SoundStorm'].seconds)]
  factor = (parts['SoundStorm'].seconds.wall + parts['codec decoder'].seconds.wall) / seconds
  lines = [f'{seconds:g} s of audio, one clip ({where})']
  lines.append(f'{"":24}{"wall":>10}{"processors":>12}{"passes":>10}{"measured":>10}')
  for name, part in parts.items():
    lines.append(
      f'{name:24}{part.seconds.wall:10.3f}{part.seconds.processors:12.3f}'
      f'{part.passes:10}{part.measured:10}'
    )
  lines.append(f'{"coarse + fine":24}{both.wall:10.3f}{both.processors:12.3f}')
  lines.append(f'coarse + fine over SoundStorm: {ratios[0]:.2f} (processors: {ratios[1]:.2f})')
  lines.append(f'real-time factor of SoundStorm and decoder: {factor:.3f}')
  return '\n'.join(lines)


def time_coarse(config, semantic_frames: int, carry_seconds: float, steps: int) -> Timing:
  """Times the coarse model: windows of its crop, each after the first with a prompt.

  Prompts of `carry_seconds`, which lengthen the later windows' caches, are not timed, in favour of
  the language models.
  """
  ratio, crop = config.frames_per_semantic, config.num_frames
  frames, carry = ratio * semantic_frames, ratio * round(carry_seconds * config.semantic_rate)
  new = min(frames, crop)
  num_windows = 1 + -(-(frames - new) // (crop - carry))
  prefix_BPN = np.zeros((1, new // ratio, 1), np.int32)
  return _time_language_model(config, prefix_BPN, new, frames, num_windows, steps)


def time_fine(config, frames: int, steps: int) -> Timing:
  """Times the fine model: chunks of its crop in one batch."""
  new = min(frames, config.num_frames)
  rows = decoding.row_bucket(-(-frames // new))
  return _time_language_model(
    config, np.zeros((rows, new, config.num_coarse), np.int32), new, new, 1, steps
  )


def _time_language_model(
  config, prefix_BPN, new: int, frames: int, num_windows: int, steps: int
) -> Timing:
  """Times `num_windows` windows of `frames` frames in total, with up to `new` frames each."""
  model = config.language_model
  params, levels = _random_params(config), model.vocabulary.target_levels
  prompt_BFQ = np.zeros((len(prefix_BPN), 0, levels), np.int32)
  arguments = (params, jax.random.key(0), prefix_BPN, prompt_BFQ)
  compiled = decoding.sample_targets.lower(
    model, *arguments, 0, Rule(0.8), capacity=new * levels
  ).compile()
  draw = lambda number: _seconds(lambda: compiled(*arguments, number, Rule(0.8)))
  draw(1)
  few, many = 1, new * levels if steps == 0 else min(new * levels, 1 + steps)
  begun, whole = draw(few), draw(many)
  # On a busy machine few steps may take longer than many: report nan instead of a wrong number.
  one_step = lambda started, ended: (ended - started) / (many - few) if ended > started else np.nan
  everything = lambda started, ended: (
    num_windows * max(started - few * one_step(started, ended), 0)
    + frames * levels * one_step(started, ended)
  )
  return Timing(Seconds(*map(everything, begun, whole)), frames * levels, many)


def time_soundstorm(config, semantic_frames: int, how: ParallelRule, passes: int) -> Timing:
  """Times `passes` passes (0: all) of one window, multiplied by the clip's number of windows."""
  params, frames = _random_params(config), min(semantic_frames, config.num_semantic)
  num_windows = -(-semantic_frames // frames)
  semantic_BS = np.zeros((1, frames), np.int32)
  codes_BFQ = np.full(
    (1, config.frames_per_semantic * frames, config.num_quantizers), PAD, np.int32
  )
  total = sum(how.iterations) + how.iterations[-1] * (config.num_quantizers - len(how.iterations))
  if passes == 0:
    arguments = (params, jax.random.key(0), semantic_BS, codes_BFQ, how.rule, how.noise)
    compiled = decoding.fill_window.lower(config, *arguments, iterations=how.iterations).compile()
    seconds = _seconds(lambda: compiled(*arguments))
  else:
    arguments = (params, semantic_BS, codes_BFQ, 0)
    compiled = jax.jit(_most_probable, static_argnums=0).lower(config, *arguments).compile()
    compiled(*arguments)
    measured = _seconds(lambda: [compiled(*arguments) for _ in range(passes)])
    seconds = Seconds(*(total * value / passes for value in measured))
  seconds = Seconds(*(num_windows * value for value in seconds))
  return Timing(seconds, num_windows * total, passes or total)


def _most_probable(config, params, semantic_BS, codes_BFQ, level):
  return jnp.argmax(soundstorm.logits(config, params, semantic_BS, codes_BFQ, level), axis=-1)


def time_decoder(config: soundstream.Config, frames: int) -> Timing:
  variables = jax.jit(lambda key: sharding.unbox(config.make().init(key)))(jax.random.key(0))
  codes_BFQ = jnp.zeros((1, frames, config.num_quantizers), jnp.int32)
  compiled = (
    jax.jit(soundstream.decode, static_argnums=0).lower(config, variables, codes_BFQ).compile()
  )
  compiled(variables, codes_BFQ)
  return Timing(_seconds(lambda: compiled(variables, codes_BFQ)), 1, 1)


def _random_params(config):
  return jax.jit(lambda key: sharding.unbox(config.make().init(key).params))(jax.random.key(0))


def _in_dtype(config, dtype: str | None):
  """Returns a stage's config with activations in `dtype`; None leaves it unchanged."""
  if dtype is None:
    return config
  if hasattr(config, 'transformer'):
    return dataclasses.replace(
      config, transformer=dataclasses.replace(config.transformer, dtype=dtype)
    )
  return dataclasses.replace(config, dtype=dtype)


def _seconds(function: Callable[[], object]) -> Seconds:
  wall, processors = time.perf_counter(), time.process_time()
  jax.block_until_ready(function())
  return Seconds(time.perf_counter() - wall, time.process_time() - processors)

"""Seconds that the acoustic stages take for one clip: coarse and fine language models, and SoundStorm in their place.

  python -m experiments.benchmark acoustic
  python -m experiments.benchmark acoustic --recipe=tiny --seconds=4

The models of the recipe (librilight: the papers' sizes) with random weights, batch 1, compilation left out. SoundStorm
and the codec's decoder are timed on the whole clip. So are the language models with --tokens=0; otherwise each draws
`tokens` steps after a few, and the time of a step is taken for all of them: a step attends to a cache of fixed size, so
that all take the same time. As in generation.py, the fine model's chunks are one batch, and the coarse model goes in windows.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import windows
from audiolm_jax.sampling import ParallelRule, Rule
from audiolm_jax.stages import soundstream
from audiolm_jax.tokens import PAD
from audiolm_jax.training import sharding
from experiments import recipe as recipe_lib

WARM_STEPS = 4


class Timing(NamedTuple):
  """What a part takes: seconds in all, how many passes through the model these are, and how many were run."""

  seconds: float
  passes: int
  measured: int


def add_arguments(parser: argparse.ArgumentParser):
  parser.add_argument('--recipe', default='librilight', help=f'one of: {", ".join(recipe_lib.names())} (librilight)')
  parser.add_argument('--seconds', type=float, default=30.0, help='of audio (30)')
  parser.add_argument('--tokens', type=int, default=64, help='steps to time of each language model; 0: all (64)')
  parser.add_argument(
      '--dtype', help='of activations (float32 on CPUs, which only emulate bfloat16; elsewhere what the recipe says)'
  )


def run(args: argparse.Namespace) -> str:
  recipe = recipe_lib.load(args.recipe)
  if missing := [name for name in ('coarse', 'fine', 'soundstorm') if getattr(recipe, name) is None]:
    raise ValueError(f'--recipe={args.recipe} has no {" and no ".join(missing)}: choose librilight or tiny')
  if args.seconds * recipe.coarse.model.semantic_rate < 1 or args.tokens < 0:
    raise ValueError(f'--seconds={args.seconds} --tokens={args.tokens}: ask for at least one frame, and no fewer than 0')
  dtype = args.dtype or ('float32' if jax.default_backend() == 'cpu' else None)
  coarse, fine, soundstorm = (_in_dtype(getattr(recipe, name).model, dtype) for name in ('coarse', 'fine', 'soundstorm'))
  semantic_frames = round(args.seconds * coarse.semantic_rate)
  parts = {
      'coarse': time_coarse(coarse, semantic_frames, recipe.evaluation.carry_seconds, args.tokens),
      'fine': time_fine(fine, semantic_frames, args.tokens),
      'SoundStorm': time_soundstorm(soundstorm, semantic_frames, recipe.sampling.soundstorm),
      'codec decoder': time_decoder(recipe.soundstream.model, 2 * semantic_frames),
  }
  return table(parts, args.seconds, f'{args.recipe}, {dtype or "dtype of the recipe"}, {jax.devices()[0].device_kind}')


def table(parts: dict[str, Timing], seconds: float, where: str) -> str:
  """Returns the timings and ratios as text."""
  lines = [f'{seconds:g} s of audio, one clip ({where})', f'{"":24}{"seconds":>10}{"passes":>10}{"measured":>10}']
  rows = parts | {'coarse + fine': Timing(parts['coarse'].seconds + parts['fine'].seconds, 0, 0)}
  for name, part in rows.items():
    lines.append(f'{name:24}{part.seconds:10.3f}' + (f'{part.passes:10}{part.measured:10}' if part.passes else ''))
  ratio = rows['coarse + fine'].seconds / parts['SoundStorm'].seconds
  factor = (parts['SoundStorm'].seconds + parts['codec decoder'].seconds) / seconds
  return '\n'.join([*lines, f'coarse + fine over SoundStorm: {ratio:.2f}', f'real-time factor of SoundStorm + decoder: {factor:.3f}'])


def time_coarse(config, semantic_frames: int, carry_seconds: float, tokens: int) -> Timing:
  """Times the coarse model: all frames in windows of its crop, each after the first with a prompt of `carry_seconds`.

  The prompts, which make the later windows' caches longer, are left out: in favour of the language models.
  """
  frames, crop, carry = 2 * semantic_frames, 2 * config.num_semantic, 2 * round(carry_seconds * config.semantic_rate)
  new = min(frames, crop)
  num_windows = 1 + -(-(frames - new) // (crop - carry))
  prefix_BPN = np.zeros((1, new // 2, 1), np.int32)
  return _time_language_model(config, prefix_BPN, new, frames, num_windows, tokens)


def time_fine(config, semantic_frames: int, tokens: int) -> Timing:
  """Times the fine model: chunks of its crop, all in one batch."""
  frames = 2 * semantic_frames
  new = min(frames, config.num_frames)
  rows = windows.row_bucket(-(-frames // new))
  return _time_language_model(config, np.zeros((rows, new, config.num_coarse), np.int32), new, new, 1, tokens)


def _time_language_model(config, prefix_BPN, new: int, frames: int, num_windows: int, tokens: int) -> Timing:
  """Times `num_windows` windows that draw `frames` frames in all, by a program that draws up to `new` of them."""
  model = config.language_model
  params, levels = _random_params(config), model.vocabulary.target_levels
  prompt_BFQ = np.zeros((len(prefix_BPN), 0, levels), np.int32)
  arguments = (params, jax.random.key(0), prefix_BPN, prompt_BFQ)
  compiled = windows.sample_targets.lower(model, *arguments, 0, Rule(0.8), capacity=new * levels).compile()
  draw = lambda steps: _seconds(lambda: compiled(*arguments, steps, Rule(0.8)))
  draw(1)
  most = new * levels
  measured = most if tokens == 0 else min(most, WARM_STEPS + tokens)
  whole, begun = draw(measured), draw(min(WARM_STEPS, measured - 1))
  step = (whole - begun) / (measured - min(WARM_STEPS, measured - 1))
  beginning = max(begun - min(WARM_STEPS, measured - 1) * step, 0.0)
  passes = frames * levels
  return Timing(num_windows * beginning + passes * step, passes, measured)


def time_soundstorm(config, semantic_frames: int, how: ParallelRule) -> Timing:
  """Times the whole decoding, in as many windows as the clip takes."""
  params, frames = _random_params(config), min(semantic_frames, config.num_semantic)
  semantic_BS = np.zeros((1, frames), np.int32)
  codes_BFQ = np.full((1, 2 * frames, config.num_quantizers), PAD, np.int32)
  arguments = (params, jax.random.key(0), semantic_BS, codes_BFQ, how.rule, how.noise)
  compiled = windows.fill_window.lower(config, *arguments, iterations=how.iterations).compile()
  num_windows = -(-semantic_frames // frames)
  passes = sum(how.iterations) + how.iterations[-1] * (config.num_quantizers - len(how.iterations))
  return Timing(num_windows * _seconds(lambda: compiled(*arguments)), num_windows * passes, passes)


def time_decoder(config: soundstream.Config, frames: int) -> Timing:
  variables = jax.jit(lambda key: sharding.unbox(config.make().init(key)))(jax.random.key(0))
  codes_BFQ = jnp.zeros((1, frames, config.num_quantizers), jnp.int32)
  compiled = jax.jit(soundstream.decode, static_argnums=0).lower(config, variables, codes_BFQ).compile()
  compiled(variables, codes_BFQ)
  return Timing(_seconds(lambda: compiled(variables, codes_BFQ)), 1, 1)


def _random_params(config):
  return jax.jit(lambda key: sharding.unbox(config.make().init(key).params))(jax.random.key(0))


def _in_dtype(config, dtype: str | None):
  """Returns the config of a stage with activations in `dtype`; None: as they are."""
  if dtype is None:
    return config
  if hasattr(config, 'transformer'):
    return dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, dtype=dtype))
  return dataclasses.replace(config, dtype=dtype)


def _seconds(function: Callable[[], object]) -> float:
  started = time.perf_counter()
  jax.block_until_ready(function())
  return time.perf_counter() - started

"""Measures all stages on this machine's accelerator, within --minutes.

  python -m experiments.benchmark gpu
  python -m experiments.benchmark gpu --recipe=tiny --batch=2 --seconds=4   (a trial on a CPU)

First a train step of each stage, with random weights and zeros as data: seconds, examples per
second, memory beyond state and data, operations per second (products and convolutions of the model,
without recomputation), and their share of the peak (MFU). Then `benchmark acoustic`: milliseconds a
token of the coarse and fine models, and SoundStorm's real-time factor. Measurements that do not
start within --minutes are named instead.
Peaks are those of dense bfloat16 products, from NVIDIA's data sheets; others by --peak.
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np

from audiolm_jax.costs import flops
from audiolm_jax.errors import UserError
from audiolm_jax.training import sharding

from .. import recipe as recipe_lib
from ..cli import command_line
from . import acoustic
from .timing import in_turns, train_step

# Dense bfloat16 (T4: float16) operations per second, by a part of the device's name.
PEAKS = {'H200': 989e12, 'H100': 989e12, 'A100': 312e12, 'L4': 121e12, 'T4': 65e12}


def add_arguments(parser: argparse.ArgumentParser):
  acoustic.add_arguments(parser)
  parser.add_argument(
    '--stages', metavar='NAME,...', help='stages to train; default: all that the recipe trains'
  )
  parser.add_argument(
    '--batch', type=command_line.COUNT, default=16, help='examples in a train step (16)'
  )
  parser.add_argument(
    '--repeats', type=command_line.COUNT, default=3, help='timed train steps; the median counts (3)'
  )
  parser.add_argument(
    '--peak', type=command_line.COUNT, metavar='TFLOPS', help='peak of the device, 1e12 per second'
  )
  parser.add_argument(
    '--minutes', type=command_line.COUNT, default=9, help='starts no part after so many (9)'
  )


def run(args: argparse.Namespace) -> str:
  recipe = recipe_lib.load(args.recipe)
  names = list(recipe.trained) if args.stages is None else args.stages.split(',')
  if unknown := [name for name in names if name not in recipe.trained]:
    raise UserError(
      f'--stages={args.stages}: {", ".join(unknown)} is not among {", ".join(recipe.trained)}'
    )
  kind = jax.devices()[0].device_kind
  peak = 1e12 * args.peak if args.peak else peak_of(kind)
  parts: dict[str, Callable[[], str]] = {
    name: lambda name=name: _train_line(recipe.trained[name], name, args, peak) for name in names
  }
  parts['acoustic'] = lambda: acoustic.run(args)
  lines = [f'{args.recipe}, {kind}, batches of {args.batch}, MFU of {_shown(peak)}']
  lines.append(
    f'{"train step":14}{"seconds":>10}{"examples/s":>12}{"GiB":>10}{"TFLOP/s":>10}{"MFU":>8}'
  )
  return '\n'.join([*lines, *within(parts, 60 * args.minutes)])


def within(parts: dict[str, Callable[[], str]], seconds: float) -> list[str]:
  """Returns the results of the parts that start within `seconds`, and a line for each other one."""
  started, lines = time.monotonic(), []
  for name, part in parts.items():
    late = time.monotonic() - started >= seconds
    lines.append(f'{name}: not run, because the time is over (--minutes)' if late else part())
  return lines


def peak_of(kind: str) -> float | None:
  """Returns the peak of a device in operations per second; None if it is not known."""
  return next((peak for name, peak in PEAKS.items() if name in kind), None)


def _shown(peak: float | None) -> str:
  return 'an unknown peak (give --peak)' if peak is None else f'{peak / 1e12:g} TFLOP/s'


def _train_line(stage_recipe, name: str, args: argparse.Namespace, peak: float | None) -> str:
  config = stage_recipe.model
  stage, plain = config.make(), flops.without_remat(config).make()
  batch = {
    name: np.zeros((args.batch, *feature.shape), feature.dtype)
    for name, feature in stage.batch.items()
  }
  variables = sharding.unbox(jax.eval_shape(lambda: stage.init(jax.random.key(0))))
  loss = jax.value_and_grad(plain.loss, has_aux=True)
  work = flops.count(
    lambda *args: loss(*args, jax.random.key(0)), variables.params, variables.state, batch
  )
  step, memory = train_step(stage, stage_recipe.train.optimizer, batch)
  seconds = in_turns({name: step}, args.repeats, time.perf_counter)[0][name]
  share = '' if peak is None else f'{work / seconds / peak:.1%}'
  return (
    f'{name:14}{seconds:10.4f}{args.batch / seconds:12.1f}{memory / 2**30:10.2f}'
    f'{work / seconds / 1e12:10.3f}{share:>8}'
  )

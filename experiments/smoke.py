"""Checks a machine within minutes: all programs on noise, then the attention kernels.

  python -m experiments.smoke
  python -m experiments.smoke --workdir=/mnt/shared/smoke

Trains each stage for six steps and saves it; encodes; continues a prompt by both acoustic paths;
and compares the attention kernels with plain attention, in bfloat16. On a TPU, also predicts the
time of each step by the compiler, as experiments.compile does. Prints a report, which is also
written to WORKDIR/smoke.json: paste it into an issue if something is wrong.
"""

import json
import math
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import audio, files
from audiolm_jax.errors import UserError
from audiolm_jax.nn import attention, block_attention
from audiolm_jax.nn.transformer import relative_buckets
from audiolm_jax.training import metrics_writer

from . import recipe as recipe_lib
from .cli import command_line, parallel

RATE, PROMPT_SECONDS, SECONDS = 16_000, 2.0, 1.0
TOLERANCE = 0.02  # relative; one rounding to bfloat16 has 2**-9, and errors of several add up
# Topologies that experiments.compile can predict, by the name of the device.
TOPOLOGIES = {'TPU v5 lite': 'v5e:1x1'}


def main():
  parser = command_line.parser(__doc__)
  parser.set_defaults(recipe='smoke', workdir=pathlib.Path('runs/smoke'))
  args = parser.parse_args()
  recipe = recipe_lib.load(args.recipe, args.overrides)
  flags = [f'--recipe={args.recipe}', *(f'--set={text}' for text in args.overrides)]
  command_line.check_folder(args.workdir, '--workdir')
  started = time.monotonic()
  # Before this process uses the device, which two processes cannot share.
  seconds = run_programs(args.workdir, flags)
  report = {
    'machine': machine(),
    'stages': {name: stage_report(args.workdir / name) for name in recipe.trained},
    'generate_seconds': seconds,
    'kernel_errors': kernel_errors(interpret=jax.default_backend() != 'tpu'),
  }
  if topology := TOPOLOGIES.get(jax.devices()[0].device_kind):
    for name, milliseconds in predicted_ms(args.workdir, flags, topology).items():
      report['stages'][name]['predicted_ms'] = milliseconds
  report['seconds'] = time.monotonic() - started
  files.write_text(args.workdir / 'smoke.json', json.dumps(report, indent=2) + '\n')
  print(table(report))
  if faults := found_faults(report):
    sys.exit(f'smoke: {"; ".join(faults)}')


def run_programs(workdir: pathlib.Path, flags: list[str]) -> dict[str, float]:
  """Trains, encodes and generates; returns the seconds of generation by each acoustic path."""
  flags = [f'--workdir={workdir}', *flags]
  parallel.run([('train', '--stage=all', *flags)], num_slots=1)
  prompt = workdir / 'prompt.wav'
  noise_T = np.random.default_rng(0).uniform(-0.5, 0.5, round(PROMPT_SECONDS * RATE))
  audio.save(prompt, noise_T, RATE, overwrite=True)
  seconds = {}
  for acoustic in ('autoregressive', 'soundstorm'):
    started = time.monotonic()
    output = f'--output={workdir / acoustic}'
    to_make = [f'--prompt={prompt}', f'--seconds={SECONDS}', f'--acoustic={acoustic}', output]
    parallel.run([('generate', *to_make, '--overwrite', *flags)], num_slots=1)
    seconds[acoustic] = time.monotonic() - started
  return seconds


def machine() -> dict[str, Any]:
  """Returns versions and devices."""
  device = jax.devices()[0]
  return {
    'jax': f'{jax.__version__}, {device.client.platform_version.splitlines()[0]}',
    'python': sys.version.split()[0],
    'devices': f'{jax.device_count()} x {device.device_kind}',
    'memory': (device.memory_stats() or {}).get('bytes_limit'),
  }


def stage_report(directory: pathlib.Path) -> dict[str, Any]:
  """Returns the losses of a stage's steps, and the milliseconds of its last step."""
  steps = [line for line in metrics_writer.read(directory).values() if 'loss' in line]
  if not steps:
    raise UserError(f'{directory} has no metrics of steps: delete the folder and start again')
  return {
    'losses': [line['loss'] for line in steps],
    'step_ms': 1e3 / steps[-1]['steps_per_second'],
  }


def predicted_ms(workdir: pathlib.Path, flags: list[str], topology: str) -> dict[str, float]:
  """Returns the milliseconds of a train step of each stage, predicted by experiments.compile."""
  report = workdir / 'compile.json'
  command = ('compile', '--stage=all', f'--topology={topology}', f'--json={report}', *flags)
  parallel.run([command], num_slots=1)
  reports = files.read_json(report, 'run the check again')
  return {one['stage']: 1e3 * one['step_seconds'] for one in reports}


def kernel_errors(*, interpret: bool, length: int = 300, heads: int = 2) -> dict[str, float]:
  """Compares the TPU kernels with plain attention: causal with a relative bias, bfloat16.

  Args:
    interpret: whether to run the kernels in Pallas' interpreter, on any device.
    length: sequence length; not a multiple of a block.
    heads: number of heads.

  Returns:
    Relative errors (norm of the difference over norm) of the output, and of the gradients of
      queries, keys, values and bias.
  """
  keys = jax.random.split(jax.random.key(0), 5)
  shape = (2, length, heads, 64)
  query, key, value, weight = (jax.random.normal(k, shape, jnp.bfloat16) for k in keys[:4])
  table_NH = jax.random.normal(keys[4], (32, heads))
  position_L = jnp.arange(length)
  valid_BL = position_L >= jnp.array([[0], [length // 3]])
  bucket = lambda distance: relative_buckets(distance, 32, 128)

  def plain(query, key, value, table_NH):
    distance_LN = position_L[:, None] - position_L
    bias = table_NH[bucket(distance_LN)].transpose(2, 0, 1)[None]
    mask = (distance_LN >= 0) & valid_BL[:, None, None]
    exact = (x.astype(jnp.float32) for x in (query, key, value))
    with jax.default_matmul_precision('highest'):
      return attention.attend(*exact, bias=bias, mask=mask)

  def blocks(query, key, value, table_NH):
    tiles = block_attention.bias_tiles(table_NH, bucket, block_attention.block_size(length))
    return block_attention.attend(query, key, value, valid_BL, tiles, interpret=interpret)

  def outputs(function):
    def total(*arguments):
      output = function(*arguments).astype(jnp.float32)
      output = jnp.where(valid_BL[..., None, None], output, 0)  # padding has no meaning
      return (output * weight).sum(), output

    grads, output = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True))(
      query, key, value, table_NH
    )
    return [output, *grads]

  names = ('output', 'queries', 'keys', 'values', 'bias')
  error = lambda got, want: float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))
  flat = lambda arrays: [jnp.ravel(x).astype(jnp.float32) for x in arrays]
  return dict(zip(names, map(error, flat(outputs(blocks)), flat(outputs(plain)))))


def found_faults(report: dict[str, Any]) -> list[str]:
  """Returns what is wrong in a report; []: nothing."""
  faults = [
    f'{name}: the loss is not finite'
    for name, stage in report['stages'].items()
    if not all(map(math.isfinite, stage['losses']))
  ]
  return faults + [
    f'the kernels differ from plain attention in {name} by {error:.1%}'
    for name, error in report['kernel_errors'].items()
    if not error <= TOLERANCE
  ]


def table(report: dict[str, Any]) -> str:
  """Returns a report as text."""
  lines = [f'{name}: {value}' for name, value in report['machine'].items()]
  for name, stage in report['stages'].items():
    predicted = f', predicted {stage["predicted_ms"]:.2f} ms' if 'predicted_ms' in stage else ''
    lines.append(
      f'{name}: loss {stage["losses"][0]:.3f} to {stage["losses"][-1]:.3f}, last step '
      f'{stage["step_ms"]:.2f} ms{predicted}'
    )
  lines += [f'generate {path}: {s:.0f} s' for path, s in report['generate_seconds'].items()]
  errors = ', '.join(f'{name} {error:.2%}' for name, error in report['kernel_errors'].items())
  return '\n'.join([*lines, f'kernels differ by: {errors}', f'total: {report["seconds"]:.0f} s'])


if __name__ == '__main__':
  command_line.run(main)

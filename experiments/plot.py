"""Draws the losses of a run's stages over their steps, as one PNG.

  python -m experiments.plot
  python -m experiments.plot --workdir=runs/mine --stage=semantic --stage=coarse --output=losses.png

Reads metrics.jsonl of each stage, during its training or afterwards, and prints the last training
and held-out loss. Needs matplotlib: the extra `plot`.
"""

import argparse
import importlib.util
import pathlib

from audiolm_jax.errors import UserError, install

from .cli import command_line

PICTURE = 'curves.png'
LOG = 'metrics.jsonl'


def main():
  args = _parser().parse_args()
  logs = find(args.workdir, args.stages)
  output = args.output or args.workdir / PICTURE
  # A picture of its own name in the workdir is drawn again, as by full_run.
  command_line.check_files([output], '--output', overwrite=args.overwrite or args.output is None)
  if importlib.util.find_spec('matplotlib') is None:
    raise UserError(f'curves are drawn with matplotlib, which is not installed: {install("plot")}')
  from .evaluations import pictures  # imports jax and matplotlib, for which errors need not wait

  output.parent.mkdir(parents=True, exist_ok=True)
  last = pictures.save_training_curves(output, logs)
  for stage, losses in last.items():
    print(f'{stage}: ' + ', '.join(f'{name} {loss:.4g}' for name, loss in losses.items()))
  print(output)


def _parser() -> argparse.ArgumentParser:
  parser = command_line.parser(__doc__, recipe=False)
  parser.add_argument(
    '--stage', action='append', default=[], dest='stages', help='may be repeated (all stages)'
  )
  parser.add_argument(
    '--output', type=command_line.path, metavar='FILE', help=f'(WORKDIR/{PICTURE})'
  )
  parser.add_argument('--overwrite', action='store_true', help='replace an existing --output')
  return parser


def find(workdir: pathlib.Path, stages: list[str]) -> dict[str, pathlib.Path]:
  """Returns the metrics file of each stage, of all in order of their names if `stages` is empty.

  Raises:
    UserError: if a stage has none, naming those that have one.
  """
  found = {path.parent.name: path for path in sorted(workdir.glob(f'*/{LOG}'))}
  if not found:
    raise UserError(f'--workdir={workdir} has no STAGE/{LOG}: give the folder of a run')
  if missing := [stage for stage in stages if stage not in found]:
    raise UserError(
      f'--stage={missing[0]}: {workdir / missing[0] / LOG} does not exist; choose one of '
      f'{", ".join(found)}'
    )
  return {stage: found[stage] for stage in stages or found}


if __name__ == '__main__':
  command_line.run(main)

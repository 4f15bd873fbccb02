"""Exports the models of a workdir as a release, which `audiolm_jax.from_pretrained` loads.

  python -m experiments.export --recipe=speech --workdir=runs/speech --output=release/
  python -m experiments.export --workdir=runs/tiny --output=release/ --push=me/name
  python -m experiments.export --workdir=gs://bucket/run --output=gs://bucket/release

Writes configs, weights (half precision), clusters, digests, a model card made from the tables in
WORKDIR/evaluation, and the files of --examples. The format is in audiolm_jax/training/exports.py.
"""

import argparse
import json

from audiolm_jax import arrays_file, release, storage
from audiolm_jax.errors import UserError
from audiolm_jax.stages.base import Model
from audiolm_jax.training import exports

from . import command_line, evaluations, model_card, workspace
from . import recipe as recipe_lib
from .evaluations import detection


def main():
  parser = command_line.parser(__doc__, buckets=True)
  parser.add_argument('--output', type=command_line.stored, required=True, metavar='FOLDER')
  parser.add_argument(
    '--dtype', default='float16', help=f'of the weights: {" or ".join(exports.DTYPES)} (float16)'
  )
  parser.add_argument(
    '--examples',
    type=command_line.path,
    metavar='FOLDER',
    help='of prompts that the demo continues, with a README.md on their origin and licence',
  )
  parser.add_argument('--push', metavar='OWNER/NAME', help='upload to the Hugging Face hub, too')
  args = parser.parse_args()
  if args.push and storage.in_bucket(args.output):
    raise UserError('--push uploads files of a disk: give --output=FOLDER on one')
  recipe = workspace.recipe_of(args, writes=False)
  command_line.prove_files([args.output], '--output')
  export(args, recipe)
  print(f'written to {args.output}')
  if args.push:
    print(release.push_to_hub(args.output, args.push))


def export(args: argparse.Namespace, recipe: recipe_lib.Recipe):
  """Writes the release of a workdir."""
  models = workspace.load_models(args.workdir)._replace(sampling=recipe.sampling)
  others = {}
  if 'detector' in recipe.stages and (args.workdir / 'detector').is_dir():
    others['detector'] = workspace.load_stage(args.workdir, 'detector')
  texts = {
    'README.md': model_card.text(
      args.recipe, models, evaluations.load(args.workdir), detector='detector' in others
    ),
    command_line.MEMORY: json.dumps({'recipe': args.recipe, 'set': []}),
  }
  if 'detector' in others:
    texts['evaluation/detection.json'] = _calibrations(args.workdir, others['detector'], args.dtype)
  folder = args.examples
  examples = {} if folder is None else {f'examples/{p.name}': p for p in sorted(folder.iterdir())}
  release.save_pretrained(
    models, args.output, others=others, texts=texts, copies=examples, dtype=args.dtype
  )


def _calibrations(workdir: storage.Path, detector: Model, dtype: str) -> str:
  """Returns the calibrations of the detector as those of its rounded weights."""
  calibrations = detection.load_calibrations(workdir, detector.variables)
  report = storage.read_json(evaluations.path(workdir, 'detection'), 'measure again')
  found = {f'calibration_{unit}': value._asdict() for unit, value in calibrations.items()}
  fingerprint = arrays_file.fingerprint(exports.rounded(detector, dtype).variables.params)
  return json.dumps({'rows': report['rows'], 'detector': fingerprint, **found}, indent=1)


if __name__ == '__main__':
  command_line.run(main)

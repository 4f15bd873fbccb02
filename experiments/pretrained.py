"""Lists known pretrained models, and imports them as checkpoints.

  python -m experiments.pretrained list
  python -m experiments.pretrained import descript/dac_16khz --workdir=runs/mine     into a workdir
  python -m experiments.pretrained import my_folder --licence=MIT --output=runs/dac  elsewhere

The source is a repository of the Hugging Face hub (`pip install huggingface_hub`) or a folder with
config.json and model.safetensors. In a workdir, a codec replaces SoundStream and a feature model
replaces w2v-BERT, for all programs. `training.checkpoints.load_variables` reads other folders, such
as CLAP's, which also hold its vocabulary.
"""

import argparse
import pathlib

import jax

from audiolm_jax import files, storage
from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import byte_pairs, clap, hub
from audiolm_jax.stages.base import CodecConfig, FeatureConfig
from audiolm_jax.training import lock, saving

from .cli import command_line


def main(arguments: list[str] | None = None):
  args = _parser().parse_args(arguments)
  if args.command == 'list':
    print(table())
    return
  hub.refuse_unread(args.source)
  command_line.check_folder(args.output or args.workdir, '--output' if args.output else '--workdir')
  licence = licence_of(args.source, args.licence, args.allow_non_commercial)
  folder = hub.fetch(args.source, revision=args.revision)
  config, variables = hub.from_pretrained(folder)
  output = args.output or args.workdir / place(config)
  names = [name for name in getattr(config, 'files', ()) if (folder / name).is_file()]
  vocabulary = {name: text_of(folder, name) for name in names}
  save(
    output,
    config,
    variables,
    {'source': args.source, 'revision': args.revision, 'licence': licence},
  )
  for name, content in vocabulary.items():
    files.write_text(output / name, content)
  size = sum(leaf.size for leaf in jax.tree.leaves(variables))
  print(files.printable(f'{args.source} ({licence}): {size / 1e6:.1f} M parameters; {output}'))


def text_of(folder: pathlib.Path, name: str) -> str:
  """Returns the text of a file that belongs to a model, such as its vocabulary.

  Raises:
    UserError: if it is a link out of the folder (except into `blobs` of the hub's cache), too
      large, or not text.
  """
  path, home = (folder / name).resolve(), folder.resolve()
  if not path.is_relative_to(home) and path.parent != home.parent.parent / 'blobs':
    raise UserError(f'{folder / name} is a link to {path}: put the file itself there')
  if path.stat().st_size > byte_pairs.MAX_MERGES_BYTES:
    raise UserError(f'{folder / name} has {path.stat().st_size:,} bytes, too many for a vocabulary')
  try:
    return path.read_bytes().decode()
  except UnicodeDecodeError as error:
    raise UserError(f'{folder / name} is not text ({error}): fetch it again') from error


def place(config) -> str:
  """Returns the stage that an imported model replaces in a workdir."""
  if isinstance(config, CodecConfig):
    return 'soundstream'
  if isinstance(config, FeatureConfig):
    return 'w2v_bert'
  if isinstance(config, clap.Config):
    return 'mulan'
  raise UserError(
    f'{type(config).__module__} replaces no stage of a workdir: '
    'give --output=FOLDER instead of --workdir'
  )


def _parser() -> argparse.ArgumentParser:
  parser = command_line.Parser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  commands.add_parser('list', help='list known models and the licences of their weights')
  importing = commands.add_parser('import', help='import a model as a checkpoint')
  importing.add_argument('source', help='a repository (owner/name) or a folder')
  target = importing.add_mutually_exclusive_group(required=True)
  target.add_argument(
    '--workdir', type=command_line.workdir, help='of a run, in which the model replaces a stage'
  )
  target.add_argument('--output', type=command_line.workdir, help='a new folder')
  importing.add_argument(
    '--revision', help='commit, tag or branch of the repository; a commit is reproducible'
  )
  importing.add_argument(
    '--licence', help='of the weights, as on their model card; only if the list lacks them'
  )
  importing.add_argument(
    '--allow-non-commercial',
    action='store_true',
    help='import weights that may not be used commercially',
  )
  return parser


def table() -> str:
  """Returns the catalogue as text, one line per checkpoint."""
  rows = [('REPOSITORY', 'LICENCE', 'WHAT')]
  for entry in hub.CATALOGUE:
    if entry.not_read:
      note = f' (not read: {entry.not_read})'
    elif hub.is_commercial(entry.licence):
      note = ''
    else:
      note = ' (not known to allow commercial use: import with --allow-non-commercial)'
    rows.append((entry.repository, entry.licence, entry.description + note))
  widths = [max(len(row[column]) for row in rows) for column in range(2)]
  return '\n'.join(f'{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}' for row in rows)


def licence_of(source: str, stated: str | None, allow_non_commercial: bool) -> str:
  """Returns the licence of a source's weights.

  Raises:
    UserError: if it is unknown, or forbids commercial use without `allow_non_commercial`.
  """
  known = hub.published(source)
  licence = known.licence if known else stated
  if licence is None:
    raise UserError(
      f'the licence of {source} is not in the list: give that of its model card, such as '
      '--licence=MIT'
    )
  if not hub.is_commercial(licence) and not allow_non_commercial:
    raise UserError(
      f'{source} has the licence {licence}, not one of {", ".join(hub.COMMERCIAL_LICENCES)}: '
      'if its terms allow your use, add --allow-non-commercial'
    )
  return licence


def save(output: pathlib.Path, config, variables, origin: dict):
  """Writes a checkpoint.

  Raises:
    UserError: if `output` already holds one.
  """
  storage.check_writable(output)
  with lock.held(output):
    saving.save_variables(output / 'checkpoints', config, variables, {'pretrained': origin})


if __name__ == '__main__':
  command_line.run(main)

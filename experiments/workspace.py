"""Reads and writes a workdir (docs/architecture.md, "The workdir")."""

import argparse
import json
import os
import sys

import jax
from tqdm import tqdm

from audiolm_jax import chain, codec, joint_embedding, release, storage
from audiolm_jax import tokenizer as tokenizer_lib
from audiolm_jax.codec import Codec
from audiolm_jax.data import token_shards
from audiolm_jax.errors import UserError
from audiolm_jax.stages.base import Model
from audiolm_jax.training import checkpoints

from . import recipe as recipe_lib
from .cli import command_line, recipe_pages

MADE_BY = 'made_by.json'  # in a folder of tokens: the fingerprints of the models that make them


def load_stage(workdir: storage.Path, stage: str) -> Model:
  """Returns a trained stage.

  Raises:
    UserError: naming the command that trains it, if it is missing.
  """
  return checkpoints.load_variables(_there(workdir, stage))


def _there(workdir: storage.Path, *stages: str) -> storage.Path:
  """Returns the folder of the last stage.

  Raises:
    UserError: naming the command that makes a stage, if one is missing.
  """
  for stage in stages:
    if not (workdir / stage).is_dir():
      raise UserError(
        f'{workdir / stage} does not exist: {command_line.how_to_make(stage, workdir)}'
      )
  return workdir / stages[-1]


def load_codec(workdir: storage.Path) -> Codec:
  """Returns the workdir's codec, trained or imported."""
  return codec.load(_there(workdir, 'soundstream'))


def load_semantic_encoder(
  workdir: storage.Path, settings: recipe_lib.SemanticTokens
) -> tokenizer_lib.SemanticEncoder:
  """Returns the workdir's feature model, trained or imported, for the features in `settings`."""
  _there(workdir, 'w2v_bert')
  return tokenizer_lib.load_semantic_encoder(workdir, settings.layer, settings.frames_per_token)


def load_semantic_tokenizer(
  workdir: storage.Path, encoder: tokenizer_lib.SemanticEncoder | None = None
) -> tokenizer_lib.SemanticTokenizer:
  """Returns the workdir's feature model, `encoder` if it is loaded already, with its clusters.

  Raises:
    UserError: naming the command that makes them, if they are missing.
  """
  if tokenizer_lib.clusters_path(workdir).is_file():
    _there(workdir, 'w2v_bert')
  return tokenizer_lib.load_semantic_tokenizer(workdir, _run_encode(workdir), encoder)


def load_embedding(workdir: storage.Path) -> joint_embedding.JointEmbedding:
  """Returns the workdir's joint embedding of audio and texts, trained or imported.

  Raises:
    UserError: naming the command that makes it, if it is missing.
  """
  return joint_embedding.load(_there(workdir, 'mulan'))


def load_models(
  workdir: storage.Path, *, coarse: str = 'coarse', tokenizer: tokenizer_lib.Tokenizer | None = None
) -> chain.Models:
  """Returns the models for generation (`chain.load_models`).

  Args:
    workdir: folder of the run.
    coarse: name of the coarse stage.
    tokenizer: the tokenizer of the workdir, if it is loaded already.

  Raises:
    UserError: naming the command that makes a model, if one is missing.
  """
  acoustic = [] if any((workdir / name).is_dir() for name in (coarse, 'soundstorm')) else [coarse]
  _there(workdir, 'soundstream', 'semantic', *acoustic)
  if tokenizer_lib.clusters_path(workdir).is_file():
    _there(workdir, 'w2v_bert')
  if tokenizer_lib.music_path(workdir).is_file():
    _there(workdir, 'mulan')
  return chain.load_models(workdir, coarse=coarse, tokenizer=tokenizer, remedy=_run_encode(workdir))


def _run_encode(workdir: storage.Path) -> str:
  return f'run `{command_line.command("encode", workdir)}`'


def require_imports(recipe: recipe_lib.Recipe, workdir: storage.Path):
  """Checks that the workdir holds the pretrained models of the recipe.

  Raises:
    UserError: naming the commands that import the missing ones.
  """
  commands = [
    command_line.import_command(model.source, model.revision, workdir)
    for name, model in recipe.imports.items()
    if not (workdir / name).is_dir()
  ]
  if commands:
    raise UserError(
      'this recipe needs pretrained models that are missing: run\n  ' + '\n  '.join(commands)
    )


def token_source(
  workdir: storage.Path,
  split: str,
  *,
  folder: str = 'tokens',
  program: str = 'encode',
  max_bad_fraction: float = 0.0,
):
  """Returns the examples of a split that `program` wrote into a folder.

  Raises:
    UserError: naming the command that makes them, if they are incomplete.
  """
  if not (workdir / folder / f'{split}.json').is_file():
    raise UserError(
      f'{workdir}/{folder}/{split} is not complete: '
      f'run `{command_line.command(program, workdir)}` first'
    )
  return token_shards.TokenShards(workdir / folder, split, max_bad_fraction=max_bad_fraction)


def use_release(args: argparse.Namespace):
  """Sets --workdir, and --recipe where the program has it, to those of --release, if it is given.

  Raises:
    UserError: if there is no such release, or its recipe is not one of ours.
  """
  if args.release is None:
    return
  args.workdir = release.fetch(args.release)
  if not hasattr(args, 'recipe'):
    return
  name, _ = command_line.remembered(args.workdir)
  if name not in recipe_pages.names():
    raise UserError(
      f'--release={args.release}: its recipe, {name}, is not part of this package: give '
      f'--workdir={args.workdir} and the page of the recipe, --recipe=FILE'
    )
  args.recipe = name


def recipe_of(args: argparse.Namespace, *, writes: bool = True) -> recipe_lib.Recipe:
  """Returns the recipe of a run, from the flags of `parser`.

  Args:
    args: parsed flags.
    writes: whether to record the recipe in the workdir (`remember`).

  Raises:
    UserError: if `recipe_lib.load` refuses the recipe, or the workdir belongs to another.
  """
  recipe = recipe_lib.load(args.recipe, args.overrides)
  command_line.check_reachable(args.workdir, '--workdir')
  name, _ = command_line.remembered(args.workdir)
  begun = (
    any(file.name != command_line.MEMORY for file in args.workdir.iterdir()) if name else False
  )
  if begun and name != args.recipe:
    raise UserError(
      f'--workdir={args.workdir} belongs to the recipe {name!r}, not to {args.recipe!r}: '
      f'give --recipe={name}, or another --workdir '
      f'(or delete {args.workdir / command_line.MEMORY}, if both recipes are to share it)'
    )
  if writes:
    remember(args)
  return recipe


def remember(args: argparse.Namespace):
  """Records in the workdir its recipe and the overrides of the corpus.

  Raises:
    UserError: if the workdir is not writable.
  """
  command_line.check_folder(args.workdir, '--workdir')
  name, before = command_line.remembered(args.workdir)
  before = before if name == args.recipe else []
  corpus = [text for text in before + args.overrides if text.startswith('corpus.')]
  # The last override of a field counts.
  corpus = list({text.partition('=')[0]: text for text in corpus}.values())
  if name != args.recipe or corpus != before:
    storage.write_agreed(
      args.workdir / command_line.MEMORY, json.dumps({'recipe': args.recipe, 'set': corpus})
    )


def claim(folder: storage.Path, fingerprints: dict[str, str]):
  """Records in a folder the models whose output it will hold.

  Raises:
    UserError: if it holds the output of other models.
  """
  path = folder / MADE_BY
  if path.is_file():
    made_by = storage.read_json(path, f'move {folder} away first')
    if made_by != fingerprints:
      raise UserError(
        f'{folder} was made by the models {made_by}, not by {fingerprints}: move it away first'
      )
    return
  storage.write_agreed(path, json.dumps(fingerprints))


def progress(total: int, description: str, unit: str, initial: int = 0) -> tqdm:
  """Returns a progress bar with rate and ETA, updated every 10 s if stderr is not a terminal."""
  interval = 0.1 if sys.stderr.isatty() else 10
  return tqdm(
    total=total,
    desc=description,
    unit=unit,
    initial=initial,
    mininterval=interval,
    dynamic_ncols=True,
    smoothing=0.1,
    disable=jax.process_index() != 0,
    position=int(os.environ.get('AUDIOLM_BAR_POSITION', 0)),
  )

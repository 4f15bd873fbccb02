"""Where a run keeps its things (docs/architecture.md, "The workdir"), and how the programs read
them back.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import shlex
import stat
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from audiolm_jax import files, generation, kmeans
from audiolm_jax.data import token_shards
from audiolm_jax.errors import UserError
from audiolm_jax.stages.base import Variables
from audiolm_jax.training import checkpoints, watchdog
from audiolm_jax.training import errors as training_errors
from experiments import command_line
from experiments import recipe as recipe_lib

DEFAULT_WORKDIR = pathlib.Path('runs/demo')  # where `make demo` leaves its models
REPORT = (
  'This is a fault of audiolm_jax, not of your input. Please report it on the issue tracker of the project, with the '
  'lines above and the command that you ran.'
)


def parser(description: str, *, recipe: bool = True) -> argparse.ArgumentParser:
  """Returns a parser with the flags that every program has; those of a `recipe` only where one is
  read.
  """
  result = command_line.Parser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  result.add_argument(
    '--workdir', type=command_line.workdir, default=DEFAULT_WORKDIR, help=f'({DEFAULT_WORKDIR})'
  )
  if recipe:
    result.add_argument(
      '--recipe',
      default='tiny',
      metavar='NAME',
      help=f'one of: {", ".join(recipe_lib.names())} (tiny)',
    )
    result.add_argument(
      '--set',
      action='append',
      default=[],
      metavar='FIELD=VALUE',
      dest='overrides',
      help='change a field of the recipe, as in --set semantic.train.num_steps=100; may be repeated',
    )
  return result


def run(main: Callable[[], None]):
  """Runs a program. UserError and its like are one line and exit status 1; others keep their
  traceback.
  """
  command_line.print_any_name()
  try:
    if directory := os.environ.get('JAX_COMPILATION_CACHE_DIR'):
      check_cache(directory)
    main()
  except (
    watchdog.StalledError,
    training_errors.PeerError,
  ) as error:  # at its end Python would wait for what hangs
    print(f'error: {printable_lines(error)}', file=sys.stderr, flush=True)
    os._exit(1)
  except (UserError, OSError, FloatingPointError, MemoryError) as error:
    if os.environ.get('AUDIOLM_TRACEBACK') is None:
      sys.exit(f'error: {printable_lines(error)}')
    raise
  except Exception as error:
    error.add_note(REPORT)
    raise


def printable_lines(text: object) -> str:
  """Returns a text of several lines that may hold names that others chose, fit for a terminal."""
  return files.printable(text, keep='\n')


def join_pod():
  """Finds the other processes of a pod, before anything touches a device; nothing to do where there
  is one alone.

  AUDIOLM_DISTRIBUTED=1 (tpu_scripts set it) or several TPU hosts: JAX asks the machine.
  ADDRESS:PORT,COUNT,INDEX: of process 0, and how many there are and which this is, where JAX cannot
  know (CPU).
  """
  text = os.environ.get(
    'AUDIOLM_DISTRIBUTED', '1' if ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '') else ''
  )
  if text in ('', '0') or jax.distributed.is_initialized():
    return
  if text == '1':
    jax.distributed.initialize()
    return
  match = re.fullmatch(r'(.+:\d+),(\d+),(\d+)', text)
  if match is None:
    raise UserError(f'AUDIOLM_DISTRIBUTED={text}: set it to 1, or to ADDRESS:PORT,COUNT,INDEX')
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(match[1], int(match[2]), int(match[3]))


def keep_compiled(directory: str | None):
  """Keeps what XLA compiles in `directory`, for the next start, other hosts, and the programs that
  this one starts.
  """
  if directory is not None:
    check_cache(directory)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = directory
    jax.config.update('jax_compilation_cache_dir', directory)


def check_cache(directory: str):
  """Makes a folder for compiled programs where there is none.

  Raises ValueError where others can write to it: what is in it is run.
  """
  if '://' in directory:
    return
  os.makedirs(directory, mode=0o755, exist_ok=True)
  status = os.stat(directory)
  if status.st_uid not in (os.geteuid(), 0):
    raise UserError(
      f'compilation cache {directory} belongs to user {status.st_uid}, who can put programs there '
      'that would be run here: choose a folder of your own'
    )
  if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
    raise UserError(
      f'others can write to the compilation cache {directory}, and so put programs there that '
      f'would be run here: empty it and run `chmod go-w {shlex.quote(directory)}`, or choose another'
    )


def load_stage(workdir: pathlib.Path, stage: str) -> tuple[Any, Variables, dict]:
  """Returns (config, variables, metadata) of a trained stage; ValueError naming the command that
  trains it.
  """
  directory = workdir / stage
  if not directory.is_dir():
    raise UserError(f'{directory} does not exist: {command_line.how_to_make(stage, workdir)}')
  return checkpoints.load_variables(directory)


def load_codec(workdir: pathlib.Path) -> tuple[Any, Variables]:
  """Returns (config, variables) of the workdir's codec, trained or imported; its functions are
  `config.codec()`.
  """
  config, variables, _ = load_stage(workdir, 'soundstream')
  if not hasattr(config, 'codec'):
    raise UserError(
      f'{workdir}/soundstream holds {type(config).__module__}, which is no codec: import one there'
    )
  return config, variables


def load_semantic_encoder(
  workdir: pathlib.Path, settings: recipe_lib.SemanticTokens
) -> tuple[kmeans.SemanticEncoder, Variables]:
  """Returns the workdir's model of features, trained or imported, and its variables; `settings`:
  what is clustered.
  """
  config, variables, _ = load_stage(workdir, 'w2v_bert')
  if not hasattr(config, 'semantic_features'):
    raise UserError(
      f'{workdir}/w2v_bert holds {type(config).__module__}, which makes no features: import another'
    )
  encoder = kmeans.SemanticEncoder(
    config=config, layer=settings.layer, frames_per_token=settings.frames_per_token
  )
  return encoder, variables


def load_semantic_tokenizer(
  workdir: pathlib.Path,
) -> tuple[kmeans.SemanticEncoder, Variables, kmeans.SemanticQuantizer, dict[str, str]]:
  """Returns the model of features as it was clustered, its variables, the clusters and their
  metadata.

  Raises ValueError where one of them is missing, or the clusters belong to another model.
  """
  quantizer, metadata = load_semantic_quantizer(workdir)
  settings = recipe_lib.SemanticTokens(
    layer=int(metadata['layer']), frames_per_token=int(metadata.get('frames_per_token', 1))
  )
  encoder, variables = load_semantic_encoder(workdir, settings)
  if metadata['w2v_bert'] != fingerprint(variables.params):
    raise UserError(
      f'the semantic tokens in {workdir} were fitted on another w2v_bert: move {workdir}/semantic_tokens and '
      f'{workdir}/tokens away, run `{command_line.command("encode", workdir)}`, and train the language models again'
    )
  return encoder, variables, quantizer, metadata


def require_imports(recipe: recipe_lib.Recipe, workdir: pathlib.Path):
  """Raises ValueError, naming the commands, where the workdir lacks models that the recipe takes
  from others.
  """
  commands = [
    command_line.import_command(model, workdir)
    for name, model in recipe.imports.items()
    if not (workdir / name).is_dir()
  ]
  if commands:
    raise UserError(
      'this recipe takes models of others, which are not there yet: run\n  ' + '\n  '.join(commands)
    )


def fingerprint(arrays: Any) -> str:
  """Returns the SHA-256 of a tree of arrays, 16 hex digits: what tokens and models are bound to."""
  digest = hashlib.sha256()
  for path, leaf in sorted(
    jax.tree_util.tree_leaves_with_path(arrays), key=lambda item: str(item[0])
  ):
    digest.update(f'{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}'.encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:16]


def codec_fingerprint(variables: Variables) -> str:
  """Returns the fingerprint of what encodes and decodes: not the discriminators; codebooks where
  there are any.
  """
  return fingerprint(
    (variables.params.get('generator', variables.params), variables.state.get('codebooks'))
  )


def semantic_quantizer_path(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / 'semantic_tokens' / 'kmeans.safetensors'


def save_semantic_quantizer(
  path: pathlib.Path,
  quantizer: kmeans.SemanticQuantizer,
  encoder: kmeans.SemanticEncoder,
  w2v_bert: str,
):
  """Writes the clusters with what they are clusters of: layer, frames, the fingerprint of the
  model; atomic.
  """
  metadata = {
    'layer': str(encoder.layer),
    'frames_per_token': str(encoder.frames_per_token),
    'w2v_bert': w2v_bert,
  }
  _save_arrays(path, quantizer._asdict(), metadata)


def load_semantic_quantizer(
  workdir: pathlib.Path,
) -> tuple[kmeans.SemanticQuantizer, dict[str, str]]:
  """Returns the clusters and their metadata (layer, frames_per_token, w2v_bert); ValueError if
  missing or damaged.
  """
  path = semantic_quantizer_path(workdir)
  if not path.is_file():
    raise UserError(f'{path} does not exist: run `{command_line.command("encode", workdir)}` first')
  remedy = f'run `{command_line.command("encode", workdir)}` again'
  arrays, metadata = _load_arrays(path, kmeans.SemanticQuantizer._fields, remedy)
  return kmeans.SemanticQuantizer(**arrays), metadata


def save_embedding_quantizer(path: pathlib.Path, vectors_QKD: Any, model: str):
  """Writes what `embedding_tokens.fit` returned, with the fingerprint of the model of the
  embeddings; atomic.
  """
  _save_arrays(path, {'vectors': vectors_QKD}, {'model': model})


def load_embedding_quantizer(path: pathlib.Path, model: str) -> jax.Array:
  """Returns the code vectors [Q, K, D].

  Raises ValueError where they are missing or damaged, or were fitted to embeddings of another model
  than the one of that fingerprint.
  """
  if not path.is_file():
    raise UserError(f'{path} does not exist: save there what embedding_tokens.fit returns')
  arrays, metadata = _load_arrays(path, ('vectors',), 'fit the quantizer again')
  if metadata['model'] != model:
    raise UserError(
      f'{path} was fitted to embeddings of the model {metadata["model"]}, not of {model}: fit it again, and train '
      'again what was trained on its tokens'
    )
  return arrays['vectors']


def _save_arrays(path: pathlib.Path, arrays: Mapping[str, Any], metadata: dict[str, str]):
  """Writes arrays and text about them with the digests of both."""
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  metadata = metadata | {'digest': fingerprint(arrays)}
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.atomically(path) as partial:
    save_file(arrays, partial, metadata | {'check': _check(metadata)})


def _load_arrays(
  path: pathlib.Path, names: Iterable[str], remedy: str
) -> tuple[dict[str, jax.Array], dict[str, str]]:
  """Returns what `_save_arrays` wrote; ValueError where it is damaged."""
  try:
    with safe_open(path, 'numpy') as file:
      metadata = file.metadata()
      arrays = {name: file.get_tensor(name) for name in names}
    whole = fingerprint(arrays) == metadata['digest'] and metadata.get(
      'check', _check(metadata)
    ) == _check(metadata)
  except (SafetensorError, KeyError, TypeError) as error:
    raise UserError(f'{path} is damaged ({error!r}): delete it and {remedy}') from error
  if not whole:
    raise UserError(f'{path} is damaged (its digest differs): delete it and {remedy}')
  return {name: jax.numpy.asarray(array) for name, array in arrays.items()}, metadata


def _check(metadata: dict[str, str]) -> str:
  """Returns the digest of the text beside the arrays."""
  text = sorted(item for item in metadata.items() if item[0] != 'check')
  return hashlib.sha256(json.dumps(text).encode()).hexdigest()


def token_source(
  workdir: pathlib.Path,
  split: str,
  *,
  folder: str = 'tokens',
  program: str = 'encode',
  max_bad_fraction: float = 0.0,
):
  """Returns the examples of a split that `program` left in a folder; ValueError naming the command
  that makes them.
  """
  if not (workdir / folder / f'{split}.json').is_file():
    raise UserError(
      f'{workdir}/{folder}/{split} is not complete: run `{command_line.command(program, workdir)}` first'
    )
  return token_shards.TokenShards(workdir / folder, split, max_bad_fraction=max_bad_fraction)


def recipe_of(args: argparse.Namespace, *, writes: bool = True) -> recipe_lib.Recipe:
  """Returns the recipe of a run, by the flags of `parser`; where the run `writes`, its workdir
  remembers it.

  Raises UserError for a recipe that `recipe_lib.load` refuses, and for a workdir that belongs to
  another recipe.
  """
  recipe = recipe_lib.load(args.recipe, args.overrides)
  name, _ = command_line.remembered(args.workdir)
  begun = (
    any(file.name != command_line.MEMORY for file in args.workdir.iterdir()) if name else False
  )
  if begun and name != args.recipe:
    raise UserError(
      f'--workdir={args.workdir} belongs to the recipe {name!r}, not to {args.recipe!r}: give --recipe={name}, or '
      f'another --workdir (or delete {args.workdir / command_line.MEMORY}, if the two are to share it)'
    )
  if writes:
    remember(args)
  return recipe


def remember(args: argparse.Namespace):
  """Notes in the workdir which recipe it belongs to, and where that finds its corpus.

  Raises UserError where the workdir cannot be written to.
  """
  command_line.prove_folder(args.workdir, '--workdir')
  name, before = command_line.remembered(args.workdir)
  before = before if name == args.recipe else []
  corpus = [text for text in before + args.overrides if text.startswith('corpus.')]
  # of each field the last
  corpus = list({text.partition('=')[0]: text for text in corpus}.values())
  if name != args.recipe or corpus != before:
    files.write_text(
      args.workdir / command_line.MEMORY, json.dumps({'recipe': args.recipe, 'set': corpus})
    )


def claim(folder: pathlib.Path, fingerprints: dict[str, str]):
  """Marks the folder as holding what these models make; ValueError where it holds that of
  others.
  """
  path = folder / 'made_by.json'
  if path.is_file():
    made_by = files.read_json(path, f'move {folder} away first')
    if made_by != fingerprints:
      raise UserError(
        f'{folder} holds what {made_by} made, the models here are {fingerprints}: move it away first'
      )
    return
  files.write_text(path, json.dumps(fingerprints))


def load_models(workdir: pathlib.Path, *, coarse: str = 'coarse') -> generation.Models:
  """Returns every model that generation needs, after checking that they were trained on one
  another's tokens.

  Of the acoustic stages those that are there; ValueError, naming the command, where there is
  neither `coarse` nor soundstorm.
  """
  names = ['soundstream', 'semantic']
  acoustic = [name for name in (coarse, 'fine', 'soundstorm') if (workdir / name).is_dir()]
  if not {coarse, 'soundstorm'} & set(acoustic):
    names.append(coarse)
  loaded = {name: load_stage(workdir, name) for name in (*names, *acoustic)}
  encoder, encoder_variables, quantizer, quantizer_metadata = load_semantic_tokenizer(workdir)
  own = {
    'soundstream': codec_fingerprint(loaded['soundstream'][1]),
    'semantic_tokens': quantizer_metadata['digest'],
  }
  for name in {'semantic', coarse, 'fine', 'soundstorm'} & set(loaded):
    for model, expected in own.items():
      found = loaded[name][2]['fingerprints'].get(model)
      if found != expected:
        raise UserError(
          f'stage {name} was trained on tokens of {model} {found}, but {workdir} holds {model} {expected}: '
          'train it again, or use the workdir it comes from'
        )
  models = {name: loaded[name][:2] for name in loaded}
  return generation.Models(
    soundstream=models['soundstream'],
    w2v_bert=(encoder, encoder_variables),
    semantic_quantizer=quantizer,
    semantic=models['semantic'],
    coarse=models.get(coarse),
    fine=models.get('fine'),
    soundstorm=models.get('soundstorm'),
  )


def wait_for(what: str, missing: Callable[[], list[str]], patience_seconds: float = 3600.0):
  """Returns when `missing()`, files that other processes make, is empty.

  Raises ValueError, naming some, when none of them has come for `patience_seconds`.
  """
  left, since = missing(), time.monotonic()
  while left:
    time.sleep(0.2)
    now_left = missing()
    if len(now_left) < len(left):
      since = time.monotonic()
    left = now_left
    if time.monotonic() - since > patience_seconds:
      raise UserError(
        f'process {jax.process_index()} of {jax.process_count()} has waited {patience_seconds:g} s for {what}: '
        f'{", ".join(left[:3])} ({len(left)} in all): look at the others, and start all again'
      )


def stacked(waves: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Returns waveforms of any lengths as wave_BT, zero-padded at the end, and their lengths
  num_samples_B.
  """
  num_samples_B = np.array([len(wave_T) for wave_T in waves], np.int32)
  wave_BT = np.zeros((len(waves), num_samples_B.max()), np.float32)
  for row_T, wave_T in zip(wave_BT, waves, strict=True):
    row_T[: len(wave_T)] = wave_T
  return wave_BT, num_samples_B


def progress(total: int, description: str, unit: str, initial: int = 0) -> tqdm:
  """Returns a progress bar with rate and ETA; plain lines every few seconds where stderr is no
  terminal.
  """
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

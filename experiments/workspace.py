"""Where a run keeps its things (docs/architecture.md, "The workdir"), and how the programs read
them back.
"""

import argparse
import errno
import json
import os
import pathlib
import re
import secrets
import shlex
import signal
import stat
import sys
import threading
import time
import zlib
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from audiolm_jax import codec, files, generation, tokenizer
from audiolm_jax.codec import Codec
from audiolm_jax.data import token_shards
from audiolm_jax.errors import UserError
from audiolm_jax.stages.base import Model
from audiolm_jax.training import checkpoints, watchdog
from audiolm_jax.training import errors as training_errors

from . import command_line, pages
from . import recipe as recipe_lib

DEFAULT_WORKDIR = pathlib.Path('runs/tiny')  # where `make train-tiny` leaves its models
Formatter = argparse.RawDescriptionHelpFormatter
REPORT = (
  'This is a fault of audiolm_jax, not of your input. Please report it on the issue tracker of the project, with the '
  'lines above and the command that you ran.'
)
MADE_BY = 'made_by.json'  # in a folder of tokens: the fingerprints of the models that make them
# Exit status (EX_TEMPFAIL of sysexits.h) of errors that starting again may repair, as
# tpu_scripts/xpk.sh does: a lost or hanging process, and these errors of a shared storage.
RESTART = 75
_STORAGE_ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTDOWN)


def parser(description: str, *, recipe: bool = True) -> argparse.ArgumentParser:
  """Returns a parser with the flags that every program has; those of a `recipe` only where one is
  read.
  """
  result = command_line.Parser(description=as_typed(description), formatter_class=Formatter)
  result.add_argument(
    '--workdir', type=command_line.workdir, default=DEFAULT_WORKDIR, help=f'({DEFAULT_WORKDIR})'
  )
  if recipe:
    result.add_argument(
      '--recipe',
      type=command_line.recipe,
      default='tiny',
      metavar='NAME',
      help=f'one of: {", ".join(pages.names())}; or a page of your own, as mine.py or '
      'package.module (tiny)',
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
  """Runs a program. UserError and its like are one line and exit status 1, or RESTART; others keep
  their traceback.
  """
  command_line.print_any_name()
  try:
    if directory := os.environ.get('JAX_COMPILATION_CACHE_DIR'):
      check_cache(directory)
    main()
  except Terminated as error:
    sys.stdout.flush()
    if jax.distributed.is_initialized():  # at its end JAX would wait for the other processes
      os._exit(error.code)
    raise
  except (
    watchdog.StalledError,
    training_errors.PeerError,
  ) as error:  # at its end Python would wait for what hangs
    print(f'error: {printable_lines(error)}', file=sys.stderr, flush=True)
    os._exit(RESTART)
  except (UserError, OSError, FloatingPointError, MemoryError) as error:
    if os.environ.get('AUDIOLM_TRACEBACK') is not None:
      raise
    text = f'error: {printable_lines(error)}'
    if getattr(error, 'errno', None) not in _STORAGE_ERRORS:
      sys.exit(text)
    print(text, file=sys.stderr)
    sys.exit(RESTART)
  except Exception as error:
    error.add_note(REPORT)
    raise


class Terminated(SystemExit):
  """SIGTERM arrived; the exit status is the usual one, 143."""


def leave_on_sigterm(patience_seconds: float = 10.0):
  """Makes SIGTERM end this process in the order of an error: locks and temporary files go.

  For programs that do not ask whether a signal came, called after `join_pod`, which lets JAX catch
  SIGTERM. A process that is still there after `patience_seconds`, as while XLA compiles, ends
  without that.
  """
  status = 128 + signal.SIGTERM

  def on_signal(number, frame):
    raise Terminated(status)

  def end_at_last():
    while signal.SIGTERM not in os.read(reading, 1):
      pass
    time.sleep(patience_seconds)
    os._exit(status)

  # Python calls a handler between two of its instructions, but writes to this pipe at once.
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  signal.signal(signal.SIGTERM, on_signal)
  threading.Thread(target=end_at_last, daemon=True).start()


def as_typed(text: str) -> str:
  """Returns a text whose commands are those of an installed package, where this is one."""
  return (
    text if __package__ == 'experiments' else text.replace('python -m experiments.', 'audiolm ')
  )


def printable_lines(text: object) -> str:
  """Returns a text of several lines that may hold names that others chose, fit for a terminal."""
  return as_typed(files.printable(text, keep='\n'))


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


def prove_shared(workdir: pathlib.Path, patience_seconds: float = 30.0):
  """Checks that all processes of a pod run the same command, and that their workdir is one folder,
  on a storage that they share.

  Process 0 writes a file with a random name there, which every process must find.

  Raises:
    UserError: on every process, naming those that do not find it within `patience_seconds`.
    PeerError: on every process, if commands differ, as where only some processes saw the last
      checkpoint of a stage, and went on to the next stage.
  """
  if jax.process_count() == 1:
    return
  nonce, first = secrets.randbits(31), jax.process_index() == 0
  file = lambda number: workdir / f'.shared-{number:08x}'
  if first:
    file(nonce).touch()
  try:
    nonce = int(multihost_utils.broadcast_one_to_all(np.int32(nonce)))
    end = time.monotonic() + patience_seconds
    while not (found := file(nonce).exists()) and time.monotonic() < end:
      time.sleep(0.2)
    command = zlib.crc32('\0'.join(sys.argv[1:]).encode(errors='surrogateescape')) >> 1
    told_PN = multihost_utils.process_allgather(np.array([found, command], np.int32))
  finally:
    if first:
      file(nonce).unlink(missing_ok=True)
  if lost := [index for index, (there, _) in enumerate(told_PN) if not there]:
    raise UserError(
      f'--workdir={workdir} of process {", ".join(map(str, lost[:9]))} ({len(lost)} of '
      f'{len(told_PN)} in all) is not that of process 0: mount the same storage on every host '
      '(tpu_scripts/mount.sh, or --storage of tpu_scripts/xpk.sh)'
    )
  if other := [index for index, (_, its) in enumerate(told_PN) if its != told_PN[0][1]]:
    raise training_errors.PeerError(
      f'process {", ".join(map(str, other[:9]))} ({len(other)} of {len(told_PN)} in all) runs '
      'another command than process 0: give all the same one, and start all of them again'
    )


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


def load_stage(workdir: pathlib.Path, stage: str) -> Model:
  """Returns a trained stage; UserError naming the command that trains it."""
  return checkpoints.load_variables(_there(workdir, stage))


def _there(workdir: pathlib.Path, *stages: str) -> pathlib.Path:
  """Returns the folder of the last stage; UserError naming the command, where one is missing."""
  for stage in stages:
    if not (workdir / stage).is_dir():
      raise UserError(
        f'{workdir / stage} does not exist: {command_line.how_to_make(stage, workdir)}'
      )
  return workdir / stages[-1]


def load_codec(workdir: pathlib.Path) -> Codec:
  """Returns the workdir's codec, trained or imported."""
  return codec.load(_there(workdir, 'soundstream'))


def load_semantic_encoder(
  workdir: pathlib.Path, settings: recipe_lib.SemanticTokens
) -> tokenizer.SemanticEncoder:
  """Returns the workdir's model of features, trained or imported; `settings`: what is clustered."""
  _there(workdir, 'w2v_bert')
  return tokenizer.load_semantic_encoder(workdir, settings.layer, settings.frames_per_token)


def load_semantic_tokenizer(workdir: pathlib.Path) -> tokenizer.SemanticTokenizer:
  """Returns the workdir's model of features with its clusters; UserError naming the commands."""
  if tokenizer.clusters_path(workdir).is_file():
    _there(workdir, 'w2v_bert')
  return tokenizer.load_semantic_tokenizer(workdir, _run_encode(workdir))


def load_models(workdir: pathlib.Path, *, coarse: str = 'coarse') -> generation.Models:
  """Returns every model that generation needs (`generation.load_models`); UserError naming the
  commands.
  """
  acoustic = [] if any((workdir / name).is_dir() for name in (coarse, 'soundstorm')) else [coarse]
  _there(workdir, 'soundstream', 'semantic', *acoustic)
  if tokenizer.clusters_path(workdir).is_file():
    _there(workdir, 'w2v_bert')
  return generation.load_models(workdir, coarse=coarse, remedy=_run_encode(workdir))


def _run_encode(workdir: pathlib.Path) -> str:
  return f'run `{command_line.command("encode", workdir)}`'


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
  path = folder / MADE_BY
  if path.is_file():
    made_by = files.read_json(path, f'move {folder} away first')
    if made_by != fingerprints:
      raise UserError(
        f'{folder} holds what {made_by} made, the models here are {fingerprints}: move it away first'
      )
    return
  files.write_text(path, json.dumps(fingerprints))


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

"""Joins pods, and reads and writes a workdir (docs/architecture.md, "The workdir")."""

import argparse
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from audiolm_jax import codec, generation, joint_embedding, storage, tokenizer
from audiolm_jax.codec import Codec
from audiolm_jax.data import token_shards
from audiolm_jax.errors import UserError
from audiolm_jax.stages.base import Model
from audiolm_jax.training import checkpoints
from audiolm_jax.training import errors as training_errors

from . import command_line
from . import recipe as recipe_lib

# Pauses grow to this while a process waits for files of others; then it says so, now and again.
_MOST_POLL_SECONDS, _SAY_SECONDS = 10.0, 60.0
MADE_BY = 'made_by.json'  # in a folder of tokens: the fingerprints of the models that make them


def leave_on_sigterm(patience_seconds: float = 10.0):
  """Makes SIGTERM end this process in the order of an error: locks and temporary files go.

  For programs that do not ask whether a signal came, called after `join_pod`, which lets JAX catch
  SIGTERM. A process that is still there after `patience_seconds`, as while XLA compiles, ends
  without that.
  """
  status = 128 + signal.SIGTERM

  def on_signal(number, frame):
    raise command_line.Terminated(status)

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


def join_pod():
  """Connects the processes of a pod; must run before anything touches a device.

  AUDIOLM_DISTRIBUTED is one of:
    1: JAX finds the processes. The default with several TPU hosts; set by tpu_scripts.
    ADDRESS:PORT,COUNT,INDEX: address of process 0, number of processes, and index of this one, for
      machines on which JAX cannot find them (CPUs).
    0: there is one process. The default otherwise.
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


def prove_shared(workdir: storage.Path, patience_seconds: float = 30.0):
  """Checks that all processes of a pod run the same command, and that their workdir is one folder,
  on a storage that they share.

  Process 0 writes a file with a random name there, which every process must find.

  Raises:
    UserError: on every process, naming those that do not find it within `patience_seconds`.
    PeerError: on every process, if commands differ, as when only some processes saw the last
      checkpoint of a stage, and continued with the next stage.
  """
  if jax.process_count() == 1:
    return
  nonce, first = secrets.randbits(31), jax.process_index() == 0
  file = lambda number: workdir / f'.shared-{number:08x}'
  if first:
    storage.write_text(file(nonce), '')
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
) -> tokenizer.SemanticEncoder:
  """Returns the workdir's feature model, trained or imported, for the features in `settings`."""
  _there(workdir, 'w2v_bert')
  return tokenizer.load_semantic_encoder(workdir, settings.layer, settings.frames_per_token)


def load_semantic_tokenizer(
  workdir: storage.Path, encoder: tokenizer.SemanticEncoder | None = None
) -> tokenizer.SemanticTokenizer:
  """Returns the workdir's feature model, `encoder` if it is loaded already, with its clusters.

  Raises:
    UserError: naming the command that makes them, if they are missing.
  """
  if tokenizer.clusters_path(workdir).is_file():
    _there(workdir, 'w2v_bert')
  return tokenizer.load_semantic_tokenizer(workdir, _run_encode(workdir), encoder)


def load_embedding(workdir: storage.Path) -> joint_embedding.JointEmbedding:
  """Returns the workdir's joint embedding of audio and texts, trained or imported.

  Raises:
    UserError: naming the command that makes it, if it is missing.
  """
  return joint_embedding.load(_there(workdir, 'mulan'))


def load_models(workdir: storage.Path, *, coarse: str = 'coarse') -> generation.Models:
  """Returns the models for generation (`generation.load_models`).

  Raises:
    UserError: naming the command that makes a model, if one is missing.
  """
  acoustic = [] if any((workdir / name).is_dir() for name in (coarse, 'soundstorm')) else [coarse]
  _there(workdir, 'soundstream', 'semantic', *acoustic)
  if tokenizer.clusters_path(workdir).is_file():
    _there(workdir, 'w2v_bert')
  if tokenizer.music_path(workdir).is_file():
    _there(workdir, 'mulan')
  return generation.load_models(workdir, coarse=coarse, remedy=_run_encode(workdir))


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


def recipe_of(args: argparse.Namespace, *, writes: bool = True) -> recipe_lib.Recipe:
  """Returns the recipe of a run, from the flags of `parser`.

  Args:
    args: parsed flags.
    writes: whether to record the recipe in the workdir (`remember`).

  Raises:
    UserError: if `recipe_lib.load` refuses the recipe, or the workdir belongs to another.
  """
  recipe = recipe_lib.load(args.recipe, args.overrides)
  command_line.prove_reachable(args.workdir, '--workdir')
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
  command_line.prove_folder(args.workdir, '--workdir')
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


def wait_for(
  what: str,
  missing: Callable[[], list[str]],
  patience_seconds: float = 3600.0,
  *,
  poll_seconds: float = 0.2,
):
  """Waits until `missing()`, the paths of files that other processes write, is empty.

  Looks less and less often, and says on stderr every minute how many are missing.

  Args:
    what: name of the files, for messages.
    missing: returns the paths of files that are not there yet.
    patience_seconds: limit of the time in which none is written.
    poll_seconds: first pause between two looks.

  Raises:
    UserError: naming some paths, if none was written for `patience_seconds`.
  """
  left, since = missing(), time.monotonic()
  pause, said = poll_seconds, since
  while left:
    time.sleep(pause)
    pause = min(1.5 * pause, max(poll_seconds, _MOST_POLL_SECONDS), patience_seconds)
    now_left = missing()
    if len(now_left) < len(left):
      since = time.monotonic()
    left = now_left
    if left and time.monotonic() - said >= _SAY_SECONDS:
      said = time.monotonic()
      print(f'waiting for {what}: {len(left)} missing, such as {left[0]}', file=sys.stderr)
    if time.monotonic() - since > patience_seconds:
      raise UserError(
        f'process {jax.process_index()} of {jax.process_count()} has waited '
        f'{patience_seconds:g} s for {what}: {", ".join(left[:3])} ({len(left)} in all): '
        'check the other processes, and restart all'
      )


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

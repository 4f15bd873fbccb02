"""Runs programs: common flags, checks of outputs, printed errors, commands as remedies.

Imports neither jax nor numpy, so that `--help` and errors in flags need not wait for them.
"""

import argparse
import codecs
import errno
import os
import pathlib
import shlex
import sys
from collections.abc import Callable

from audiolm_jax import checks, files, storage
from audiolm_jax.errors import UnfinishedThreads, UserError

from . import compilation_cache, recipe_pages

MEMORY = (
  'recipe.json'  # in a workdir: the recipe that it belongs to, and where that finds its corpus
)
DEFAULT_WORKDIR = pathlib.Path('runs/tiny')  # that of `make train-tiny`
Formatter = argparse.RawDescriptionHelpFormatter
REPORT = (
  'This is a fault of audiolm_jax, not of your input. Please report it on the issue tracker of the '
  'project, with the lines above and the command that you ran.'
)
# Exit status (EX_TEMPFAIL of sysexits.h) of errors that a restart may repair, such as that of
# tpu_scripts/xpk.sh: a lost or hanging process, and these errors of a shared storage.
RESTART = 75
_STORAGE_ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTDOWN)


class Parser(argparse.ArgumentParser):
  """Argparse's parser, which refuses a flag of the value `--`: older ones make a list of it."""

  def parse_known_args(self, args=None, namespace=None):
    for word in sys.argv[1:] if args is None else args:
      if word.startswith('-') and word.endswith('=--'):
        self.error(f'{word}: -- is no value')
    return super().parse_known_args(args, namespace)


def parser(
  description: str, *, recipe: bool = True, buckets: bool = False
) -> argparse.ArgumentParser:
  """Returns a parser with the common flags: --workdir, and with `recipe`, --recipe and --set.

  buckets: whether --workdir may be gs://.
  """
  result = Parser(description=as_typed(description), formatter_class=Formatter)
  result.add_argument(
    '--workdir',
    type=stored_workdir if buckets else workdir,
    default=DEFAULT_WORKDIR,
    help=f'folder of the run{", or gs://BUCKET/FOLDER" * buckets} ({DEFAULT_WORKDIR})',
  )
  if recipe:
    result.add_argument(
      '--recipe',
      type=recipe_name,
      default='tiny',
      metavar='NAME',
      help=f'one of: {", ".join(recipe_pages.names())}; or your own page, such as mine.py '
      'or package.module (tiny)',
    )
    result.add_argument(
      '--set',
      action='append',
      default=[],
      metavar='FIELD=VALUE',
      dest='overrides',
      help='change a field of the recipe, such as semantic.train.num_steps=100; may be repeated',
    )
  return result


def add_release(parser: argparse.ArgumentParser):
  """Adds the flag --release, for `check_models` and `workspace.use_release`."""
  parser.add_argument(
    '--release',
    metavar='NAME',
    help='instead of --workdir: speech (part of the package), a folder or a repository of the '
    'Hugging Face hub',
  )


def check_models(args: argparse.Namespace):
  """Raises UserError unless --workdir or --release names models, or the default workdir exists."""
  is_default = args.workdir == DEFAULT_WORKDIR
  if args.release is not None and not is_default:
    raise UserError(f'--workdir={args.workdir} and --release={args.release}: give one of them')
  if args.release is None and is_default and not args.workdir.is_dir():
    raise UserError(
      f'{args.workdir}, the default --workdir, does not exist: give another, or --release=speech '
      'for the models that are part of the package'
    )


def add_compilation_cache(parser: argparse.ArgumentParser):
  """Adds the flag --compilation_cache, for `keep_compiled`."""
  parser.add_argument(
    '--compilation_cache',
    type=stored,
    metavar='DIRECTORY',
    help='keep compiled programs there for later starts',
  )


def keep_compiled(args: argparse.Namespace):
  """Keeps compiled programs where --compilation_cache says.

  Raises:
    UserError: if that folder cannot be written, or others can write to it.
  """
  if args.compilation_cache is not None:
    check_folder(args.compilation_cache, '--compilation_cache')
    compilation_cache.keep(str(args.compilation_cache))


def run(main: Callable[[], None]):
  """Runs a program, and exits with status 1 after an error, or RESTART if a restart may repair it.

  Wrong input and failures of the system are reported in one line (with a traceback if
  AUDIOLM_TRACEBACK is set); other exceptions keep their traceback.
  """
  print_any_name()
  try:
    if directory := os.environ.get('JAX_COMPILATION_CACHE_DIR'):
      compilation_cache.check(directory)
    main()
  except Terminated as error:
    sys.stdout.flush()
    jax = sys.modules.get('jax')  # this module does not import it
    if jax and jax.distributed.is_initialized():  # its normal exit waits for the other processes
      os._exit(error.code)
    raise
  except UnfinishedThreads as error:
    print(f'error: {printable_lines(error)}', file=sys.stderr, flush=True)
    os._exit(RESTART)  # a normal exit would wait for threads that hang
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


def as_typed(text: str) -> str:
  """Returns a text with `python -m experiments.` replaced by `audiolm ` in an installed package."""
  return (
    text
    if __package__.startswith('experiments.')
    else text.replace('python -m experiments.', 'audiolm ')
  )


def printable_lines(text: object) -> str:
  """Returns a text of several lines with unprintable characters escaped."""
  return as_typed(files.printable(text, keep='\n'))


def path(text: str) -> pathlib.Path:
  """Returns the path that a flag names; argparse's error for a URL."""
  try:
    recipe_pages.refuse_url(text)
  except UserError as error:
    raise argparse.ArgumentTypeError(str(error)) from error
  return pathlib.Path(text)


def workdir(text: str) -> pathlib.Path:
  """Returns the folder of a run; argparse's error for a URL or a name that is not UTF-8."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise argparse.ArgumentTypeError(
      f'{text} is not UTF-8, which the names of checkpoints must be: rename the folder'
    ) from error
  return path(text)


def stored(text: str) -> storage.Path:
  """Returns a path on a disk, or in a bucket; argparse's error for other URLs."""
  if not storage.in_bucket(text):
    return path(text)
  if not text.removeprefix(storage.SCHEME).strip('/'):
    raise argparse.ArgumentTypeError(f'{text} names no bucket: give gs://BUCKET/FOLDER')
  return storage.path(text)


def stored_workdir(text: str) -> storage.Path:
  """Returns the folder of a run on a disk (`workdir`) or in a bucket (`stored`)."""
  return stored(text) if storage.in_bucket(text) else workdir(text)


def recipe_name(text: str) -> str:
  """Returns the name of a recipe; that of a file as an absolute path, for other folders, too."""
  return str(path(text).absolute()) if recipe_pages.is_file(text) else text


def _number(
  kind: Callable[[str], int | float], legal: checks.Legal
) -> Callable[[str], int | float]:
  """Returns the argparse type of a number; it refuses nan, inf and values out of range by name."""

  def parse(text: str) -> int | float:
    try:
      value = kind(text)
    except ValueError:
      value = None
    if value is None or not legal.holds(value):
      raise argparse.ArgumentTypeError(f'{text[:80]!r} must be {legal.text}')
    return value

  return parse


# Argparse types, one for each kind of number that a flag takes.
COUNT = _number(int, checks.WHOLE)
COUNT_OR_ALL = _number(int, checks.whole(0))  # 0: all there are
SEED = _number(int, checks.SEED)
PORT = _number(int, checks.whole(0, 65_535))  # 0: any
SHARE = _number(float, checks.POSITIVE_SHARE)
SECONDS = _number(float, checks.CLIP_SECONDS)
HOURS = _number(float, checks.POSITIVE)
GUIDANCE = _number(float, checks.NOT_NEGATIVE)


def check_reachable(folder: storage.Path, flag: str):
  """Raises UserError where a bucket cannot be reached or read, before anything waits for it."""
  try:
    storage.check_reachable(folder)
  except OSError as error:
    raise UserError(f'{flag}={folder}: {error.strerror}') from error


def check_folder(folder: storage.Path, flag: str):
  """Raises UserError where a folder, there or to be made, is not writable; leaves no trace."""
  if storage.in_bucket(folder):
    try:
      storage.check_writable(folder)
    except OSError as error:
      raise UserError(f'{flag}={folder}: {error.strerror}') from error
    return
  existing = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
  if not existing.is_dir():
    raise UserError(f'{flag}={folder}: {existing} is not a folder: choose another {flag}')
  try:
    _look_at(folder)
    storage.check_writable(existing)
  except OSError as error:
    reason = (error.__cause__ or error).strerror
    raise UserError(
      f'{flag}={folder}: cannot be written to ({reason}): choose another {flag}, or free space'
    ) from error


def check_files(paths: list[storage.Path], flag: str, *, overwrite: bool | None = None):
  """Raises UserError where files cannot be made, or exist.

  overwrite: whether they may exist; None: they may not, and the program has no --overwrite.
  """
  for folder in {file.parent for file in paths}:
    check_folder(folder, flag)
  for file in paths:
    if not storage.in_bucket(file):
      check_name(file, f'{flag}: ')
    if file.is_dir():
      raise UserError(f'{flag}: {file} is a folder: choose another {flag}')
  if not overwrite and (present := [str(file) for file in paths if storage.is_there(file)]):
    or_else = '' if overwrite is None else ', or pass --overwrite'
    raise UserError(f'{", ".join(present)} exists: choose another {flag}{or_else}')


def check_name(file: pathlib.Path, where: str = ''):
  """Raises UserError where the system cannot have a file of this name; `where`: its flag."""
  try:
    _look_at(file)
  except OSError as error:
    raise UserError(
      f'{where}{file} cannot be made ({error.strerror}): choose a shorter name'
    ) from error


def _look_at(file: pathlib.Path):
  try:
    os.lstat(file)
  except FileNotFoundError:
    pass


def print_any_name():
  """Makes stdout and stderr print any file name: bytes that are not text are written unchanged."""
  codecs.register_error('name', _name_as_bytes)
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='name')


def _name_as_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
  """Encodes one character: as the byte that it stands for in a name, else by its backslash
  escape.
  """
  if not isinstance(error, UnicodeEncodeError):
    raise error
  one = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
  try:
    return codecs.lookup_error('surrogateescape')(one)
  except UnicodeEncodeError:
    return codecs.lookup_error('backslashreplace')(one)


def remembered(workdir: storage.Path) -> tuple[str | None, list[str]]:
  """Returns the recipe that a workdir belongs to, or None, and the overrides of its corpus.

  Raises UserError where the file is damaged.
  """
  file = workdir / MEMORY
  if not storage.is_file(file):
    return None, []
  remedy = 'delete it, the next run writes it again'
  found = storage.read_json(file, remedy)
  name, overrides = found.get('recipe'), found.get('set')
  texts = [name, *overrides] if isinstance(overrides, list) else [None]
  if not all(isinstance(text, str) for text in texts):
    raise UserError(f'{file} is damaged, it holds {str(found)[:100]}: {remedy}')
  return name, overrides


def flags_of_run(workdir: storage.Path) -> tuple[str | None, list[str]]:
  """Returns recipe and overrides that this process was given, or that its workdir remembers."""
  given = _flags()
  if given.recipe is None and not given.overrides:
    return remembered(workdir)
  return given.recipe, given.overrides


def _flags() -> argparse.Namespace:
  """Returns recipe (None: not given) and overrides of this process."""
  parser = argparse.ArgumentParser(add_help=False)
  parser.add_argument('--recipe')
  parser.add_argument('--set', action='append', default=[], dest='overrides')
  return parser.parse_known_args(sys.argv[1:])[0]


def command(program: str, workdir: storage.Path, *options: str) -> str:
  """Returns another program's command on the same workdir, recipe and overrides, for a shell."""
  recipe, overrides = flags_of_run(workdir)
  words = ['python', '-m', f'experiments.{program}', *options]
  words += [f'--recipe={recipe}'] * (recipe is not None) + [f'--workdir={workdir}']
  return shlex.join([*words, *(f'--set={override}' for override in overrides)])


def import_command(source: str, revision: str | None, workdir: storage.Path) -> str:
  """Returns the command that imports a model into a workdir."""
  words = ['python', '-m', 'experiments.pretrained', 'import', source, f'--workdir={workdir}']
  return shlex.join([*words, *([f'--revision={revision}'] if revision else [])])


def how_to_make(stage: str, workdir: storage.Path) -> str:
  """Returns what makes a missing stage: its training, or the import in its place."""
  name, overrides = flags_of_run(workdir)
  is_ours = name in recipe_pages.names()
  # A page that only the workdir names is not run: the workdir may come from others.
  if is_ours or _flags().recipe is not None:
    from .. import recipe as recipe_lib  # imports jax

    recipe = recipe_lib.load(name, overrides)
    if stage in recipe.imports:
      model = recipe.imports[stage]
      return f'run `{import_command(model.source, model.revision, workdir)}` first'
    if stage not in recipe.trained:
      page = f'experiments/recipes/{name}.py' if is_ours else name
      return f'the recipe {name!r} has no stage {stage!r}: add one to {page}'
  return f'run `{command("train", workdir, f"--stage={stage}")}` first'

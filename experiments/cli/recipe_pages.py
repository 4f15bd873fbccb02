"""Finds the page of a recipe: a module of experiments/recipes/, a file, or another module."""

import importlib
import importlib.util
import os
import pkgutil
import re
import sys
import traceback
import types

from audiolm_jax.errors import UserError

from .. import recipes
from . import overrides


def names() -> list[str]:
  """Returns the names of all recipes."""
  return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


def is_file(name: str) -> bool:
  """Returns whether a recipe is named by the path of its page."""
  return name.endswith('.py')


def refuse_url(text: str, where: str = ''):
  """Refuses a URL where only paths are read or written.

  Args:
    text: value of a flag or field.
    where: prefix of the error message.

  Raises:
    UserError: if the text is a URL.
  """
  if re.match(r'[A-Za-z][A-Za-z0-9+.-]+:/', text):  # one slash, too: pathlib joins two
    raise UserError(
      f'{where}{text} is a URL, not a path: web addresses are not read, and buckets only as '
      '--workdir=gs://BUCKET/FOLDER of a run; give a path on a disk (for audio, one that all hosts '
      'of a pod see, as NFS or Filestore)'
    )


def load(name: str) -> types.ModuleType:
  """Returns the module of a recipe's page.

  Raises:
    UserError: if there is no such page, or it fails.
  """
  if name in names():
    return importlib.import_module(f'{recipes.__name__}.{name}')
  if is_file(name):
    refuse_url(name, '--recipe=')
    page = _run_page(os.path.abspath(name))
  elif '.' in name and all(part.isidentifier() for part in name.split('.')):
    page = _import_page(name)
  else:
    raise UserError(
      f'unknown recipe {name!r}: choose one of {", ".join(names())}'
      f'{overrides.suggestion(name, names())}; a page of your own is given as a file, as in '
      '--recipe=mine.py, or as a module, as in --recipe=package.module'
    )
  return page


def _run_page(path: str) -> types.ModuleType:
  """Runs the page in a file, once in a process: its classes stay the same."""
  stem = os.path.splitext(os.path.basename(path))[0]
  name = f'recipe_{stem}'  # classes of the page have it in their names, which checkpoints hold
  loaded = sys.modules.get(name)
  if loaded is not None and loaded.__file__ == path:
    return loaded
  if not os.path.isfile(path):
    raise UserError(f'--recipe: there is no file {path}: give the path of a page with a RECIPE')
  spec = importlib.util.spec_from_file_location(name, path)
  page = importlib.util.module_from_spec(spec)
  sys.modules[name] = page  # dataclasses look their module up
  try:
    spec.loader.exec_module(page)
  except Exception as error:
    del sys.modules[name]
    raise _fails(path, error, path) from error
  return page


def _import_page(name: str) -> types.ModuleType:
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name and f'{name}.'.startswith(f'{error.name}.'):
      raise UserError(
        f'--recipe={name}: there is no module {error.name}: install it, start in the folder that '
        'holds it, or give the path of the page, as in --recipe=folder/page.py'
      ) from error
    raise _fails(name, error) from error
  except Exception as error:
    raise _fails(name, error) from error


def _fails(name: str, error: Exception, path: str | None = None) -> UserError:
  """Returns the error of a page that cannot be run, with the line of a file at `path`."""
  if isinstance(error, SyntaxError):
    where, what = f'{error.filename}, line {error.lineno}', error.msg
  else:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    where = f'{name}, line {lines[-1]}' if lines else name
    what = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
  return UserError(f'the recipe {where} fails: {what}')

"""Imports packages of optional extras, which only the measures that wrap them need."""

import importlib
import importlib.util
import pathlib
import types
from collections.abc import Mapping

from audiolm_jax.errors import UserError, install


def load(module: str, name: str | None = None, extra: str = 'eval') -> types.ModuleType:
  """Imports and returns a module of an extra.

  Args:
    module: name of the module.
    name: name used in the error message; defaults to `module`.
    extra: name of the extra.

  Raises:
    UserError: naming the extra, if the module cannot be imported.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise UserError(f'{name or module} is not installed: {install(extra)} ({error})') from error


def missing(packages: Mapping[str, str]) -> list[str]:
  """Returns the names of the packages that are not installed.

  Args:
    packages: name of each package, by the name under which it is imported.
  """
  return [name for module, name in packages.items() if importlib.util.find_spec(module) is None]


def folder(package: str, name: str, extra: str) -> pathlib.Path:
  """Returns the folder of an installed package, which is not imported.

  Args:
    package: name under which it would be imported.
    name: name used in the error message.
    extra: name of the extra.

  Raises:
    UserError: naming the extra, if the package is not installed.
  """
  found = importlib.util.find_spec(package)
  if found is None or not found.submodule_search_locations:
    raise UserError(f'{name} is not installed: {install(extra)}')
  return pathlib.Path(found.submodule_search_locations[0])

"""Imports packages of the `eval` extra, which only the measures that wrap them need."""

import importlib
import types

from audiolm_jax.errors import UserError, install


def load(module: str, name: str | None = None) -> types.ModuleType:
  """Imports and returns a module of the `eval` extra.

  Args:
    module: name of the module.
    name: name used in the error message; defaults to `module`.

  Raises:
    UserError: naming the extra, if the module cannot be imported.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise UserError(f'{name or module} is not installed: {install("eval")} ({error})') from error

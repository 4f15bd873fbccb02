"""Packages of the `eval` extra, which nothing needs but the measures that are theirs."""

import importlib
import types

from audiolm_jax.errors import UserError, install


def load(module: str, name: str | None = None) -> types.ModuleType:
  """Returns a module; ValueError naming the extra where it cannot be imported. name: what the error
  calls it.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise UserError(f'{name or module} is not installed: {install("eval")} ({error})') from error

"""Passes metrics of a run to a tracker, such as Weights & Biases, that `train --tracker` names.

A tracker is a function `start(name, settings)` that returns a function `log(step, metrics)`:

  import wandb

  def start(name, settings):
    run = wandb.init(project='audiolm', name=name, config=settings)
    return lambda step, metrics: run.log(metrics, step=step)
"""

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from audiolm_jax.errors import UserError

Log = Callable[[int, Mapping[str, float]], Any]
Start = Callable[[str, Mapping[str, Any]], Log]


def load(name: str) -> Start:
  """Returns the function `package.module:function`.

  Raises:
    UserError: if the name has another form, or the module or the function does not exist.
  """
  module, _, function = name.partition(':')
  if not all(part.isidentifier() for part in (*module.split('.'), function)):
    raise UserError(f'--tracker={name}: give module:function, such as mine:start')
  try:
    start = getattr(importlib.import_module(module), function, None)
  except ModuleNotFoundError as error:
    raise UserError(
      f'--tracker={name}: there is no module {error.name}: install it, or start in its folder by '
      'python -m experiments.train'
    ) from error
  if not callable(start):
    raise UserError(f'--tracker={name}: the module {module} has no function {function}')
  return start


def guarded(start: Start, name: str, settings: Mapping[str, Any]) -> Log:
  """Returns a `log` that starts the tracker when it is first called, and never stops training.

  The first error is reported as a warning and ends the tracking.

  Args:
    start: from `load`.
    name: name of the run.
    settings: configs of the model and of its training, as nested dicts of numbers and texts.
  """
  log = None
  failed = False

  def guarded_log(step, metrics):
    nonlocal log, failed
    if failed or not metrics:
      return
    try:
      log = log or start(name, settings)
      log(step, metrics)
    except Exception as error:
      failed = True
      warnings.warn(f'metrics are no longer tracked: {error!r}')

  return guarded_log

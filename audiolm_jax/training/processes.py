"""Lets process 0 decide for all processes of a run, whose clocks and listings may differ."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from audiolm_jax.errors import UserError

_WRONG, _FAILED = -2, -3


def decided(find: Callable[[], int | None]) -> int | None:
  """Returns on all processes what `find`, a number from 0 or None, returns on process 0.

  All processes must make the same calls. Only process 0 calls `find`.

  Raises:
    UserError: on all processes, if `find` raised one.
    OSError: on all processes, if `find` raised one.
  """
  if jax.process_count() == 1:
    return find()
  code, caught = None, None
  if jax.process_index() == 0:
    try:
      code = find()
    except UserError as error:
      code, caught = _WRONG, error
    except OSError as error:
      code, caught = _FAILED, error
  code = int(multihost_utils.broadcast_one_to_all(np.int64(-1 if code is None else code)))
  if caught is not None:
    raise caught
  if code == _WRONG:
    raise UserError('process 0 refused this: see its message')
  if code == _FAILED:
    raise OSError('the storage failed on process 0: see its message')
  return None if code < 0 else code

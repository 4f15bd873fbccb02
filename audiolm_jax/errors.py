"""The error of a wrong input, which its user can repair. Others are faults of this package."""


class UserError(ValueError):
  """Names a wrong value, its file or flag, and the remedy. Programs print it as one line."""


class UnfinishedThreads(Exception):
  """Base of errors after which threads may wait forever: end the process without joining them."""


def install(extra: str) -> str:
  """Returns the command that installs an extra, from the package's folder: no index has it."""
  return f"run `pip install -e '.[{extra}]'` in the folder of audiolm_jax"

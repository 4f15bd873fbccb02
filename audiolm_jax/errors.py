"""The error of a wrong input, which its user can repair. Others are faults of this package."""


class UserError(ValueError):
  """Names a wrong value, its file or flag, and the remedy. Programs print it as one line."""

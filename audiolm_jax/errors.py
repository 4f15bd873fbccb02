"""The error of a wrong input, which its user can repair; every other error is a fault of this package."""


class UserError(ValueError):
  """Names the value, the file or flag it came from, and what to do. Programs print it as one line."""

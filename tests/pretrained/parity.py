"""What the parity tests share: their table."""

import os

import numpy as np


def report(what: str, error: float):
  """Appends a row to the table of maximal absolute errors in $PARITY_TABLE, where it is set (docs/results.md)."""
  assert np.isfinite(error)
  if path := os.environ.get('PARITY_TABLE'):
    with open(path, 'a') as file:
      file.write(f'| {what} | {error:.1e} |\n')

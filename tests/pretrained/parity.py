"""What the parity tests share: their random weights and their table."""

import os

import numpy as np


def randomize(model):
  """Draws weights of a `transformers` model that keep every layer's output near unit size, norms and biases included."""
  import torch

  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if name.endswith('bias'):
        parameter.normal_(0, 0.1)
      elif 'layer_norm.weight' in name:
        parameter.uniform_(0.5, 1.5)
      elif parameter.ndim >= 2 and 'original0' not in name:
        parameter.normal_(0, 1 / np.sqrt(parameter[0].numel()))


def padded(lengths, amplitude=0.3):
  """Returns noise of these lengths as wave_BT, zero-padded at the end."""
  wave_BT = np.zeros((len(lengths), max(lengths)), np.float32)
  for row_T, length in zip(wave_BT, lengths):
    row_T[:length] = amplitude * np.random.default_rng(length).standard_normal(length)
  return wave_BT


def report(what: str, error: float):
  """Appends a row to the table of maximal absolute errors in $PARITY_TABLE, where it is set (docs/results.md)."""
  assert np.isfinite(error)
  if path := os.environ.get('PARITY_TABLE'):
    with open(path, 'a') as file:
      file.write(f'| {what} | {error:.1e} |\n')

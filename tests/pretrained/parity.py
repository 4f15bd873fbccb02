"""What the parity tests share: random weights, noise, and their table."""

import os

import numpy as np

TOLERANCE = 1e-4


def report(what: str, *errors: float):
  """Appends a row to the table of maximal absolute errors in $PARITY_TABLE, where it is set
  (docs/results/pretrained.md).
  """
  assert np.isfinite(errors).all()
  if path := os.environ.get('PARITY_TABLE'):
    with open(path, 'a') as file:
      file.write(f'| {what} | {" / ".join(f"{error:.1e}" for error in errors)} |\n')


def noise(num_samples: int, batch: int = 2) -> np.ndarray:
  rng = np.random.default_rng(num_samples)
  return (0.3 * rng.standard_normal((batch, num_samples))).astype(np.float32)


def padded(lengths) -> np.ndarray:
  """Returns noise of these lengths as wave_BT, with zeros after it."""
  wave_BT = np.zeros((len(lengths), max(lengths)), np.float32)
  for row_T, length in zip(wave_BT, lengths):
    row_T[:length] = noise(length, 1)[0]
  return wave_BT


def randomize_transformer(model, gain: float = 1.0):
  """Draws weights, norms and biases included; with a gain of 1 every linear layer keeps the size of
  its input.
  """
  import torch

  torch.manual_seed(0)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if name.endswith('bias'):
        parameter.normal_(0, 0.1)
      elif 'layer_norm.weight' in name:
        parameter.uniform_(0.5, 1.5)
      elif parameter.ndim >= 2 and 'original0' not in name:
        parameter.normal_(0, gain / np.sqrt(parameter[0].numel()))
  return model.eval()


def randomize(model, seed: int):
  """Gives a SEANet codec of `transformers` weights that keep every part of it at work, codebooks'
  buffers included.
  """
  import torch

  torch.manual_seed(seed)
  with torch.no_grad():
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
      if name.endswith('original0'):  # the length of a convolution's weights
        tensor.uniform_(0.6, 1.4)
      elif name.endswith(('embed', 'embed_sum')):
        tensor.normal_(0, 0.5)
      elif name.endswith('cluster_usage'):
        tensor.uniform_(0.5, 2.0)
      elif name.endswith('layer_scale.scale'):
        tensor.uniform_(0.2, 0.6)
      elif 'layernorm.weight' in name:
        tensor.uniform_(0.8, 1.2)
      elif 'bias' in name:
        tensor.normal_(0, 0.05)
      elif 'lstm' in name or name.endswith('proj.weight') or 'fc' in name:
        tensor.normal_(0, tensor.shape[-1 if tensor.dim() == 2 else 1] ** -0.5)
      elif 'original1' in name or ('conv' in name and tensor.dim() == 3):
        tensor.normal_(0, tensor[0].numel() ** -0.5)
  return model.eval()

"""What the parity tests share: random weights, noise, and their table."""

import os

import numpy as np

TOLERANCE = 1e-4


def report(what: str, *errors: float):
  """Appends a row to the table of maximal absolute errors in $PARITY_TABLE, where it is set (docs/results.md)."""
  assert np.isfinite(errors).all()
  if path := os.environ.get('PARITY_TABLE'):
    with open(path, 'a') as file:
      file.write(f'| {what} | {" / ".join(f"{error:.1e}" for error in errors)} |\n')


def noise(num_samples: int, batch: int = 2) -> np.ndarray:
  rng = np.random.default_rng(num_samples)
  return (0.3 * rng.standard_normal((batch, num_samples))).astype(np.float32)


def randomize(model, seed: int):
  """Gives a SEANet codec of `transformers` weights that keep every part of it at work, buffers of codebooks included."""
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

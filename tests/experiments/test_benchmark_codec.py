"""What is timed beside ours does the same work, and the fastest turn counts."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import losses
from experiments.benchmarks import codec


def test_the_fastest_turn_counts_and_the_first_does_not():
  naps = iter([0.0, 0.05, 0.02, 0.03])
  seconds = codec.fastest({'model': {'nap': lambda: time.sleep(next(naps))}}, repeats=3)
  assert 0.02 <= seconds['model', 'nap'] < 0.03


@pytest.mark.oracle
def test_the_mel_loss_in_pytorch_is_ours():
  torch = pytest.importorskip('torch')
  random = np.random.default_rng(0)
  target_BT, estimate_BT = (random.normal(size=(2, 4000)).astype(np.float32) / 5 for _ in range(2))
  got = codec._torch_mel_loss(torch, torch.from_numpy(target_BT))(torch.from_numpy(estimate_BT))
  windows = [window for window in losses.SPECTRAL_WINDOWS if window <= 4000]
  assert windows == list(losses.SPECTRAL_WINDOWS)
  options = dict(sample_rate=16_000, floor=codec.FLOOR)
  want = losses.spectral_reconstruction(jnp.asarray(target_BT), jnp.asarray(estimate_BT), **options)
  assert float(got) == pytest.approx(float(want), rel=1e-4)

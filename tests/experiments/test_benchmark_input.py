"""What the input benchmark counts."""

import argparse
import math

import jax
import pytest

from audiolm_jax.stages import semantic
from experiments.benchmarks import input as benchmark
from tests.stages import test_contract


def test_flops_follow_from_parameters_and_tokens():
  config = semantic.Config(crop_seconds=4.0, num_clusters=20, transformer=test_contract.TRANSFORMER)
  stage = config.make()
  params = jax.eval_shape(stage.init, jax.random.key(0)).params
  num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  assert benchmark._flops(config, stage) == 6 * num_params * 100


def test_cores_of_a_host():
  args = argparse.Namespace(recipe='librilight', chips=16, mfu=0.5)
  text = benchmark.table({'WAV': 1234.4}, {'coarse': benchmark.Row(read=2000.0, consumed=800.0, seconds=10.0)}, args)
  line = next(line for line in text.splitlines() if 'coarse' in line)
  assert line.split() == ['coarse', '2000', '800', '0.100', '10.00'] and '1234' in text and '4 hosts' in text


def test_mistakes():
  with pytest.raises(ValueError, match='--chips=0'):
    benchmark.run(argparse.Namespace(recipe='tiny', chips=0, mfu=0.5, examples=1))

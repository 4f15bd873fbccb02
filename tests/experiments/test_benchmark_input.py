"""What the input benchmark counts."""

import argparse
import math
import types

import jax
import numpy as np
import pytest

from audiolm_jax.data import pipeline
from audiolm_jax.stages import semantic
from experiments.benchmarks import input as benchmark
from tests import bucket_server
from tests.stages import test_contract


def test_flops_follow_from_parameters_and_tokens():
  config = semantic.Config(crop_seconds=4.0, num_clusters=20, transformer=test_contract.TRANSFORMER)
  stage = config.make()
  params = jax.eval_shape(stage.init, jax.random.key(0)).params
  num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  assert benchmark._flops(config, stage) == 6 * num_params * 100


def test_cores_of_a_host():
  args = argparse.Namespace(recipe='librilight', chips=16, mfu=0.5)
  text = benchmark.table(
    {'WAV': 1234.4}, {'coarse': benchmark.Row(read=2000.0, consumed=800.0, seconds=10.0)}, args
  )
  line = next(line for line in text.splitlines() if 'coarse' in line)
  assert (
    line.split() == ['coarse', '2000', '800', '0.100', '10.00']
    and '1234' in text
    and '4 hosts' in text
  )


def test_shards_in_a_bucket_are_read_by_many_threads(bucket, bucket_address, faults):
  config = semantic.Config(crop_seconds=4.0, num_clusters=20, transformer=test_contract.TRANSFORMER)
  stages = {'soundstream': test_contract.SOUNDSTREAM, 'semantic': config}
  recipe = types.SimpleNamespace(
    stages={name: types.SimpleNamespace(model=model) for name, model in stages.items()}
  )
  faults({'match': 'GET .*array_record', 'stall': 0.5})
  args = argparse.Namespace(recipe='toy', chips=16, mfu=0.5, examples=16, bucket=bucket)
  rows = benchmark._bucket_rows(recipe, args)
  assert list(rows) == ['semantic'] and 0 < rows['semantic'].by_clock
  assert rows['semantic'].consumed == 8 * 197e12 / benchmark._flops(config, config.make())
  assert bucket_server.counts(bucket_address)['most at once'] > 2 * pipeline.NUM_THREADS
  assert str(bucket) in benchmark.bucket_table(rows, args)


@pytest.mark.parametrize(
  'frame_rate, semantic_rate, frames', [(50.0, 25.0, 1500), (75.0, 25.0, 1500), (50.0, 50.0, 3000)]
)
def test_tokens_lie_as_the_rates_say(frame_rate, semantic_rate, frames):
  codec = types.SimpleNamespace(frame_rate=frame_rate, codebook_size=4, num_quantizers=3)
  found = benchmark._random_tokens(
    np.random.default_rng(0),
    codec,
    types.SimpleNamespace(semantic_rate=semantic_rate, num_clusters=5),
  )
  assert found['codes'].shape == (60 * frame_rate, 3) and found['semantic'].shape == (frames,)

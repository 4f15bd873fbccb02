"""What the input benchmark counts."""

import argparse
import math
import types

import jax
import numpy as np
import pytest

from audiolm_jax.data import pipeline, token_shards
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


def test_a_host_that_trains_from_a_bucket(bucket, bucket_address, faults, monkeypatch):
  config = semantic.Config(crop_seconds=4.0, num_clusters=20, transformer=test_contract.TRANSFORMER)
  stages = {'soundstream': test_contract.SOUNDSTREAM, 'semantic': config}
  train = types.SimpleNamespace(batch_size=16)
  recipe = types.SimpleNamespace(
    stages={name: types.SimpleNamespace(model=model, train=train) for name, model in stages.items()}
  )
  # A read takes half a second: the 16 threads have read 16 batches of four rows after two seconds.
  monkeypatch.setattr(token_shards, '_BUCKET_THREADS', 16)
  faults({'match': 'GET .*array_record', 'stall': 0.5})
  chips = dict(recipe='toy', chips=16, bucket=bucket, stage=None)
  flops = benchmark._flops(config, config.make())
  for step_seconds, steps, is_starved in ((0.01, 20, True), (2.0, 2, False)):
    mfu = 4 / step_seconds * flops / (4 * benchmark.V5E_FLOPS)
    args = argparse.Namespace(**chips, mfu=mfu, steps=steps, stretch=1)
    rows = benchmark._bucket_rows(recipe, args)
    assert list(rows) == ['semantic']
    row = rows['semantic']
    assert row.consumed == pytest.approx(4 / step_seconds) and row.steps == steps
    assert row.first >= 2.0 and row.read > 0
    assert row.waiting > 0.5 if is_starved else row.waiting < 0.1
    assert f'{row.waiting:.2%}' in benchmark.bucket_table(rows, args)
  assert bucket_server.counts(bucket_address)['most at once'] > 2 * pipeline.NUM_THREADS


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

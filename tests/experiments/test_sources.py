"""The sample for the k-means, shared among processes."""

import dataclasses

import numpy as np
import pytest

from experiments import sources
from experiments.recipe import SemanticTokens

NUM_EXAMPLES = 50


class Config:
  frame_rate, sample_rate = 25.0, 16_000


def extract(batch, sample_rate):
  """Frames that tell their example and the batch they were in, on which padding depends."""
  readable = [example for example in batch if example is not None]
  for example in readable:
    yield np.full((example['length'], 2), [example['number'], len(readable)], np.float32)


CORPUS = [{'number': i, 'length': 5} if i % 7 else None for i in range(NUM_EXAMPLES)]


@pytest.mark.parametrize('count', [2, 3, 4])
@pytest.mark.parametrize('seconds', [1.0, 4.0, 1000.0])
def test_the_sample_does_not_depend_on_the_number_of_processes(count, seconds):
  settings = dataclasses.replace(SemanticTokens(), sample_seconds=seconds)
  wanted = sources.num_sample_frames(Config, settings)
  alone = sources.interleaved([sources.sample_frames(extract, CORPUS, Config, settings)], wanted)
  shares = [sources.sample_frames(extract, CORPUS, Config, settings, index, count) for index in range(count)]
  np.testing.assert_array_equal(sources.interleaved(shares, wanted), alone)
  if seconds == 1000.0:
    assert len(alone) == 5 * (NUM_EXAMPLES - 8)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

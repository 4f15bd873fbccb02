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


CORPUS = [{'number': i, 'length': 1 + 7 * i % 9} if i % 7 else None for i in range(NUM_EXAMPLES)]


def batches(corpus=CORPUS):
  return sources.FrameBatches(extract, corpus, Config.sample_rate, seed=0)


@pytest.mark.parametrize('count', [2, 3, 4, 9])
@pytest.mark.parametrize('seconds', [1.0, 4.0, 1000.0])
def test_the_sample_does_not_depend_on_the_number_of_processes(count, seconds):
  """Lengths differ, so that some processes have their part before others; and of nine processes two have no batch."""
  wanted = sources.num_sample_frames(Config, dataclasses.replace(SemanticTokens(), sample_seconds=seconds))
  alone = sources.joined([sources.sample_frames(batches(), wanted)], wanted, batches())
  shares = [sources.sample_frames(batches(), wanted, index, count) for index in range(count)]
  np.testing.assert_array_equal(sources.joined(shares, wanted, batches()), alone)
  total = sum(example['length'] for example in CORPUS if example is not None)
  assert len(alone) == min(wanted, total)
  if seconds == 1.0:
    held = [len(share) for share in shares]
    assert max(held) < len(batches()), 'a share is no more than its part'


def test_a_corpus_that_cannot_be_read_is_named():
  with pytest.raises(ValueError, match='no example of the corpus could be read'):
    sources.joined([sources.sample_frames(batches([None] * 9), 10)], 10, batches([None] * 9))

import jax
import numpy as np
import pytest

from audiolm_jax.errors import UserError
from audiolm_jax.stages import base, melody


def test_paper_size():
  config = melody.Config()
  stage = config.make()
  params = jax.eval_shape(stage.init, jax.random.key(0)).params
  sizes = [leaf.size for leaf in jax.tree.leaves(params)]
  # 12 layers of 4 x 512 x 512 for attention and at least 2 x 512 x 1024 for the MLP.
  assert 12 * (4 * 512**2 + 2 * 512 * 1024) < sum(sizes) < 33e6
  wave = base.Feature((64_000,), np.float32, 16_000)
  assert stage.batch == {'waveform': wave, 'cover': wave}


def test_wrong_configs_and_single_pairs_are_refused():
  with pytest.raises(UserError, match='margin=5'):
    melody.Config(margin=5.0)
  with pytest.raises(UserError, match='batch_size=1'):
    melody.Config().make().loss({}, {}, {'waveform': np.zeros((1, 8))}, None)

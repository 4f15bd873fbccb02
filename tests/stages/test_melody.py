import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax import losses
from audiolm_jax.errors import UserError
from audiolm_jax.stages import base, melody


def brute_force(one_BD, other_BD, margin):
  """Returns the triplet loss by loops over anchors and negatives."""
  total = []
  for anchors_BD, positives_BD in ((one_BD, other_BD), (other_BD, one_BD)):
    for i, anchor_D in enumerate(anchors_BD):
      square = lambda vector_D: float(np.sum((anchor_D - vector_D) ** 2))
      own = square(positives_BD[i])
      others = [
        square(vectors_BD[j])
        for vectors_BD in (one_BD, other_BD)
        for j in range(len(one_BD))
        if j != i
      ]
      beyond = [distance for distance in others if distance > own]
      total.append(max(0.0, own - (min(beyond) if beyond else max(others)) + margin))
  return np.mean(total)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('noise', [0.1, 3.0])  # with the latter, some positives are the farthest
def test_the_triplet_loss_is_its_formula(seed, noise):
  random = np.random.default_rng(seed)
  one_BD = random.normal(size=(5, 3))
  other_BD = one_BD + noise * random.normal(size=one_BD.shape)
  one_BD, other_BD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one_BD, other_BD))
  found = losses.semi_hard_triplet(jnp.asarray(one_BD), jnp.asarray(other_BD), 0.5)
  assert float(found) == pytest.approx(brute_force(one_BD, other_BD, 0.5), abs=1e-5)


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

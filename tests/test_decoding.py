"""SoundStorm in windows; the windows of the language models are tested with the pipelines
(test_generation.py).
"""

import jax
import numpy as np
import pytest
from flax.linen import meta

from audiolm_jax import decoding
from audiolm_jax.sampling import ParallelRule, Rule
from audiolm_jax.stages import soundstorm

CONFIG = soundstorm.Config(
  crop_seconds=0.8,
  num_clusters=8,
  num_quantizers=3,
  codebook_size=8,
  num_layers=1,
  num_heads=2,
  width=16,
  mlp_width=16,
  dtype='float32',
  remat=False,
)
GREEDY = ParallelRule(Rule(0.0), 0.0, (3, 1))


@pytest.fixture(scope='module')
def params():
  params = meta.unbox(jax.jit(lambda key: CONFIG.make().init(key).params)(jax.random.key(0)))
  # far from the uniform distribution: rounding changes no choice
  return jax.tree.map(lambda p: 3 * p, params)


def rows_of(lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 8, n).astype(np.int32) for n in lengths]


def prompts_of(lengths, seed=1):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 8, (n, 3)).astype(np.int32) for n in lengths]


def test_prompts_stay_and_every_row_gets_its_length(params):
  semantic, prompts = rows_of([20, 7, 1, 12]), prompts_of([0, 6, 2, 24])
  rows = decoding.fill(
    CONFIG, params, jax.random.key(0), semantic, prompts, carry=10, how=ParallelRule()
  )
  assert [len(row) for row in rows] == [40, 14, 2, 24]
  for row_FQ, prompt_FQ in zip(rows, prompts, strict=True):
    np.testing.assert_array_equal(row_FQ[: len(prompt_FQ)], prompt_FQ)
    assert row_FQ.min() >= 0 and row_FQ.max() < 8


def test_a_row_alone_is_the_row_in_a_batch(params):
  semantic, prompts = rows_of([20, 7, 33]), prompts_of([6, 0, 8])
  together = decoding.fill(
    CONFIG, params, jax.random.key(0), semantic, prompts, carry=10, how=GREEDY
  )
  for b in range(3):
    one = slice(b, b + 1)
    [alone] = decoding.fill(
      CONFIG, params, jax.random.key(0), semantic[one], prompts[one], carry=10, how=GREEDY
    )
    np.testing.assert_array_equal(alone, together[b])


def test_long_rows_go_in_windows_that_carry_what_came_before(params, monkeypatch):
  """50 semantic frames, 20 a window: frames 0-40, 30-70, 60-100, each decoded from its own
  beginning alone.
  """
  [semantic_S], seen = rows_of([50]), []
  original = decoding.fill_window

  def spy(config, params, key, semantic_BS, codes_BFQ, *rest, **options):
    seen.append((np.array(semantic_BS), np.array(codes_BFQ)))
    return original(config, params, key, semantic_BS, codes_BFQ, *rest, **options)

  monkeypatch.setattr(decoding, 'fill_window', spy)
  [row_FQ] = decoding.fill(
    CONFIG, params, jax.random.key(0), [semantic_S], prompts_of([0]), carry=10, how=GREEDY
  )
  assert row_FQ.shape == (100, 3) and row_FQ.min() >= 0 and len(seen) == 3
  for (semantic_BS, codes_BFQ), first in zip(seen, (0, 30, 60), strict=True):
    np.testing.assert_array_equal(semantic_BS, semantic_S[None, first // 2 : first // 2 + 20])
    carried = 10 if first else 0
    np.testing.assert_array_equal(codes_BFQ[0, :carried], row_FQ[first : first + carried])
    assert (codes_BFQ[0, carried:] == -1).all()


def test_the_last_window_carries_as_much_as_fits(params, monkeypatch):
  known, original = [], decoding.fill_window

  def spy(config, params, key, semantic_BS, codes_BFQ, *rest, **options):
    known.append(int((codes_BFQ[0, :, 0] >= 0).sum()))
    return original(config, params, key, semantic_BS, codes_BFQ, *rest, **options)

  monkeypatch.setattr(decoding, 'fill_window', spy)
  decoding.fill(
    CONFIG, params, jax.random.key(0), rows_of([25]), prompts_of([20]), carry=10, how=GREEDY
  )
  decoding.fill(
    CONFIG, params, jax.random.key(0), rows_of([20]), prompts_of([20]), carry=10, how=GREEDY
  )
  assert known == [10, 20]  # 10 to 50 is one crop; 0 to 40 too


def test_lengths_share_compilations(params):
  decoding.fill_window.clear_cache()
  for length, temperature in ((16, 1.0), (17, 0.5), (19, 0.8), (20, 0.0)):
    how = ParallelRule(Rule(temperature), 2.0 * temperature, (4, 1))
    decoding.fill(
      CONFIG,
      params,
      jax.random.key(0),
      rows_of([length] * 3),
      prompts_of([2, 0, 6]),
      carry=10,
      how=how,
    )
  assert decoding.fill_window._cache_size() == 1


def test_no_row_needs_anything(params):
  prompts = prompts_of([4])
  rows = decoding.fill(
    CONFIG, params, jax.random.key(0), rows_of([2]), prompts, carry=10, how=GREEDY
  )
  np.testing.assert_array_equal(rows[0], prompts[0])

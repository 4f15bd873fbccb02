import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_jax import tokens


@st.composite
def codes(draw):
  shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4)))
  size = draw(st.integers(1, 9))
  values = draw(
    st.lists(st.integers(-1, size - 1), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))
  )
  return np.array(values, np.int32).reshape(shape), size


@settings(max_examples=30, deadline=None)
@given(codes(), st.integers(0, 5))
def test_unflatten_inverts_flatten_and_levels_are_disjoint(drawn, offset):
  codes_BFQ, size = drawn
  ids_BL = np.asarray(tokens.flatten(codes_BFQ, size, offset))
  num_levels = codes_BFQ.shape[-1]
  np.testing.assert_array_equal(tokens.unflatten(ids_BL, num_levels, size, offset), codes_BFQ)
  for i, (code, number) in enumerate(zip(codes_BFQ.reshape(-1), ids_BL.reshape(-1), strict=True)):
    # The paper's formula, position by position.
    assert number == (tokens.PAD if code == tokens.PAD else code + (i % num_levels) * size + offset)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=0, max_size=12))
def test_deduplicate_equals_groupby_on_host_and_device(row):
  semantic_BS = np.full((1, 12), tokens.PAD, np.int32)
  semantic_BS[0, : len(row)] = row
  expected = [token for token, _ in itertools.groupby(row)]
  for array in (semantic_BS, jnp.asarray(semantic_BS)):
    kept_BS, length_B = tokens.deduplicate(array)
    assert isinstance(kept_BS, type(array) if isinstance(array, np.ndarray) else jax.Array)
    assert list(np.asarray(kept_BS)[0, : int(length_B[0])]) == expected
    assert (np.asarray(kept_BS)[0, len(expected) :] == tokens.PAD).all()


def test_ranges_of_a_vocabulary_are_disjoint_and_fill_it():
  parts = (tokens.Codebook(2, 4), tokens.Codebook(1, 7, rate=25.0))
  vocabulary = tokens.Vocabulary(parts=parts, target_levels=3, target_size=5)
  first, second = vocabulary.offsets
  condition = tokens.flatten(np.arange(4).reshape(1, 4, 1).repeat(2, axis=2), 4, first)
  prefix = tokens.flatten(np.arange(7).reshape(1, 7, 1), 7, second)
  target = tokens.flatten(
    np.tile(np.arange(5)[None, :, None], (1, 1, 3)), 5, vocabulary.target_offset
  )
  ids = [tokens.START, *(id for part in (condition, prefix, target) for id in np.ravel(part))]
  assert sorted(ids) == list(range(vocabulary.num_ids))


def test_ids_of_a_vocabulary_by_hand():
  """0 is START, then 2 x 4 and 1 x 7 ids of the prefix, then 3 x 5 of the target."""
  parts = (tokens.Codebook(2, 4), tokens.Codebook(1, 7))
  vocabulary = tokens.Vocabulary(parts=parts, target_levels=3, target_size=5)
  assert (vocabulary.offsets, vocabulary.target_offset) == ((1, 9), 16)
  assert (vocabulary.num_targets, vocabulary.num_ids) == (15, 31)
  alone = tokens.Vocabulary(target_size=5)
  assert (alone.offsets, alone.target_offset, alone.num_targets, alone.num_ids) == ((), 1, 5, 6)


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: tokens.Vocabulary(target_size=0), 'target_size=0: must be .* of at least 1'),
    (lambda: tokens.Vocabulary(target_size=1, target_levels=0), 'target_levels=0: must be'),
    (
      lambda: tokens.Vocabulary(target_size=2**31 - 1),
      'has 2147483648 ids: int32 holds at most 2147483647',
    ),
    (
      lambda: tokens.Vocabulary(target_size=2, parts=(tokens.Codebook(1, 2**31 - 3),)),
      'has 2147483648 ids',
    ),
    (lambda: tokens.Codebook(0, 4), 'levels=0: must be .* of at least 1'),
    (lambda: tokens.Codebook(1, 0), 'size=0: must be .* of at least 1'),
    (lambda: tokens.Codebook(1, 1, rate=0.0), 'rate=0.0: must be'),
  ],
)
def test_sizes_that_make_no_vocabulary_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_the_largest_vocabulary_fills_int32():
  assert tokens.Vocabulary(target_size=2**31 - 2).num_ids == 2**31 - 1
  part = tokens.Codebook(1, 2**31 - 3)
  assert tokens.Vocabulary(target_size=1, parts=(part,)).num_ids == 2**31 - 1


def test_left_pad_keeps_the_order():
  ids, times = tokens.left_pad(jnp.array([[-1, 5, -1, 0, 7]]), jnp.arange(5.0)[None])
  np.testing.assert_array_equal(ids, [[-1, -1, 5, 0, 7]])
  np.testing.assert_array_equal(times[0, 2:], [1, 3, 4])


def test_errors_name_the_value():
  with pytest.raises(ValueError, match='codes_BFQ holds 4, outside of 0 to 3 and -1'):
    tokens.flatten(np.array([[[4]]]), 4)
  with pytest.raises(ValueError, match='outside'):
    tokens.unflatten(np.array([[0, 3]]), 2, 4)  # 3 belongs to level 0
  with pytest.raises(ValueError, match='no whole number of frames'):
    tokens.unflatten(jnp.zeros((1, 5), jnp.int32), 2, 4)
  with pytest.raises(ValueError, match='must be a multiple of semantic_rate=25.0'):
    tokens.semantic_frames(1.0, 25.0, 12.5)
  with pytest.raises(ValueError, match='must be a multiple'):
    tokens.frames_per_semantic(44_100 / 512, 25.0)
  assert [tokens.frames_per_semantic(rate, 25.0) for rate in (25.0, 50.0, 75.0)] == [1, 2, 3]
  assert tokens.semantic_frames(1.04, 25.0, 50.0) == 26
  for seconds in (1.01, 1e-8):
    with pytest.raises(ValueError, match='is no whole number of frames at 25.0 Hz'):
      tokens.semantic_frames(seconds, 25.0, 50.0)


def test_equal_vocabularies_are_one_static_argument():
  """jit compiles once for both only if they are equal and their hashes are."""
  one, other = (tokens.Vocabulary(parts=(tokens.Codebook(2, 3),), target_size=5) for _ in range(2))
  assert one == other and hash(one) == hash(other)


def test_makers_have_changed_if_a_model_whose_tokens_are_read_has():
  saved = {'soundstream': 'a', 'semantic_tokens': 'b'}  # older checkpoints name both
  assert tokens.changed_makers({}, {}) == []
  assert tokens.changed_makers(saved, {'semantic_tokens': 'b'}) == []
  assert tokens.changed_makers(saved, {'semantic_tokens': 'c'}) == ['semantic_tokens']
  assert tokens.changed_makers(saved, saved | {'music_tokens': 'd'}) == ['music_tokens']
  assert tokens.changed_makers(saved, {}) == tokens.changed_makers({}, saved) == list(saved)
  semantic = tokens.Spec(semantic_rate=25.0)
  assert tokens.changed_makers(saved, saved | {'soundstream': 'c'}, semantic) == []
  other = {'soundstream': 'c', 'semantic_tokens': 'c', 'music_tokens': 'd'}
  assert tokens.changed_makers(saved, other, semantic) == ['semantic_tokens']

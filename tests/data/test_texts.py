import numpy as np
import pytest

from audiolm_jax.data import texts


def test_ids_are_utf8_bytes_followed_by_padding():
  ids_CL = texts.encode(['harp', 'é♪'], 6, num_texts=3)
  # U+00E9 and U+266A by the table of UTF-8
  expected = [[104, 97, 114, 112, -1, -1], [0xC3, 0xA9, 0xE2, 0x99, 0xAA, -1], [-1] * 6]
  assert ids_CL.dtype == np.int32
  np.testing.assert_array_equal(ids_CL, expected)
  assert texts.encode(['harp', 'bow'], 4).shape == (2, 4)


@pytest.mark.parametrize(
  'wrong, message',
  [
    (['harp', ' \n'], r"' \\n' is blank"),
    (['♪♪'], "'♪♪'... has 6 bytes in UTF-8, the model reads at most 5: shorten it"),
    ([b'harp'], "b'harp' is of type bytes: pass a string"),
    ([None], 'None is of type NoneType'),
    (['\ud800'], 'not Unicode'),
    ('harp', "'harp' is a single text: put it into a list"),
    ([], 'no texts: give at least one'),
    (['a', 'b', 'c'], '3 texts: there is room for num_texts=2'),
  ],
)
def test_wrong_texts_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    texts.encode(wrong, 5, num_texts=2)


def test_words_are_compared_in_lower_case_and_other_scripts_by_letters():
  assert texts.words(["A slow 8-bar tune, isn't it?", 'SLOW']) == {
    *('a', 'slow', '8', 'bar', 'tune', 'isn', 't', 'it')
  }
  assert texts.words(['慢 éveil_♪']) == {'慢', 'é', 'veil'}
  assert texts.words(['♪ !?', '']) == set()


def test_decoding_returns_the_texts_without_missing_ones():
  written = ['ein Stück', '笛', 'x']
  assert texts.decode(texts.encode(written, 12, num_texts=5)) == written

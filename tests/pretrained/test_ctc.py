"""CTC recognizers: paths read by hand, and which folders are refused."""

import json

import numpy as np
import pytest

from audiolm_jax.pretrained import ctc
from tests.pretrained import random_weights
from tests.pretrained.test_tensors import write

SYMBOLS = ['<pad>', '<s>', '|', 'A', 'B']
DATA = random_weights.HUBERT | {
  'architectures': ['HubertForCTC'],
  'vocab_size': 5,
  'pad_token_id': 0,
}


def folder(path, data=DATA, symbols=SYMBOLS):
  head = {
    'lm_head.weight': np.zeros((5, 8), np.float32),
    'lm_head.bias': np.arange(5, dtype=np.float32),
  }
  encoder = {
    f'hubert.{name}': array for name, array in random_weights.arrays(random_weights.HUBERT).items()
  }
  write(path, data, encoder | head)
  (path / 'vocab.json').write_text(
    json.dumps({symbol: number for number, symbol in enumerate(symbols)})
  )
  return path


def test_repeats_are_one_unless_a_blank_parts_them(tmp_path):
  config, _ = ctc.from_folder(folder(tmp_path))
  read = lambda path: ctc.text(config, ['_$|AB'.index(symbol) for symbol in path])
  assert read('__AA_AB||__B$|') == 'AAB B'
  assert read('|_|A|_|') == 'A' and read('___') == ''


def test_what_the_head_prefers_is_heard_in_clips_of_any_length(tmp_path):
  recognize = ctc.recognizer(folder(tmp_path))
  for length in (0, 17, 16_001):  # the bias alone speaks
    assert recognize(np.zeros(length, np.float32), 16_000) == 'B'


@pytest.mark.parametrize(
  'change, reason',
  [
    ({'architectures': ['HubertModel']}, 'ends in ForCTC'),
    ({'model_type': 'whisper'}, 'ends in ForCTC'),
    ({'feat_extract_norm': 'layer'}, 'feat_extract_norm.*of size base'),
    ({'pad_token_id': 5}, 'pad_token_id=5'),
    ({'vocab_size': 6}, 'does not number its symbols from 0 to 5'),
  ],
)
def test_other_models_are_refused_by_name(tmp_path, change, reason):
  with pytest.raises(ValueError, match=reason):
    ctc.from_folder(folder(tmp_path, DATA | change))


def test_a_head_of_another_size_is_a_difference_of_parameters(tmp_path):
  with pytest.raises(
    ValueError, match=r'lm_head.weight: \[5, 8\] in the file, \[4, 8\] in the model'
  ):
    ctc.from_folder(folder(tmp_path, DATA | {'vocab_size': 4}, SYMBOLS[:4]))

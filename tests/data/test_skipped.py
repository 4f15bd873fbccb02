import pickle

import pytest

from audiolm_jax.data import skipped


def test_each_is_counted_and_listed_once_and_too_many_stop(tmp_path):
  listing = tmp_path / 'deep/skipped.jsonl'
  found = skipped.Skipped(4, 0.5, 'files', listing)
  for _ in range(2):
    found.add(1, 'a.wav', 'empty')
    found.add(3, 'b.wav', 'cut short')
  other = skipped.Skipped(4, 0.5, 'files', listing)  # of another process
  other.add(1, 'a.wav', 'empty')
  assert found == {1: 'empty', 3: 'cut short'} and pickle.loads(pickle.dumps(found)) == found
  assert skipped.read(listing) == [('a.wav', 'empty'), ('b.wav', 'cut short')]
  with pytest.raises(ValueError, match=r'3 of 4 files .* the last: gone .*--set corpus.max_bad'):
    found.add(0, 'c.wav', 'gone')


def test_torn_lines_are_passed_over(tmp_path):
  (tmp_path / 'x').write_text('{"path": "a", "reason": "b"}\n[]\n{"path": "c"}\n{"pa')
  assert skipped.read(tmp_path / 'x') == [('a', 'b')] and skipped.read(tmp_path / 'none') == []

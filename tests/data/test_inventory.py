import pytest

from audiolm_jax.data import inventory

BEFORE = ['a.wav\t10\t0.0\tend', 'b.wav\t20\t0.0\tend', '\udcff.wav\t1\t0.0\tend']


def test_what_changed_is_said_by_name():
  assert inventory.difference(BEFORE, list(BEFORE)) == ''
  assert inventory.difference(BEFORE, BEFORE[:2]) == r'1 gone (\xff.wav)'
  assert inventory.difference(BEFORE, [*BEFORE, 'c\t1']) == '1 added (c)'
  assert inventory.difference(BEFORE, ['a.wav\t11\t0.0\tend', *BEFORE[1:]]) == '1 changed (a.wav)'
  many = inventory.difference([], [f'{i}.wav\t1' for i in range(9)])
  assert many == '9 added (0.wav, 1.wav, 2.wav and 6 more)'


def test_order_and_repeats_count():
  assert 'changed' in inventory.difference(BEFORE, BEFORE[::-1])
  assert inventory.digest(BEFORE) != inventory.digest(BEFORE[::-1])
  assert inventory.difference(['a\t1\t0\t5', 'a\t1\t5\tend'], ['a\t1\t0\tend']) == '1 changed (a)'


def test_what_is_made_is_bound_to_the_list(tmp_path):
  path = tmp_path / 'deep/train.corpus.json'
  inventory.bind(path, BEFORE, [], 'remedy')
  assert inventory.load(path) == BEFORE
  inventory.bind(path, BEFORE, ['shard'], 'remedy')
  with pytest.raises(ValueError, match='1 added .c.wav.. remedy'):
    inventory.bind(path, [*BEFORE, 'c.wav\t1'], ['shard'], 'remedy')
  with pytest.raises(
    ValueError, match='shard exists, but .*, the list of its source files, is missing: remedy'
  ):
    inventory.bind(tmp_path / 'other.json', BEFORE, ['shard'], 'remedy')
  assert [file.name for file in path.parent.iterdir()] == ['train.corpus.json']


@pytest.mark.parametrize('text', ['', '{}', '[1]', '[' * 100_000, '{"files": [1]}'])
def test_a_damaged_list_is_named(tmp_path, text):
  (tmp_path / 'x.json').write_text(text)
  with pytest.raises(ValueError, match='x.json .*: move it away, with the files made'):
    inventory.load(tmp_path / 'x.json')


def test_a_source_without_a_list_is_known_by_its_size():
  assert inventory.of([1, 2, 3]) == ['3 examples']

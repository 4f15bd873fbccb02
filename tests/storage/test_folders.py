"""Numbered folders of a bucket: none is named before it is whole, whoever is killed or wakes late.
(Those of a disk: tests/training/test_checkpoints.py.)
"""

import json

import pytest

from audiolm_jax import storage
from audiolm_jax.storage import folders

LISTED = {'format': 1, 'files': {}}


def _fill(there, number, stamped=True):
  """Writes a folder as Orbax does: files, the seal, the stamp."""
  draft = there.draft(number)
  storage.write_text(draft / 'params' / 'd', f'{number}')
  there.seal(number, LISTED)
  if stamped:
    storage.write_text(draft / folders.STAMP, '')
  return draft


def _names(bucket):
  names = (name.removeprefix('data/') for name in storage.files_below(bucket))
  return sorted({name.partition('/')[0] for name in names})


def test_a_folder_is_whole_with_seal_and_stamp(bucket):
  there, reader = folders.of(bucket, 'aa'), folders.of(bucket)
  draft = there.draft(5)
  storage.write_text(draft / folders.STAMP, '')
  assert reader.numbers() == []  # no seal
  there = folders.of(bucket, 'ab')
  draft = _fill(there, 6, stamped=False)
  assert reader.numbers() == []  # no stamp
  storage.write_text(draft / folders.STAMP, '')
  assert reader.numbers() == [6] and reader.folder(6) == draft == there.written(6)
  assert json.loads(reader.listing(6).read_text()) == {'folder': draft.name, **LISTED}
  assert reader.folder(7).name == '7-unknown'
  reader.clear()
  assert _names(bucket) == ['6-ab-1', '6.json'] and reader.numbers() == [6]


def test_a_process_that_wakes_late_changes_no_step_of_its_successor(bucket):
  paused, successor = folders.of(bucket, 'aa'), folders.of(bucket, 'bb')
  draft = paused.draft(6)
  storage.write_text(draft / 'params' / 'd', 'late')
  kept = _fill(successor, 6)
  with pytest.raises(FileExistsError, match='another process has written 6 meanwhile'):
    paused.seal(6, LISTED)
  storage.write_text(draft / folders.STAMP, '')
  paused.clear_draft(6)
  assert folders.of(bucket).folder(6) == kept and _names(bucket) == ['6-bb-1', '6.json']


def test_each_start_clears_only_what_it_left_itself(bucket):
  first, second = folders.of(bucket, 'aa'), folders.of(bucket, 'bb')
  late = first.draft(1)
  storage.write_text(late / 'x', '')
  first.clear_draft(1)
  _fill(second, 2, stamped=False)
  second.clear(own=True)  # nothing of it has failed
  storage.write_text(late / 'y', '')  # by a thread of the failed draft
  first.clear(own=True)
  assert _names(bucket) == ['2-bb-1', '2.json']
  second.clear_draft(2)
  assert _names(bucket) == []
  whole = _fill(second, 3)
  second.clear_draft(3)  # it failed after it was whole
  assert second.numbers() == [3] and (whole / folders.STAMP).exists()


def test_a_second_draft_of_a_number_is_another_folder(bucket):
  there = folders.of(bucket, 'aa')
  assert there.draft(1) != there.draft(1)


def test_removal_and_rejection(bucket):
  there = folders.of(bucket, 'aa')
  first, second, third = (_fill(there, number) for number in (1, 2, 3))
  there.remove(1)
  assert not first.exists() and there.numbers() == [2, 3]
  assert [there.reject(3), there.numbers()] == ['3.rejected.json', [2]]
  fourth = _fill(there, 3)
  assert there.reject(3) == '3.rejected+.json'
  there.clear()
  assert third.is_dir() and fourth.is_dir() and second.is_dir()
  # a kill during a removal leaves a folder without a name, which the next start clears
  there.listing(2).unlink()
  assert there.numbers() == []
  there.clear()
  assert not second.exists()


def test_a_listing_that_is_refused_once_hides_no_folder_and_deletes_none(bucket, faults):
  """tensorstore's listing is empty then, without an error."""
  there = folders.of(bucket, 'aa')
  kept, rejected = _fill(there, 1), _fill(there, 2)
  there.reject(2)
  refused = {'match': 'GET .*/o[?]', 'status': 401, 'times': 1}
  faults(refused)
  assert there.numbers() == [1]
  faults({**refused, 'times': 2})
  there.clear()  # no listing of the numbers at all
  faults()
  assert kept.is_dir() and rejected.is_dir() and there.numbers() == [1]


def test_a_damaged_seal_is_rejected_and_its_files_stay(bucket):
  there = folders.of(bucket, 'aa')
  draft = _fill(there, 1)
  for text in ('{', '[]', '{}', '{"folder": "../1"}', '{"folder": 3}', '\0'):
    storage.write_text(there.listing(1), text)
    assert there.numbers() == [] and there.numbers(damaged=True) == [1]
    there.clear()
  there.reject(1)
  there.clear()
  assert draft.is_dir() and there.numbers(damaged=True) == []


def test_a_lost_answer_to_the_seal_is_no_failure(bucket, faults):
  there = folders.of(bucket, 'aa')
  storage.write_text(there.draft(1) / folders.STAMP, '')
  faults({'match': r'POST .*1\.json', 'lost': True, 'times': 1})
  there.seal(1, LISTED)
  assert there.numbers() == [1]

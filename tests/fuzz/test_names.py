"""300 odd file names and folders: every file is found once, named in every locale, and in one
split.
"""

import io
import os
import pathlib
import sys

import numpy as np
import pytest

from audiolm_jax import codes_file
from audiolm_jax.data import folders, inventory, skipped
from audiolm_jax.errors import UserError
from experiments import codec, corpora
from experiments.cli import command_line
from tests.fuzz import battery, trees

NUM_CASES, RATE = 300, 16_000
NAME = 'file names and folders'


@pytest.mark.parametrize('number', range(NUM_CASES), ids=lambda number: f'{number:04d}')
def test_a_tree(number, tmp_path, monkeypatch, outcome):
  monkeypatch.chdir(tmp_path)
  tree = trees.make(number, str(tmp_path))
  before, root = battery.snapshot(tree.root), os.fsdecode(tree.root)
  check_found(tree, root, tmp_path / 'skipped.jsonl')
  check_splits(tree, root, np.random.default_rng(number))
  check_jobs(tree, pathlib.Path(root), tmp_path / 'out')
  check_printed(monkeypatch, tree, pathlib.Path(root))
  battery.check_nothing_lost(before, tree.root, may_add=False)
  outcome(NAME, 'files', f'{len(tree.audio)} found, once each')


def check_found(tree: trees.Tree, root: str, listing: pathlib.Path):
  """Every file is found once and read; what is left out is listed once, with a reason."""
  source = folders.examples(root, RATE, quarantine=str(listing), max_bad_fraction=0.0)
  found = {os.stat(part.path).st_ino: part.path for part in source.parts}
  assert found.keys() == tree.audio.keys() and len(source) == len(tree.audio)
  assert [len(source[i]['waveform']) for i in range(len(source))] == [
    (os.stat(part.path).st_size - 44) // 2 for part in source.parts
  ]
  listed = [os.fsencode(path) for path, _ in skipped.read(listing)]
  assert len(listed) == len(set(listed)) and set(tree.other) <= set(listed)
  lines = inventory.of(source)
  assert len(set(lines)) == len(lines) and ''.join(lines).encode('utf-8', 'surrogateescape')
  inventory.save(listing.with_name('list.json'), lines)
  assert inventory.load(listing.with_name('list.json')) == lines


def check_splits(tree: trees.Tree, root: str, rng):
  """Every file is in one split; with a folder of test files, those never train."""

  def split(name, **options):
    corpus = corpora.Folder(root=root, **options)
    found = battery.attempt(corpus.examples, name, None)
    assert not isinstance(found, OSError), found
    return [] if isinstance(found, UserError) else [os.stat(p.path).st_ino for p in found.parts]

  for speakers in (False, True):
    sides = [split(name, held_out=0.4, speaker_folders=speakers) for name in ('train', 'test')]
    assert sorted(sum(sides, [])) == sorted(tree.audio)
  paths = list(tree.audio.values())
  below = os.path.dirname(paths[rng.integers(len(paths))])
  sides = [split(name, test_root=os.fsdecode(below)) for name in ('train', 'test')]
  assert sides[1] and set(sides[0]) == set(tree.audio) - set(sides[1])


def check_jobs(tree: trees.Tree, root: pathlib.Path, output: pathlib.Path):
  """Each file has an output of its own below the folder asked for, or two are named."""
  got = battery.attempt(codec.find_jobs, 'encode', [root], output)
  if isinstance(got, Exception):
    assert 'would both become' in str(got)
    return
  assert len({job.target for job in got}) == len(got) == len(tree.audio)
  assert all(output in job.target.parents and '..' not in job.target.parts for job in got)
  for job in got:  # a name that is too long once it ends in .alm is said, the others are made
    made = battery.attempt(codec.command_line.check_name, job.target)
    assert made is None or 'choose a shorter name' in str(made)


def check_printed(monkeypatch, tree: trees.Tree, root: pathlib.Path):
  """A program prints any name in any locale, and nothing that a terminal obeys."""
  codes = root.with_name('codes')
  codes.mkdir()
  header = codes_file.Header(RATE, 320, 2, 16, 320, 'a' * 16)
  for number, path in enumerate(tree.audio.values()):
    stem = os.path.splitext(os.path.basename(path))[0]
    place = codes / str(number)
    place.mkdir()
    codes_file.save(place / os.fsdecode(stem[:240] + b'.alm'), header, np.ones((1, 2), np.int32))
  for encoding in ('ascii', 'utf-8', 'latin-1'):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with monkeypatch.context() as patch:
      patch.setattr(sys, 'argv', ['codec', 'info', str(codes)])
      patch.setattr(sys, 'stdout', out)
      command_line.run(codec.main)
    out.flush()
    printed = out.buffer.getvalue()
    assert printed.count(b'\n') == len(tree.audio)
    assert not any(byte < 32 and byte != 10 or byte == 127 for byte in printed)


def test_counts(counts):
  counter = counts.get(NAME, {})
  if sum(counter.values()) < NUM_CASES:
    pytest.skip('not all cases were run, or one has failed')
  assert sum(counter.values()) == NUM_CASES
  assert sum(n * int(result.split()[0]) for (_, result), n in counter.items()) > 900

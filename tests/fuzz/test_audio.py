"""1,000 damaged or odd audio files: what is read is right, or refused by name."""

import re

import numpy as np
import pytest
import soxr

from audiolm_jax import audio
from audiolm_jax.data import folders, skipped
from tests.fuzz import audio_cases, battery
from tests.fuzz.audio_cases import EITHER, REFUSED, RIGHT

NUM_CASES, RATE = 1_000, 16_000
NAME = 'audio files'


@pytest.mark.parametrize('number', range(NUM_CASES), ids=lambda number: f'{number:04d}')
def test_a_file(number, tmp_path, outcome):
  kind, case = audio_cases.make(number)
  folder = tmp_path / 'in'
  folder.mkdir()
  path = folder / f'{number}.{case.extension}'
  path.write_bytes(case.content)
  before = battery.snapshot(folder)
  got = battery.attempt(audio.load, path, RATE)
  result = REFUSED if isinstance(got, Exception) else RIGHT
  assert case.must in (result, EITHER), f'{kind}: {got}'
  if result == REFUSED:
    assert path.name in str(got) and re.search(case.says, str(got)), f'{kind}: {got}'
  else:
    check_wave(case, got)
    check_other_ways(path, got, np.random.default_rng(number))
  check_slice_of_refused(path, got)
  check_corpus(tmp_path, path, result)
  battery.check_nothing_lost(before, folder, may_add=False)
  outcome(NAME, kind, result)


def check_wave(case: audio_cases.Case, got_T: np.ndarray):
  assert got_T.dtype == np.float32 and got_T.ndim == 1 and len(got_T)
  assert np.isfinite(got_T).all()
  if case.wave_T is None:
    return
  expected_T = case.wave_T
  if case.rate != RATE:
    expected_T = soxr.resample(expected_T, case.rate, RATE)
  missing = len(expected_T) - len(got_T)
  assert 0 <= missing <= -(-case.slack * RATE // case.rate)
  # a cut end of a resampled file rings a little before it
  compared = len(got_T) - (400 if missing else 0)
  np.testing.assert_allclose(got_T[:compared], expected_T[:compared], rtol=0, atol=1e-5)


def check_other_ways(path, whole_T: np.ndarray, rng):
  """All ways to read a file agree with one another."""
  np.testing.assert_array_equal(np.concatenate(list(audio.blocks(path, RATE, 1_000))), whole_T)
  found = audio.info(path)
  expected = found.num_samples * RATE / found.sample_rate
  assert found.format == 'MP3' or abs(expected - len(whole_T)) <= 1
  first = int(rng.integers(len(whole_T)))
  stop = int(rng.integers(first + 1, len(whole_T) + 1))
  part_T = audio.load_slice(path, RATE, lambda length: (first, stop))
  np.testing.assert_allclose(part_T, whole_T[first:stop], rtol=0, atol=1e-4)


def check_slice_of_refused(path, got):
  """A slice of a file that is refused may be whole; it is never anything but samples."""
  if isinstance(got, Exception):
    part = battery.attempt(audio.load_slice, path, RATE, lambda length: (0, min(length, 100)))
    assert isinstance(part, Exception) or np.isfinite(part).all()
    battery.attempt(audio.info, path)
    battery.attempt(lambda: list(audio.blocks(path, RATE, 1_000)))


def check_corpus(tmp_path, path, result: str):
  """A corpus leaves out what is refused, counts it, and lists it once."""
  listing = tmp_path / 'skipped.jsonl'
  source = folders.examples(path.parent, RATE, quarantine=str(listing), max_bad_fraction=1.0)
  assert len(source) == 1
  for _ in range(2):
    assert (source[0] is None) == (result == REFUSED)
  listed = [path for path, _ in skipped.read(listing)]
  assert listed == ([str(path)] if result == REFUSED else []) and len(source.bad) == len(listed)


def test_counts(counts):
  counter = counts.get(NAME, {})
  if sum(counter.values()) < NUM_CASES:
    pytest.skip('not all cases were run, or one has failed')
  assert sum(counter.values()) == NUM_CASES
  assert {kind for kind, _ in counter} == set(audio_cases.KINDS)
  results = [sum(n for (_, got), n in counter.items() if got == one) for one in (RIGHT, REFUSED)]
  assert min(results) >= 400, results

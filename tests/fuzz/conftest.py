"""The fuzz battery: every test here is marked `fuzz`; the outcomes of all cases are counted in a
table at the end.

A case is made of its number alone, so that one that fails is run again by itself, as the summary of
pytest names it: `pytest -m fuzz "tests/fuzz/test_audio.py::test_a_file[0137]"`.
"""

import collections
import pathlib

import pytest

from tests.fuzz import battery

HERE = pathlib.Path(__file__).parent
_counts: dict[str, collections.Counter] = {}


def pytest_collection_modifyitems(items):
  for item in items:
    if HERE in pathlib.Path(item.fspath).parents:
      item.add_marker('fuzz')


@pytest.fixture(autouse=True)
def _bounded():
  with battery.bounded():
    yield


@pytest.fixture
def outcome():
  """Returns (battery, kind of case, what came of it) -> None, to be counted."""

  def count(name: str, kind: str, result: str):
    _counts.setdefault(name, collections.Counter())[kind, result] += 1

  return count


@pytest.fixture
def counts():
  """Returns the counts of this run, by battery: a Counter of (kind, result)."""
  return _counts


def pytest_terminal_summary(terminalreporter):
  for name, counter in _counts.items():
    results = sorted({result for _, result in counter})
    terminalreporter.section(f'fuzz: {name}')
    terminalreporter.write_line(f'| {name} | {" | ".join(results)} |')
    for kind in sorted({kind for kind, _ in counter}):
      row = ' | '.join(str(counter[kind, result]) for result in results)
      terminalreporter.write_line(f'| {kind} | {row} |')
    total = ' | '.join(
      str(sum(n for (_, found), n in counter.items() if found == result)) for result in results
    )
    terminalreporter.write_line(f'| all {sum(counter.values())} | {total} |')

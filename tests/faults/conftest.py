"""The fault battery: every test here is marked `faults`, and what it measured becomes a row of the
table at the end.
"""

import pathlib
import time
import warnings

import pytest

from audiolm_jax import storage
from audiolm_jax.training import metrics_writer
from tests.training import toy_run

HERE = pathlib.Path(__file__).parent
_outcomes: dict[str, list[str]] = {}


def pytest_collection_modifyitems(items):
  for item in items:
    if HERE in pathlib.Path(item.fspath).parents:
      item.add_marker('faults')
      # Saves and files that a fault broke leave callbacks behind, which fail when they are collected.
      item.add_marker(pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'))


@pytest.fixture
def outcome(request):
  """Returns (row of the fault matrix, what was measured) -> None.

  Adds the place, unless it is a disk, and how long the test took.
  """
  place = request.node.callspec.params.get('place') if hasattr(request.node, 'callspec') else None
  where = 'bucket: ' if place == 'bucket' or 'bucket' in request.fixturenames else ''
  began = time.monotonic()

  def add(row, text):
    seconds = time.monotonic() - began
    _outcomes.setdefault(row, []).append(f'{where}{text} ({seconds:.0f} s)')

  return add


@pytest.fixture
def disturbed(request, place):
  """Lets 6 % of the calls fail, or lose their answers, if the place is in a bucket."""
  if storage.in_bucket(place):
    request.getfixturevalue('faults')(
      {'status': 503, 'rate': 0.02},
      {'status': 429, 'rate': 0.02},
      {'match': 'POST', 'lost': True, 'rate': 0.02},
    )


def pytest_terminal_summary(terminalreporter):
  if _outcomes:
    terminalreporter.section('faults')
    for row in sorted(_outcomes, key=lambda row: int(row[1:])):
      terminalreporter.write_line(f'| {row} | {"; ".join(_outcomes[row])} |')


@pytest.fixture(scope='session')
def reference(tmp_path_factory):
  """An uninterrupted run of the toy: (its result, its metrics by step)."""
  directory = tmp_path_factory.mktemp('reference')
  with warnings.catch_warnings():
    warnings.simplefilter('error')  # nothing is wrong with it
    result = toy_run.train(directory)
  return result, metrics_writer.read(directory)

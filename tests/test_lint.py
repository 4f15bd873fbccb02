"""The linter has one version: that of the pins of `make lint`, pre-commit and the extra `dev`."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PINS = {
  'tests/requirements-eval.txt': r'^ruff==(\S+)$',
  'setup.py': r"'ruff==([^']+)'",
  '.pre-commit-config.yaml': r'^    rev: v(\S+)$',
}


def test_all_pins_of_ruff_are_equal():
  found = {
    name: re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE)
    for name, pattern in PINS.items()
  }
  assert all(len(versions) == 1 for versions in found.values()), found
  assert len({version for [version] in found.values()}) == 1, found

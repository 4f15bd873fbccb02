"""The programs' real parsers, for tests of command lines: nothing is run behind them."""

import argparse
import importlib
import sys

import pytest


class Parsed(BaseException):
  """Ends a program where it has parsed its command line."""

  def __init__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace | None):
    self.parser, self.namespace = parser, namespace


def parse(monkeypatch: pytest.MonkeyPatch, program: str, words: list[str]) -> argparse.Namespace:
  """Returns what a program parses. Raises SystemExit where its parser refuses the words."""
  return _stopped(
    monkeypatch, program, words, lambda parser, parse, *rest: parse(parser, *rest)
  ).namespace


def parser(monkeypatch: pytest.MonkeyPatch, program: str) -> argparse.ArgumentParser:
  """Returns the parser of a program."""
  return _stopped(monkeypatch, program, [], lambda *_: None).parser


def _stopped(monkeypatch, program, words, parse) -> Parsed:
  with monkeypatch.context() as patch:
    for name in ('parse_args', 'parse_intermixed_args'):
      original = getattr(argparse.ArgumentParser, name)

      def stop(self, *rest, original=original):
        raise Parsed(self, parse(self, original, *rest))

      patch.setattr(argparse.ArgumentParser, name, stop)
    patch.setattr(sys, 'argv', [program, *words])
    with pytest.raises(Parsed) as found:
      importlib.import_module(f'experiments.{program}').main()
  return found.value

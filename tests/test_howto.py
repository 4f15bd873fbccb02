"""The examples of docs/howto.md run as printed, on toy models with random weights."""

import doctest
import pathlib
import re

import pytest

from audiolm_jax import audio
from tests import toys

PAGE = pathlib.Path(__file__).parents[1] / 'docs' / 'howto.md'
SECTIONS = dict(
  re.findall(r'^## (.*?)\n(.*?)(?=^## |\Z)', PAGE.read_text(), re.DOTALL | re.MULTILINE)
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('howto')
  toys.save_workdir(folder / 'runs/tiny')
  (folder / 'recordings').mkdir()
  for name, seconds in (
    ('recordings/one.wav', 1.0),
    ('recordings/two.flac', 2.0),
    ('runs/tiny/prompt.wav', 3.0),
  ):
    audio.save(folder / name, toys.noise(seconds), toys.RATE)
  return folder


@pytest.mark.parametrize('title', SECTIONS)
def test_section_runs_as_printed(title, folder, monkeypatch):
  monkeypatch.chdir(folder)
  text = ''.join(re.findall(r'^```pycon\n(.*?)^```', SECTIONS[title], re.DOTALL | re.MULTILINE))
  test = doctest.DocTestParser().get_doctest(text, {'__name__': '__main__'}, title, str(PAGE), 0)
  runner, lines = doctest.DocTestRunner(verbose=False), []
  runner.run(test, out=lines.append)
  assert test.examples and not runner.failures, ''.join(lines)

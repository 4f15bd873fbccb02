"""The demo of music writes sounds, a page and a report, and says what is missing."""

import importlib.util
import types

import numpy as np
import pytest

from audiolm_jax import audio, music_generation
from audiolm_jax.errors import UserError
from audiolm_jax.generation import Continuation
from audiolm_jax.pretrained import basic_pitch
from experiments import demo_music, evaluations, workspace
from experiments.recipes import tiny_music

RATE = 16_000


@pytest.fixture
def run(monkeypatch, tmp_path):
  models = types.SimpleNamespace(
    tokenizer=types.SimpleNamespace(sample_rate=RATE), soundstorm=object()
  )
  monkeypatch.setattr(workspace, 'recipe_of', lambda args, writes: tiny_music.RECIPE)
  monkeypatch.setattr(workspace, 'load_models', lambda workdir: models)
  monkeypatch.setattr(demo_music.compilation_cache, 'keep_for_user', lambda: None)

  def from_texts(models, key, captions, seconds, *, acoustic, **options):
    assert acoustic == 'soundstorm'
    wave_BT = np.full((len(captions), round(seconds * RATE) + 5), 0.25, np.float32)
    frames_B = np.full(len(captions), 9)
    made = Continuation(wave_BT, np.zeros((1, 1)), np.zeros((1, 1, 1)), frames_B, 0 * frames_B)
    return music_generation.Music(made, np.linspace(0.5, 0.75, len(captions)))

  monkeypatch.setattr(music_generation, 'from_texts', from_texts)

  def go(*flags):
    arguments = ['demo_music', f'--workdir={tmp_path}', f'--output={tmp_path / "out"}', *flags]
    monkeypatch.setattr('sys.argv', arguments)
    demo_music.main()
    return tmp_path / 'out'

  return go


def test_sounds_page_and_report(run, monkeypatch, tmp_path, capsys):
  notes_N4 = np.array([[0.1, 0.5, 60, 100]])
  monkeypatch.setattr(basic_pitch, 'transcriber', lambda: lambda wave_T, rate: notes_N4)
  folder = evaluations.path(tmp_path, 'music').parent
  folder.mkdir()
  (folder / 'music.json').write_text('{"rows": {"text prompt": {"similarity": 0.125}}}')
  out = run('--text=slow <piano>', '--text=flute', '--seconds=1')
  assert [len(audio.load(out / name, RATE)) for name in ('00.wav', '01.wav')] == [RATE] * 2
  report, page = (out / 'report.txt').read_text(), (out / 'hear.html').read_text()
  assert '00.wav  similarity 0.50  slow <piano>' in report and '0.125' in report
  assert 'slow &lt;piano&gt;' in page and page.count('<audio') == 2 and '<piano>' not in page
  if importlib.util.find_spec('matplotlib'):
    assert (out / 'heard.png').stat().st_size > 5000
  assert 'hear.html' in capsys.readouterr().out


def test_what_is_missing_is_said(run, monkeypatch, capsys):
  def missing():
    raise UserError('basic-pitch is not installed')

  monkeypatch.setattr(basic_pitch, 'transcriber', missing)
  monkeypatch.setattr(demo_music, 'TEXTS', ('piano',))
  out = run('--seconds=0.5')
  said = capsys.readouterr().out
  assert 'not evaluated: run `python -m experiments.evaluate' in said
  if importlib.util.find_spec('matplotlib'):
    assert 'notes are not drawn: basic-pitch' in said
  else:
    assert 'heard.png is not drawn' in said
  assert (out / '00.wav').is_file()

"""Losses of a run are drawn by one command."""

import json
import sys

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from audiolm_jax.errors import UserError
from experiments import plot


@pytest.fixture
def run(tmp_path):
  """The folder of a run with six stages, of which one has a held-out loss."""
  for number, stage in enumerate(
    ('semantic', 'coarse', 'fine', 'soundstream', 'speaker', 'w2v_bert')
  ):
    (tmp_path / stage).mkdir()
    lines = [{'step': 10 * n, 'time': float(n), 'loss': 4.0 / n + number} for n in (1, 2, 4)]
    if stage == 'semantic':
      lines.append({'step': 30, 'time': 3.0, 'eval/loss': 2.25})
    text = '\n'.join(json.dumps(line) for line in lines)
    (tmp_path / stage / 'metrics.jsonl').write_text(text + '\n{"step": 50, "lo')  # killed there
  (tmp_path / 'tokens').mkdir()
  return tmp_path


def drawn(monkeypatch, *flags) -> None:
  monkeypatch.setattr(sys, 'argv', ['plot', *map(str, flags)])
  plot.main()


def has(picture_HWC: np.ndarray, color: str) -> bool:
  """Returns whether a picture has a pixel of a color."""
  rgb = np.array(matplotlib.colors.to_rgb(color))
  return bool((np.abs(picture_HWC[..., :3] - rgb).max(-1) < 0.01).any())


@pytest.mark.filterwarnings('ignore:.*lines that are not metrics')
def test_a_run_is_drawn_with_its_last_losses(run, monkeypatch, capsys):
  drawn(monkeypatch, f'--workdir={run}')
  assert capsys.readouterr().out.splitlines() == [
    'coarse: training 2',
    'fine: training 3',
    'semantic: training 1, held out 2.25',
    'soundstream: training 4',
    'speaker: training 5',
    'w2v_bert: training 6',
    f'{run}/curves.png',
  ]
  picture_HWC = matplotlib.image.imread(run / 'curves.png')
  assert picture_HWC.shape[:2] == (600, 1280)  # two rows of at most four
  assert has(picture_HWC, 'tab:blue') and has(picture_HWC, 'tab:orange')
  drawn(monkeypatch, f'--workdir={run}')  # again, as training goes on


@pytest.mark.filterwarnings('ignore:.*lines that are not metrics')
def test_chosen_stages_are_drawn_elsewhere(run, tmp_path, monkeypatch):
  target = tmp_path / 'new/losses.png'
  flags = [f'--workdir={run}', '--stage=fine', '--stage=coarse', f'--output={target}']
  drawn(monkeypatch, *flags)
  picture_HWC = matplotlib.image.imread(target)
  assert picture_HWC.shape[:2] == (300, 640)
  assert has(picture_HWC, 'tab:blue') and not has(picture_HWC, 'tab:orange')
  assert not (run / 'curves.png').exists()
  with pytest.raises(UserError, match='losses.png exists: .*--overwrite'):
    drawn(monkeypatch, *flags)
  drawn(monkeypatch, *flags, '--overwrite')


def test_a_stage_that_was_not_trained_is_named(run, monkeypatch):
  with pytest.raises(UserError, match='--stage=finer: .* choose one of coarse, fine, semantic'):
    drawn(monkeypatch, f'--workdir={run}', '--stage=finer')

"""The Colab notebook is its script, and runs on a CPU with toy models."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import types
from unittest import mock

import matplotlib
import numpy as np
import pytest

from audiolm_jax import audio, generation, release
from notebooks import build
from tests import toys

SCRIPT = pathlib.Path(build.__file__).parent / 'audiolm_colab.py'
# In place of those for a real model on a CPU.
SIZES = {'SECONDS': 0.4, 'PROMPT_SECONDS': 0.8, 'STEPS': 2, 'BATCH_SIZE': 8}
SIZES |= {'DETECTOR_STEPS': 2, 'TAKES': 1}


def test_a_script_becomes_cells():
  script = (
    '# %% [markdown]\n# A *text*\n#\n# end\n\n# %% tags=["colab"]\nx = 1  # one\n\n\n# %%\ny = 2\n'
  )
  assert build.cells(script) == [
    ('markdown', [], 'A *text*\n\nend'),
    ('code', ['colab'], 'x = 1  # one'),
    ('code', [], 'y = 2'),
  ]


def test_the_repository_of_the_script_gets_a_badge():
  script = "# %%\nREPOSITORY = 'https://github.com/me/my-audio'  # @param\n"
  made = build.notebook(script)['cells']
  assert [cell['cell_type'] for cell in made] == ['markdown', 'code']
  opened = 'colab.research.google.com/github/me/my-audio/blob/main/notebooks/audiolm_colab.ipynb)'
  assert ''.join(made[0]['source']).endswith(opened)
  assert len(build.notebook(script.replace('https://github.com/me/my-audio', ''))['cells']) == 1


def test_the_notebook_is_its_script_without_outputs():
  found = json.loads(SCRIPT.with_suffix('.ipynb').read_text())
  assert found == build.notebook(SCRIPT.read_text())  # else: python notebooks/build.py
  assert not any(cell.get('outputs') for cell in found['cells'])


def test_the_install_cell_reads_a_repository_or_a_file(tmp_path, monkeypatch):
  install = next(source for _, tags, source in build.cells(SCRIPT.read_text()) if 'colab' in tags)
  commands = []
  module = types.ModuleType('google.colab')
  module.files = types.SimpleNamespace(upload=lambda: {'my audiolm.zip': b''})
  monkeypatch.setitem(sys.modules, 'google', types.ModuleType('google'))
  monkeypatch.setitem(sys.modules, 'google.colab', module)
  monkeypatch.setattr(subprocess, 'run', lambda command, **_: commands.append(command))
  monkeypatch.setattr(shutil, 'which', lambda _: None)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name == 'libtpu' or None)
  monkeypatch.chdir(tmp_path)
  exec(install, {})
  exec(sized(install, 'REPOSITORY', "'https://example.org/a.git'"), {})
  file, repository = (command[-1] for command in commands)
  assert file == f'audiolm_jax[plot,tpu] @ {(tmp_path / "my audiolm.zip").as_uri()}'
  assert repository == 'audiolm_jax[plot,tpu] @ git+https://example.org/a.git'
  assert (tmp_path / 'constraints.txt').read_text() == f'numpy=={np.__version__}\n'


class Shown(list):
  """Records what `IPython.display` would show."""

  def display(self, *objects, display_id=None):
    self.extend(objects)
    return types.SimpleNamespace(update=self.append)

  def module(self) -> types.ModuleType:
    module = types.ModuleType('IPython.display')
    module.display, module.Markdown = self.display, str
    module.Audio = lambda wave_T, rate: (wave_T, rate)
    return module


@pytest.fixture
def shown(monkeypatch) -> Shown:
  shown = Shown()
  package = types.ModuleType('IPython')
  package.display = shown.module()
  package.version_info, package.get_ipython = (9, 0), lambda: None  # for matplotlib
  monkeypatch.setitem(sys.modules, 'IPython', package)
  monkeypatch.setitem(sys.modules, 'IPython.display', package.display)
  return shown


def silence(models, key, prompt_BT, num_samples_B=None, *, seconds, **options):
  """Stands for `generation.continue_audio`."""
  hop, num_new = models.tokenizer.codec.hop_length, round(seconds * toys.RATE)
  wave_BT = np.zeros((1, prompt_BT.shape[1] + num_new), np.float32)
  return types.SimpleNamespace(wave_BT=wave_BT, prompt_frames_B=[prompt_BT.shape[1] // hop])


def silent_words(models, key, semantic_BS, prompt_BFQ=None, **options):
  """Stands for `generation.generate_acoustics`."""
  frames = 0 if prompt_BFQ is None else prompt_BFQ.shape[1]
  num_samples = semantic_BS.shape[1] * models.tokenizer.semantic.hop_length
  return types.SimpleNamespace(wave_BT=np.zeros((1, num_samples)), prompt_frames_B=[frames])


@pytest.mark.filterwarnings('ignore:divide by zero:RuntimeWarning')  # spectrograms of silence
def test_the_cells_play_what_they_say(shown, tmp_path, monkeypatch, capsys):
  """Without compiling the models; tests/test_notebook_kernel.py runs all cells in a kernel."""
  for name, fake in (('continue_audio', silence), ('generate_acoustics', silent_words)):
    spec = mock.create_autospec(getattr(generation, name), side_effect=fake)
    monkeypatch.setattr(generation, name, spec)
  examples = {}
  for name in ('first', 'second'):
    audio.save(tmp_path / f'{name}.flac', toys.noise(1.5, seed=len(examples)), toys.RATE)
    examples[f'examples/{name}.flac'] = tmp_path / f'{name}.flac'
  monkeypatch.setattr(release, '_HOME', tmp_path / 'releases')
  release.save_pretrained(toys.models(), tmp_path / 'releases/speech', copies=examples)
  monkeypatch.chdir(tmp_path)
  matplotlib.use('Agg')
  namespace = {}
  for kind, tags, source in build.cells(SCRIPT.read_text()):
    if kind == 'code' and 'colab' not in tags:
      for name, value in SIZES.items():
        source = sized(source, name, value)
      exec(compile(source, str(SCRIPT), 'exec'), namespace)
  sounds = [thing for thing in shown if isinstance(thing, tuple)]
  titles = [thing.strip('*') for thing in shown if isinstance(thing, str)]
  assert all(rate == toys.RATE and np.isfinite(wave_T).all() for wave_T, rate in sounds)
  new, whole = 0.4, 1.2  # a prompt of 0.8 s and its continuation
  names = [title.partition(':')[0] for title in titles if title != 'Compiling']
  played = {name: wave_T for name, (wave_T, _) in zip(names, sounds, strict=True)}
  lengths = {name: len(wave_T) / toys.RATE for name, wave_T in played.items()}
  assert lengths['SoundStorm'] == lengths['Language models'] == pytest.approx(whole)
  # The blind pair has both sounds, and the answer 'A' was counted as what it was.
  is_a = np.array_equal(played['A'], played['Original'])
  assert is_a != np.array_equal(played['B'], played['Original'])
  assert namespace['answers'] == [is_a]
  assert lengths['After'] == pytest.approx(whole) and lengths['Prompt'] == pytest.approx(
    whole - new
  )
  # The words alone, without the speaker's prompt before them.
  assert lengths['The words by that speaker'] == pytest.approx(lengths['Prompt'])
  assert {title for title in titles if 'kbit/s' in title} == {
    '4 of 4 levels, 0.80 kbit/s',
    '2 of 4 levels, 0.40 kbit/s',
    '1 of 4 levels, 0.20 kbit/s',
  }
  assert list(namespace['losses']) == [1, 2] and namespace['trained'].step == 2
  assert namespace['again'].soundstorm is not None
  # The detector judges each sound, and knows where generated audio begins.
  judged = {title.partition(':')[0]: new for title, _, new in namespace['judged']}
  assert judged.keys() == played.keys()
  assert judged['After'] == judged['SoundStorm'] == pytest.approx(0.8)
  assert judged['The words by that speaker'] == 0 and judged['Original'] == float('inf')
  *_, conclusion = capsys.readouterr().out.split('seconds are recognized')[0].splitlines()
  right, _, total = conclusion.split()[:3]
  # In crops of 0.4 s, those of a prompt and its continuation are 3, none of them both.
  assert 0 <= int(right) <= int(total) == sum(round(lengths[name] / 0.4) for name in names)


def sized(source: str, name: str, value: float) -> str:
  """Returns a cell that assigns another value to the constant `name`, where it assigns one."""
  lines = [
    f'{name} = {value}' if line.startswith(f'{name} = ') else line for line in source.splitlines()
  ]
  return '\n'.join(lines)

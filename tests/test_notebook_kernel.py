"""The Colab notebook runs in a kernel of its own, as in Colab: with toy models, and as it is.

The environment of `make test-colab` has what this needs.
"""

import datetime
import json
import os
import pathlib
import re

import pytest

from audiolm_jax import audio, release
from tests import toys
from tests.test_notebooks import SCRIPT, SIZES, sized

nbclient = pytest.importorskip('nbclient')
psutil = pytest.importorskip('psutil')
import nbformat  # comes with nbclient

ROOT = pathlib.Path(__file__).parents[1]
MAX_CELL_SECONDS = 1200


def executed(folder: pathlib.Path, monkeypatch, **values) -> tuple[list, list[float]]:
  """Runs the notebook in `folder` with other constants.

  Returns:
    The code cells with their outputs, but those that only Colab runs, and the processor seconds of
    each.
  """
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.delenv('MPLBACKEND', raising=False)
  found = json.loads(SCRIPT.with_suffix('.ipynb').read_text())
  cells = [c for c in found['cells'] if 'colab' not in c['metadata'].get('tags', [])]
  for cell in cells:
    source = ''.join(cell['source'])
    for name, value in values.items():
      source = sized(source, name, value)
    cell['source'] = source
  notebook = nbformat.from_dict(found | {'cells': cells})
  clock, processor = [], []

  def used() -> float:
    times = psutil.Process(client.km.provisioner.pid).cpu_times()
    return times.user + times.system

  client = nbclient.NotebookClient(
    notebook,
    timeout=MAX_CELL_SECONDS,
    kernel_name='python3',
    resources={'metadata': {'path': str(folder)}},
    on_cell_execute=lambda cell, cell_index: clock.append(used()),
    on_cell_executed=lambda cell, cell_index, execute_reply: processor.append(used() - clock[-1]),
  )
  client.execute()
  return [cell for cell in notebook.cells if cell.cell_type == 'code'], processor


def sounds(cells) -> int:
  """Returns the number of players among the outputs."""
  outputs = [output for cell in cells for output in cell.outputs]
  return sum('<audio' in output.get('data', {}).get('text/html', '') for output in outputs)


def test_the_notebook_runs_in_a_kernel_with_toy_models(tmp_path, monkeypatch):
  examples = {}
  for name in ('first', 'second'):
    audio.save(tmp_path / f'{name}.flac', toys.noise(1.5, seed=len(examples)), toys.RATE)
    examples[f'examples/{name}.flac'] = tmp_path / f'{name}.flac'
  release.save_pretrained(toys.models(), tmp_path / 'toys', copies=examples)
  cells, _ = executed(tmp_path, monkeypatch, RELEASE="'toys'", **SIZES)
  # Prompts and their continuations (6), codec (4), blind pair (2), voices (5), before and after.
  assert sounds(cells) == 19
  texts = ''.join(output.get('text', '') for cell in cells for output in cell.outputs)
  assert 'step 2, ' in texts and 'seconds are recognized' in texts
  assert (tmp_path / 'my_release.zip').stat().st_size > 10_000


@pytest.mark.slow
def test_the_notebook_as_it_is_takes_these_seconds(tmp_path, monkeypatch):
  """Prints the rows of docs/results/newcomer.md."""
  # The tests' own compile sooner and run slower, and read programs of earlier tests.
  for name in ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR'):
    monkeypatch.delenv(name, raising=False)
  cells, processor = executed(tmp_path, monkeypatch)
  assert sounds(cells) >= 19
  script = SCRIPT.read_text()
  print()
  for cell, seconds in zip(cells, processor, strict=True):
    timing = cell.metadata.execution
    begun, ended = (
      datetime.datetime.fromisoformat(timing[name].replace('Z', '+00:00'))
      for name in ('iopub.execute_input', 'shell.execute_reply')
    )
    first = next(line for line in cell.source.splitlines() if line)
    title = re.findall(r'^# ## (.*)$', script[: script.index(cell.source)], re.MULTILINE)[-1]
    print(f'| {title} (`{first}`) | {seconds:.0f} | ({(ended - begun).total_seconds():.0f}) |')
  print(os.cpu_count(), 'cores')

"""Makes each notebook from the readable script of its name: `python notebooks/build.py`.

Scripts are in jupytext's percent format: `# %%` begins a cell, `[markdown]` after it a text, and
`tags=["..."]` are the tags of the cell. Notebooks have no outputs. Edit the scripts alone.
"""

import json
import pathlib
import re

HERE = pathlib.Path(__file__).parent
_MARKER = re.compile(r'# %%(?P<text> \[markdown\])?(?: tags=(?P<tags>\[.*\]))?')


def cells(script: str) -> list[tuple[str, list[str], str]]:
  """Returns the kind ('code' or 'markdown'), tags and source of each cell of a script."""
  found = []
  for part in re.split(r'^(?=# %%)', script, flags=re.MULTILINE)[1:]:
    marker, _, source = part.partition('\n')
    match = _MARKER.fullmatch(marker)
    kind = 'markdown' if match['text'] else 'code'
    if kind == 'markdown':
      source = re.sub(r'^# ?', '', source, flags=re.MULTILINE)
    found.append((kind, json.loads(match['tags'] or '[]'), source.strip('\n')))
  return found


def notebook(script: str) -> dict:
  """Returns a script as a notebook of nbformat 4.5."""
  made = []
  for number, (kind, tags, source) in enumerate(cells(script)):
    cell = {
      'cell_type': kind,
      'id': f'cell{number:02d}',
      'metadata': {'tags': tags} if tags else {},
    }
    cell['source'] = source.splitlines(keepends=True)
    made.append(cell | ({'execution_count': None, 'outputs': []} if kind == 'code' else {}))
  metadata = {
    'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
    'language_info': {'name': 'python'},
  }
  return {'cells': made, 'metadata': metadata, 'nbformat': 4, 'nbformat_minor': 5}


if __name__ == '__main__':
  for path in HERE.glob('*_colab.py'):
    text = json.dumps(notebook(path.read_text(encoding='utf-8')), indent=1, ensure_ascii=False)
    path.with_suffix('.ipynb').write_text(text + '\n', encoding='utf-8')

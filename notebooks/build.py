"""Makes each notebook from the readable script of its name: `python notebooks/build.py`.

Scripts are in jupytext's percent format: `# %%` begins a cell, `[markdown]` after it a text, and
`tags=["..."]` are the tags of the cell. Notebooks have no outputs. Edit the scripts alone.

Whoever publishes the repository on GitHub sets its address in the script, `REPOSITORY = 'https://...'`:
the install cell then needs no file, and the notebook begins with a badge that opens it in Colab.
"""

import json
import pathlib
import re

HERE = pathlib.Path(__file__).parent
_MARKER = re.compile(r'# %%(?P<text> \[markdown\])?(?: tags=(?P<tags>\[.*\]))?')


# Owner and name of the repository that a script gives as its own.
_REPOSITORY = re.compile(
  r"^REPOSITORY = 'https://github\.com/([\w.-]+/[\w-]+)(?:\.git)?/?'", re.MULTILINE
)
_BADGE = (
  '[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]'
  '(https://colab.research.google.com/github/{}/blob/main/notebooks/audiolm_colab.ipynb)'
)


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
  found, made = cells(script), []
  if repository := _REPOSITORY.search(script):
    found.insert(0, ('markdown', [], _BADGE.format(repository[1])))
  for number, (kind, tags, source) in enumerate(found):
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

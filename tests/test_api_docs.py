"""Every public function of the API pages says what it takes, returns and raises."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(
  module
  for page in (ROOT / 'docs/api').glob('*.md')
  for module in re.findall(r'automodule:: (\S+)', page.read_text())
)


def tree(module: str) -> ast.Module:
  path = ROOT / module.replace('.', '/')
  path = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
  return ast.parse(path.read_text())


def public(body, prefix=''):
  """Yields name and definition of each public function and method; Flax calls `setup`."""
  for node in body:
    name = getattr(node, 'name', '_')
    if name.startswith('_') or name == 'setup':
      continue
    if isinstance(node, ast.ClassDef):
      yield from public(node.body, f'{name}.')
    elif isinstance(node, ast.FunctionDef):
      yield prefix + name, node


def arguments(node: ast.FunctionDef, is_method: bool) -> list[str]:
  found = [arg.arg for arg in [*node.args.posonlyargs, *node.args.args]][is_method:]
  found += [f'*{node.args.vararg.arg}'] if node.args.vararg else []
  found += [arg.arg for arg in node.args.kwonlyargs]
  return found + ([f'**{node.args.kwarg.arg}'] if node.args.kwarg else [])


def described(doc: str) -> list[str]:
  """Returns the names in the section Args of a docstring."""
  section = re.search(r'^Args:\n((?:  .*\n?|\n)*)', doc, re.MULTILINE)
  names = re.findall(r'^  (\*{0,2}\w+(?:, \*{0,2}\w+)*): ', section[1] if section else '', re.M)
  return [name for group in names for name in group.split(', ')]


@pytest.mark.parametrize('module', MODULES)
def test_functions_say_what_they_take_return_and_raise(module):
  faults = []
  for name, node in public(tree(module).body):
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    doc = ast.get_docstring(node) or ''
    if not doc:
      faults.append(f'{name}: no docstring')
    if (taken := arguments(node, '.' in name and 'staticmethod' not in decorators)) != (
      told := described(doc)
    ):
      faults.append(f'{name}: takes {taken}, describes {told}')
    returns = node.returns is not None and ast.unparse(node.returns) != 'None'
    if (
      returns
      and not any('property' in d for d in decorators)
      and not re.search(r'\b(Returns|Yields|returns)\b', doc)
    ):
      faults.append(f'{name}: returns {ast.unparse(node.returns)}, does not say what')
    raises = [n for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc is not None]
    if raises and not re.search(r'^Raises:|\b[Rr]aises\b', doc, re.MULTILINE):
      faults.append(f'{name}: raises, does not say when')
  assert not faults, '\n'.join(faults)

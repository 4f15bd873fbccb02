"""The arrows between the rooms point one way (docs/architecture.md)."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LEAVES = {
  'errors',
  'files',
  'audio',
  'audio_checks',
  'checks',
  'codes_file',
  'arrays_file',
  'tokens',
  'kmeans',
  'losses',
  'parts',
  'stories',
  'storage',
}
# Leaves come before all of them.
ROOMS = [
  'nn',
  'stages',
  'middle',
  'decoding',
  'codec',
  'tokenizer',
  'chain',
  'token_generation',
  'generation',
  'music_generation',
  'release',
  'experiments',
]
MIDDLE = {
  'costs',
  'data',
  'training',
  'testing',
  'sampling',
  'metrics',
  'pretrained',
  'embedding_tokens',
  'joint_embedding',
}
FILES = sorted([*(ROOT / 'audiolm_jax').rglob('*.py'), *(ROOT / 'experiments').rglob('*.py')])
THIRD_PARTY_HOMES = {
  'grain': ('audiolm_jax/data/',),
  'orbax': ('audiolm_jax/training/checkpoints.py', 'audiolm_jax/training/saving.py'),
  **dict.fromkeys(('tensorstore', 'fsspec', 'etils'), ('audiolm_jax/storage/',)),
  'torch': ('experiments/benchmarks/',),  # to be timed beside
  'flax': (
    'audiolm_jax/nn/',
    'audiolm_jax/stages/',
    'audiolm_jax/pretrained/',
    'audiolm_jax/training/sharding.py',
  ),
}
FORBIDDEN = {'tensorflow', 'pickle', 'joblib'}


def imported_modules(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      parents = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
      module = '.'.join([*parents, *filter(None, [node.module])])
      # Programs import one another's helpers relatively: in a wheel they are audiolm_jax.experiments.
      is_program = path.is_relative_to(ROOT / 'experiments')
      assert bool(node.level) == (is_program and module.split('.')[0] == 'experiments'), module
      yield module
      yield from (f'{module}.{alias.name}' for alias in node.names)


def room(module):
  """Returns the rank of a module of ours: leaves -1, then the index in ROOMS; None for what anyone
  may import.
  """
  parts = module.split('.')
  if parts[0] == 'experiments':
    return ROOMS.index('experiments')
  if parts[0] != 'audiolm_jax' or len(parts) == 1:
    return None
  if parts[1] in LEAVES:
    return -1
  name = 'middle' if parts[1] in MIDDLE else parts[1]
  return ROOMS.index(name) if name in ROOMS else None


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_architecture(path):
  relative = path.relative_to(ROOT).as_posix()
  own_module = relative.removesuffix('.py').replace('/', '.')
  own_room = room(own_module)
  for module in imported_modules(path):
    top = module.split('.')[0]
    assert top not in FORBIDDEN, f'{relative} imports {module}'
    if top in THIRD_PARTY_HOMES:
      assert relative.startswith(THIRD_PARTY_HOMES[top]), f'{relative} imports {module}'
    other_room = room(module)
    if own_room is not None and other_room is not None:
      assert other_room <= own_room, (
        f'{relative} imports {module}, which lives further down the stream'
      )
    if relative.startswith('audiolm_jax/stages/') and module.startswith('audiolm_jax.stages.'):
      assert module.startswith('audiolm_jax.stages.base'), (
        f'{relative}: a stage imports another stage: {module}'
      )
    if relative.startswith(('audiolm_jax/data/', 'audiolm_jax/training/', 'audiolm_jax/sampling')):
      if module.startswith('audiolm_jax.stages.'):
        assert module.startswith('audiolm_jax.stages.base'), f'{relative} knows a stage: {module}'


def test_programs_do_not_import_one_another():
  programs = {
    path.stem
    for path in (ROOT / 'experiments').glob('*.py')
    if "__name__ == '__main__'" in path.read_text()
  }
  for name in programs:
    for module in imported_modules(ROOT / 'experiments' / f'{name}.py'):
      assert not (module.startswith('experiments.') and module.split('.')[1] in programs), (
        f'{name} imports {module}'
      )


def test_helpers_of_programs_have_rooms():
  guard = "__name__ == '__main__'"
  helpers = {p.stem for p in (ROOT / 'experiments').glob('*.py') if guard not in p.read_text()}
  assert helpers == {'__init__', 'recipe', 'corpora', 'inputs', 'sources', 'workspace'}

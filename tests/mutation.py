r"""Changes one operator, comparison or constant of a module at a time, and counts the changes that
its tests notice.

  make test-mutation
  .venv-mutation/bin/python -m tests.mutation --module=audiolm_jax/tokens.py --count=20 --seed=1

Cosmic Ray makes the mutants, of which a random sample is tried: in memory, each in a process of its
own that is forked from one with JAX loaded. Prints the diff of each survivor: write a test that fails
with it, or, if it behaves as the original does, add its line to SAME.
"""

import argparse
import ast
import contextlib
import difflib
import importlib.machinery
import multiprocessing
import os
import pathlib
import random
import resource
import sys
import warnings
from collections.abc import Iterator

import flax.linen  # noqa: F401  here, and not once for each mutant
import hypothesis  # noqa: F401
import librosa  # noqa: F401
import optax  # noqa: F401
import pytest
import scipy.optimize  # noqa: F401
import sklearn.cluster  # noqa: F401
from cosmic_ray import commands, mutating, plugins, work_db
from cosmic_ray.work_item import MutationSpec

from tests import conftest  # noqa: F401  the compilation cache of all mutants

ROOT = pathlib.Path(__file__).parents[1]
# Modules that import little of the package, and their own tests, which take seconds.
MODULES = {
  'audiolm_jax/checks.py': 'tests/test_checks.py',
  'audiolm_jax/codes_file.py': 'tests/test_codes_file.py',
  'audiolm_jax/embedding_tokens.py': 'tests/test_embedding_tokens.py',
  'audiolm_jax/kmeans.py': 'tests/test_kmeans.py',
  'audiolm_jax/losses.py': 'tests/test_losses.py',
  'audiolm_jax/sampling.py': 'tests/test_sampling.py',
  'audiolm_jax/tokens.py': 'tests/test_tokens.py',
  'audiolm_jax/metrics/abx.py': 'tests/metrics/test_abx.py',
  'audiolm_jax/metrics/detection.py': 'tests/metrics/test_detection.py',
  'audiolm_jax/metrics/frechet.py': 'tests/metrics/test_frechet.py',
  'audiolm_jax/metrics/language.py': 'tests/metrics/test_language.py',
  'audiolm_jax/metrics/tokens.py': 'tests/metrics/test_tokens.py',
}
KINDS = (
  'core/NumberReplacer',
  'core/ReplaceAndWithOr',
  'core/ReplaceBinaryOperator',
  'core/ReplaceComparisonOperator',
  'core/ReplaceFalseWithTrue',
  'core/ReplaceOrWithAnd',
  'core/ReplaceTrueWithFalse',
  'core/ReplaceUnaryOperator',
)
# Lines whose constants change speed or memory, or guard against a division by 0.
EQUIVALENT = (
  '_BLOCK = 2**14',
  'batch_size=4096',
  'max_iter=100',
  'n_init=3',
  'max_no_improvement=20',
  'np.std(log_odds_N)), 1e-12',
  "'gtol': 1e-8",
  'np.clip(z_N, -500, 500)',
)
# Changed lines that compute what the original computes.
SAME = (
  'range(2 * context ^ 1)',  # of an even number, + 1 is ^ 1 and | 1
  'range(2 * context | 1)',
  'zip(inputs, targets, strict=False)',  # lengths were compared before
  '(len(comparison.a) & len(comparison.b))',  # when a block is full, which changes speed alone
  'if len(start) != _START:',  # what read(_START) gives is never longer
  'np.where(scale_D >= 1e-6, scale_D, 1)',  # a scale of exactly this float
  '(other_PMD[:, None, :, -1] >= 1)',  # of values from 0 to 1
  'here = codes_BFQ > PAD',  # which is the least that codes can be
  'np.where(before_BL < PAD, codebook_size, before_BL)',  # PAD, as an index, is the last, START
  'is_finite = lambda value: - 1e+308 < value < 1e308',  # another spelling of the bound
  'if high is LARGEST',  # which the default is; another int of that size changes a message
  'safe_BL = jnp.where(mask_BL, targets_BL, 1)',  # ids that the mask leaves out
)
# pytest's plugins that are loaded already, which warns, need no rewritten assertions.
OPTIONS = (
  *('-x', '-q', '-p', 'no:cacheprovider'),
  *('-W', 'ignore::pytest.PytestAssertRewriteWarning'),
)
PROCESSOR_SECONDS = 300  # of a mutant, which may never end
SHARE = 0.95  # to be killed


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--module', action='append', choices=MODULES, help='may be repeated (all)')
  parser.add_argument('--count', type=int, default=6, help='number of mutants of a module (6)')
  parser.add_argument('--seed', type=int, default=0, help='of the sample (0)')
  args = parser.parse_args()
  os.chdir(ROOT)
  warnings.filterwarnings('ignore', message=r'os\.fork\(\) was called', category=RuntimeWarning)
  found = [killed(pathlib.Path(name), args.count, args.seed) for name in args.module or MODULES]
  total, dead = (sum(numbers) for numbers in zip(*found))
  print(f'{dead} of {total} mutants killed')
  if dead < SHARE * total:
    sys.exit(1)


def killed(module: pathlib.Path, count: int, seed: int) -> tuple[int, int]:
  """Returns how many mutants of a module were tried, and how many of them failed its tests."""
  text, test = module.read_text(), MODULES[str(module)]
  if not passes(module, text, test):
    sys.exit(f'{test} fails without a mutant')
  every = list(mutants(module))
  chosen = random.Random(seed).sample(every, min(count, len(every)))
  dead, same = 0, 0
  for mutant in chosen:
    operator = plugins.get_operator(mutant.operator_name)(**mutant.operator_args)
    changed = mutating.mutate_code(text, operator, mutant.occurrence)
    _, _, *diff = difflib.unified_diff(text.splitlines(), changed.splitlines(), lineterm='', n=1)
    if any(part in line for part in SAME for line in diff if line.startswith('+')):
      same += 1
    elif passes(module, changed, test):
      print('\n'.join(['survivor:', *diff]), flush=True)
    else:
      dead += 1
  total = len(chosen) - same
  print(f'{module}: {dead} of {total} killed, {same} the same, of {len(every)}', flush=True)
  return total, dead


def passes(module: pathlib.Path, text: str, test: str) -> bool:
  """Returns whether the tests pass where `text` is the source of the module."""
  process = multiprocessing.get_context('fork').Process(target=_test, args=(module, text, test))
  process.start()
  process.join()
  return process.exitcode == 0


def _test(module: pathlib.Path, text: str, test: str) -> None:
  """Ends the process with the exit status of the tests."""
  resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
  loader, place = importlib.machinery.SourceFileLoader, str(module.resolve())

  def get_data(self, path, original=loader.get_data):
    return text.encode() if path == place else original(self, path)

  def path_stats(self, path, original=loader.path_stats):
    if path == place:
      raise OSError('no bytecode is read, and none is written')
    return original(self, path)

  loader.get_data, loader.path_stats = get_data, path_stats
  with open(os.devnull, 'w') as null, contextlib.redirect_stdout(null):
    sys.exit(int(pytest.main([*OPTIONS, test])))


def mutants(module: pathlib.Path) -> Iterator[MutationSpec]:
  """Yields the mutants of a module, except for those of annotations and of EQUIVALENT lines."""
  text = module.read_text()
  lines, annotations = text.splitlines(), list(_annotations(ast.parse(text)))
  with work_db.use_db(':memory:', work_db.WorkDB.Mode.create) as database:
    commands.init([module], database, {})
    found = [item.mutations[0] for item in database.pending_work_items]
  # The database orders them by chance.
  for mutant in sorted(found, key=lambda m: (m.start_pos, m.operator_name, m.occurrence)):
    inside = any(start <= mutant.start_pos < end for start, end in annotations)
    line = lines[mutant.start_pos[0] - 1]
    if mutant.operator_name.startswith(KINDS) and not inside:
      if not any(part in line for part in EQUIVALENT):
        yield mutant


def _annotations(tree: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
  """Yields beginning and end of each annotation, as (line, column)."""
  for node in ast.walk(tree):
    for name in ('annotation', 'returns'):
      if (part := getattr(node, name, None)) is not None:
        yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


if __name__ == '__main__':
  main()

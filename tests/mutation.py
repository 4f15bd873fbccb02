r"""Changes one operator, comparison or constant of a module at a time, and counts the changes that
its tests notice.

  make test-mutation
  .venv-mutation/bin/python -m tests.mutation --module=audiolm_jax/tokens.py --count=20 --seed=1

Cosmic Ray makes the mutants, of which a random sample is tried, in a copy of the checkout. Prints the
diff of each survivor: write a test that fails with it, or, if it behaves as the original does, add
its line to EQUIVALENT.
"""

import argparse
import ast
import os
import pathlib
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from cosmic_ray import commands, mutating, work_db
from cosmic_ray.work_item import MutationSpec, TestOutcome

ROOT = pathlib.Path(__file__).parents[1]
# Modules that import little of the package, and their tests, which take seconds.
MODULES = {
  'audiolm_jax/checks.py': ('tests/test_checks.py', 'tests/test_tokens.py'),
  'audiolm_jax/codes_file.py': ('tests/test_codes_file.py',),
  'audiolm_jax/embedding_tokens.py': ('tests/test_embedding_tokens.py',),
  'audiolm_jax/kmeans.py': ('tests/test_kmeans.py', 'tests/test_tokenizer.py'),
  'audiolm_jax/losses.py': ('tests/test_losses.py',),
  'audiolm_jax/sampling.py': ('tests/test_sampling.py',),
  'audiolm_jax/tokens.py': ('tests/test_tokens.py', 'tests/test_tokenizer.py'),
  'audiolm_jax/metrics/abx.py': ('tests/metrics/test_abx.py',),
  'audiolm_jax/metrics/detection.py': ('tests/metrics/test_detection.py',),
  'audiolm_jax/metrics/frechet.py': ('tests/metrics/test_frechet.py',),
  'audiolm_jax/metrics/language.py': ('tests/metrics/test_language.py',),
  'audiolm_jax/metrics/tokens.py': ('tests/metrics/test_tokens.py',),
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
TIMEOUT_SECONDS = 600.0
SHARE = 0.95  # to be killed


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--module', action='append', choices=MODULES, help='may be repeated (all)')
  parser.add_argument('--count', type=int, default=10, help='number of mutants of a module (10)')
  parser.add_argument('--seed', type=int, default=0, help='of the sample (0)')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix='mutation_') as folder:
    checkout = pathlib.Path(folder) / 'checkout'
    shutil.copytree(
      ROOT, checkout, ignore=shutil.ignore_patterns('.*', 'runs', '_build', '*.egg-info')
    )
    os.chdir(checkout)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(pathlib.Path(folder) / 'compiled')
    found = [killed(pathlib.Path(name), args.count, args.seed) for name in args.module or MODULES]
  total, dead = (sum(numbers) for numbers in zip(*found))
  print(f'{dead} of {total} mutants killed')
  if dead < SHARE * total:
    sys.exit(1)


def killed(module: pathlib.Path, count: int, seed: int) -> tuple[int, int]:
  """Returns how many mutants of a module were tried, and how many of them failed its tests."""
  words = [sys.executable, '-m', 'pytest', '-x', '-q', *MODULES[str(module)]]
  command = shlex.join(words)
  # Unlike a mutant's, this run leaves bytecode of all other modules.
  if subprocess.run(words).returncode:
    sys.exit(f'{command} fails without a mutant')
  every = list(mutants(module))
  chosen = random.Random(seed).sample(every, min(count, len(every)))
  dead = 0
  for number, mutant in enumerate(chosen, 1):
    result = mutating.mutate_and_test([mutant], command, TIMEOUT_SECONDS)
    if result.test_outcome is TestOutcome.INCOMPETENT:
      sys.exit(f'{module}: {result.output}')
    dead += result.is_killed
    print(f'{module}: {dead} of {number} killed', flush=True)
    if not result.is_killed:
      print(result.diff, flush=True)
  return len(chosen), dead


def mutants(module: pathlib.Path) -> Iterator[MutationSpec]:
  """Yields the mutants of a module, except for those of annotations and of EQUIVALENT lines."""
  text = module.read_text()
  lines, annotations = text.splitlines(), list(_annotations(ast.parse(text)))
  with work_db.use_db(':memory:', work_db.WorkDB.Mode.create) as database:
    commands.init([module], database, {})
    items = list(database.pending_work_items)
  for [mutant] in (item.mutations for item in items):
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

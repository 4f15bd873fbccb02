"""What the processes of a pod share in saving and loading: listings, clocks and digests."""

import json

import jax

from audiolm_jax import storage
from audiolm_jax.training import checkpoints, loop, saving
from tests.faults import runs
from tests.training import toy, toy_pod


def _digested(function) -> tuple[object, list[str]]:
  """Returns the result of a function, and the files that this process digested meanwhile."""
  digest, names = storage.digest, []

  def counting(path, *arguments):
    names.append(str(path).split('checkpoints/')[-1])
    return digest(path, *arguments)

  storage.digest = counting
  try:
    return function(), names
  finally:
    storage.digest = digest


def train_with_a_listing_of_its_own(workdir):
  """Trains the toy to step 12; process 1 sees a step 5 that is not there, and no clock of its own."""
  if jax.process_index():
    steps = checkpoints.steps
    checkpoints.steps = lambda directory: sorted({5, *steps(directory)})
    saving.Saver.seconds_since_save = 0.0
  config = toy.Config()
  train = toy_pod.settings(12, save_every=5, save_every_seconds=1e-3, log_every=4)
  batches = lambda: toy_pod.SlowBatches(process=jax.process_index(), processes=jax.process_count())
  run = lambda: loop.train(config.make(), config, train, make_batches=batches, workdir=workdir)
  _, saved = _digested(run)
  if jax.process_index():
    checkpoints.steps = steps
  load = lambda: checkpoints.load_variables(workdir, config=config)
  _, loaded = _digested(load)
  print('\n' + json.dumps({'saved': saved, 'loaded': loaded}))


def test_each_process_digests_what_it_writes_and_the_first_decides(tmp_path, outcome):
  run, logs = tmp_path / 'run', tmp_path / 'logs'
  pod = runs.start_pod(train_with_a_listing_of_its_own, run, count=2, devices=2, logs=logs)
  outputs = runs.finish_pod(pod, logs, seconds=600)
  first, second = (json.loads(output.strip().splitlines()[-1]) for output in outputs)
  directory = run / 'checkpoints'
  steps = checkpoints.steps(directory)
  # Step 4 and 8 by the clock, at steps that are logged; 5, 10 and 12 in any case. Three are kept.
  assert steps == [8, 10, 12]
  assert all(checkpoints.step_fault(directory, step) is None for step in steps)
  own = lambda index: f'/ocdbt.process_{index}/'
  assert second['saved'] and all(own(1) in name for name in second['saved'])
  assert not any(own(1) in name for name in first['saved'])
  # One process has checked what both read: no optimizer, no parameters beside their average.
  assert second['loaded'] == []
  items = {name.split('/')[1] for name in first['loaded']}
  assert items == {'metadata', 'state', 'ema_params'}
  assert not list(directory.rglob('digest-*'))
  outcome(
    'F4',
    f'of 5 saves process 1 digested its {len(second["saved"])} files, process 0 its own '
    f'{len(first["saved"])}; loaded with {len(first["loaded"])} digests in all',
  )

"""F4, F13, F16 and what else several processes promise: real ones, under jax.distributed on CPU
devices.
"""

import json
import os
import pathlib
import signal
import time

import jax
import numpy as np

from audiolm_jax.data import pipeline, token_shards
from audiolm_jax.stages.base import Feature
from audiolm_jax.training import checkpoints, metrics_writer
from experiments.cli import command_line, pod
from tests.faults import runs
from tests.training import toy_pod


def _difference(one, other) -> float:
  """Returns the largest relative difference of any loss or gradient norm of two runs."""
  one, other = (metrics_writer.read(directory) for directory in (one, other))
  assert list(one) == list(other)
  names = ('loss', 'grad_norm/hidden', 'grad_norm/output')
  pairs = [(one[step][name], other[step][name]) for step in one for name in names]
  return max(abs(a - b) / abs(b) for a, b in pairs)


def test_f4_a_signal_to_one_of_two_saves_on_both(place, tmp_path, outcome):
  """SIGTERM to the second of two; resumed, they train like one process with as many devices."""
  run, logs = place / 'pod', tmp_path / 'logs'
  pod = _pod_at(6, toy_pod.train, run, 400, logs=logs)
  os.kill(pod[1].pid, signal.SIGTERM)
  outputs = [output.split()[-2:] for output in runs.finish_pod(pod, logs)]
  step = int(outputs[0][0])
  assert outputs == 2 * [[str(step), 'True']]
  assert runs.newest(run) == step < 400
  num_steps = step + 10
  # One after another: on a machine that is too busy Gloo gives up waiting for the other process.
  for workdir, count in ((run, 2), (tmp_path / 'unbroken', 2), (tmp_path / 'one', 1)):
    logs = tmp_path / f'logs of {workdir.name} {count}'
    started = runs.start_pod(
      toy_pod.train, workdir, num_steps, count=count, devices=4 // count, logs=logs
    )
    outputs = runs.finish_pod(started, logs)
    assert all(output.split()[-2:] == [str(num_steps), 'False'] for output in outputs)
  broken = _difference(run, tmp_path / 'unbroken')
  assert broken == 0
  alone = _difference(run, tmp_path / 'one')
  assert alone <= 1e-5
  outcome(
    'F4', f'both saved step {step} and left; resumed to {num_steps}, bitwise the unbroken two'
  )
  outcome(
    'F12',
    f'2 processes x 2 devices against 1 x 4: losses and gradient norms differ by at most {alone:.1e}',
  )


def _pod_at(step, function, run, *arguments, logs):
  """Starts two processes and returns them once they have logged `step`."""
  for attempt in range(3):
    pod = runs.start_pod(function, run, *arguments, count=2, devices=2, logs=logs)
    try:
      runs.wait_for_step(pod[0], run, step)
      return pod
    except (
      AssertionError
    ):  # Gloo waits 30 s for the other process to compile: too little on a busy machine
      for process in pod:
        process.kill()
        process.join()
      if attempt == 2 or 'Gloo context initialization failed' not in (logs / '0').read_text():
        raise


# Whoever ends first ends the other: by its own bound, or by JAX's service, which aborts.
ENDED, BY_JAX = (
  (command_line.RESTART, -signal.SIGABRT),
  'Terminating process because the JAX distributed service detected fatal errors',
)


class HangingBatches(toy_pod.SlowBatches):
  """The second process gets no batch 6."""

  def __next__(self):
    if self.get_state()['next_index'] == 6 and jax.process_index() == 1:
      time.sleep(10_000)
    return super().__next__()


def train_bounded(workdir, make_batches):
  toy_pod.train(workdir, 400, make_batches, slow_seconds=5.0, timeout_seconds=30.0)


def test_f16_a_hung_data_source_ends_all_processes(place, tmp_path, outcome):
  run, logs = place / 'run', tmp_path / 'logs'
  pod = _pod_at(5, train_bounded, run, HangingBatches, logs=logs)
  began = time.monotonic()
  outputs = runs.finish_pod(pod, logs, code=ENDED, seconds=240)
  seconds = time.monotonic() - began
  assert 'process 1 of 2' in outputs[1] and 'data of step 6 has taken 5 s so far' in outputs[1]
  assert all('error: process' in output or BY_JAX in output for output in outputs)
  assert any('has not ended after 30 s' in output for output in outputs)
  assert checkpoints.steps(run / 'checkpoints') == [5]
  outcome(
    'F16',
    f'a data source that hangs in one of two (bound 30 s): both ended in {seconds:.0f} s, host and phase named',
  )


def test_f16_a_stopped_peer_ends_the_other(place, tmp_path, outcome):
  """SIGSTOP: the process does not even beat its heart any more."""
  run, logs = place / 'run', tmp_path / 'logs'
  pod = _pod_at(6, train_bounded, run, toy_pod.SlowBatches, logs=logs)
  runs.wait_for_save(pod[0], run, 5)  # both save in the background
  os.kill(pod[1].pid, signal.SIGSTOP)
  began = time.monotonic()
  try:
    output = runs.finish(pod[0], logs / '0', code=ENDED, seconds=240)
  finally:
    pod[1].kill()
    pod[1].join()
  seconds = time.monotonic() - began
  assert 'error: process 0 of 2' in output or BY_JAX in output
  assert runs.newest(run) >= 5
  outcome('F16', f'a peer that is stopped (SIGSTOP): the other ended in {seconds:.0f} s')


def test_f16_a_killed_peer_ends_the_other(place, tmp_path, outcome):
  run, logs = place / 'run', tmp_path / 'logs'
  pod = _pod_at(6, train_bounded, run, toy_pod.SlowBatches, logs=logs)
  pod[1].kill()
  began = time.monotonic()
  output = runs.finish(pod[0], logs / '0', code=ENDED, seconds=240)
  seconds = time.monotonic() - began
  assert 'error: process 0 of 2' in output or BY_JAX in output
  again = runs.start_pod(toy_pod.train, run, 12, count=2, devices=2, logs=tmp_path / 'again')
  runs.finish_pod(again, tmp_path / 'again')
  outcome(
    'F16', f'a peer killed with -9: the other ended in {seconds:.0f} s; started again, both went on'
  )


def check_shared(folder, ending):
  """`ending`: of the names of the processes' folders, where each has its own."""
  workdir = pathlib.Path(f'{folder}{jax.process_index() if ending else ""}')
  workdir.mkdir(exist_ok=True)
  pod.check_shared(workdir, patience_seconds=1.0)
  print('shared', len(list(workdir.iterdir())))


def test_processes_without_the_storage_of_the_first_end_before_training(tmp_path):
  for ending, code, said in ((False, 0, 'shared 0'), (True, 1, 'workdir0 of process 1 (1 of 2')):
    logs = tmp_path / f'logs{code}'
    pod = runs.start_pod(check_shared, tmp_path / 'workdir', ending, count=2, devices=1, logs=logs)
    outputs = runs.finish_pod(pod, logs, code=code)
    assert said in outputs[0]
    assert not ending or 'is not that of process 0: mount the same storage' in outputs[1]


NUM_EXAMPLES, BATCH_SIZE, STEPS = 23, 8, 9
FEATURES = {'semantic': Feature((4,), np.int32, 25.0), 'label': Feature((), np.int32, None)}


def read_batches(folder, stop, out):
  """Reads global batches from a saved position on: appends their rows, as the devices hold them, to
  `out`.
  """
  from audiolm_jax.training import sharding

  source = token_shards.TokenShards(folder, 'train')
  reads = []
  get = token_shards.TokenShards.__getitem__
  token_shards.TokenShards.__getitem__ = lambda self, i: reads.append(i) or get(self, i)
  batches = pipeline.batches(
    source,
    FEATURES,
    batch_size=BATCH_SIZE,
    seed=3,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    num_threads=1,
  )
  position = pathlib.Path(f'{out}.position')
  if position.exists():
    batches.set_state(json.loads(position.read_text()))
  mesh = sharding.make_mesh(sharding.MeshConfig())
  gather = jax.jit(lambda batch: batch, out_shardings=sharding.replicated(mesh))
  for _ in range(batches.get_state()['step'], stop):
    batch = jax.device_get(gather(sharding.global_batch(next(batches), mesh)))
    if jax.process_index() == 0:
      with open(out, 'a') as file:
        file.write(json.dumps({name: array.tolist() for name, array in batch.items()}) + '\n')
  if jax.process_index() == 0:
    position.write_text(json.dumps(batches.get_state()))
  print('reads', len(reads))


def test_f13_the_same_global_batches_for_2_4_and_1_processes(place, tmp_path, outcome):
  """The number changes on the way: the position is taken over exactly, no example is repeated or
  lost.
  """
  for shard in range(3):
    rows = [
      {'semantic': np.arange(10) + 100 * i, 'label': i} for i in range(shard, NUM_EXAMPLES, 3)
    ]
    token_shards.write_shard(place, 'train', shard, 3, rows)
  token_shards.write_manifest(place, 'train', 3, {})
  reads = []
  parts = (('whole', 1, 0, STEPS), ('parts', 2, 0, 3), ('parts', 4, 3, 6), ('parts', 1, 6, STEPS))
  for name, count, first, stop in parts:
    logs = tmp_path / f'logs of {name} {first}'
    out = tmp_path / f'{name}.jsonl'
    pod = runs.start_pod(read_batches, place, stop, out, count=count, devices=4 // count, logs=logs)
    reads.append([int(output.split()[-1]) for output in runs.finish_pod(pod, logs)])
    # Each reads its own rows, one example to check the features by, and what it prefetches.
    assert max(reads[-1]) <= (stop - first + 4) * BATCH_SIZE // count + 1, reads
  texts = [(tmp_path / f'{name}.jsonl').read_text() for name in ('whole', 'parts')]
  assert texts[0] == texts[1] and texts[0].count('\n') == STEPS
  labels = [label for line in texts[0].splitlines() for label in json.loads(line)['label']]
  for epoch in range(STEPS * BATCH_SIZE // NUM_EXAMPLES):
    assert sorted(labels[epoch * NUM_EXAMPLES : (epoch + 1) * NUM_EXAMPLES]) == list(
      range(NUM_EXAMPLES)
    )
  outcome(
    'F13',
    f'2, then 4, then 1 process: the same {STEPS} global batches as by 1; examples read by each: '
    f'{reads}',
  )

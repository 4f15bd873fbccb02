"""The loop: exact resume under kills and signals, non-finite steps."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest

from audiolm_jax import testing
from audiolm_jax.errors import UserError
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.stages import semantic
from audiolm_jax.training import (
  checkpoints,
  errors,
  loop,
  metrics_writer,
  monitor,
  optimizers,
  preemption,
)
from tests.training import toy, toy_run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
  """An uninterrupted run: (its result, its metrics by step, what it reported)."""
  directory = tmp_path_factory.mktemp('reference')
  events = []
  result = toy_run.train(directory, report=events.append)
  return result, metrics_writer.read(directory), events


def _start(directory, *arguments):
  command = [sys.executable, '-m', 'tests.training.toy_run', str(directory), *arguments]
  return subprocess.Popen(
    command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


def _wait_for_step(process, directory, step):
  """Returns when the process has logged `step`: what was in the metrics file before may hold it
  already.
  """
  file = directory / 'metrics.jsonl'
  skip = file.stat().st_size if file.exists() else 0
  while process.poll() is None:
    if file.exists() and f'{{"step": {step}, '.encode() in file.read_bytes()[skip:]:
      return
    time.sleep(0.005)
  raise AssertionError(process.communicate())


def _assert_same_run(directory, result, reference):
  expected, expected_metrics, _ = reference
  metrics = metrics_writer.read(directory)
  assert list(metrics) == list(range(1, toy_run.TRAIN.num_steps + 1))
  for step, values in expected_metrics.items():
    for name in set(values) - {'time', 'steps_per_second'}:
      assert metrics[step][name] == values[name], (step, name)
  assert result.step == expected.step
  testing.assert_trees_equal(jax.device_get(result.variables), jax.device_get(expected.variables))


def test_reports_and_result(reference):
  result, metrics, events = reference
  assert (result.step, result.preempted) == (48, False)
  assert result.metrics['loss'] == metrics[48]['loss']
  # what is evaluated is what was trained since
  assert len({metrics[step]['eval/loss'] for step in (16, 32, 48)}) == 3
  assert [event['step'] for event in events if 'eval/loss' in event['metrics']] == [16, 32, 48]
  assert all(event['steps_per_second'] > 0 for event in events if 'loss' in event['metrics'])
  assert {
    'grad_norm/hidden',
    'grad_norm/output',
    'update_norm',
    'learning_rate',
    'mean_error',
  } <= set(metrics[1])


def test_exact_resume_through_kills_and_signals(reference, tmp_path):
  """kill -9 at random and at the worst moments, then SIGTERM, then to the end: bitwise the
  uninterrupted run.
  """
  moments = random.Random(0)
  for step in (6, 10):
    process = _start(tmp_path)
    _wait_for_step(process, tmp_path, step)
    time.sleep(moments.uniform(0, 0.2))
    process.kill()
    process.communicate()
  for moment in ('data', 'digest', 'prune'):
    before = checkpoints.steps(tmp_path / 'checkpoints')
    process = _start(tmp_path, moment)
    errors = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, errors
    # Nothing whole is lost; there may be nothing yet, where the first save was hit.
    assert checkpoints.steps(tmp_path / 'checkpoints')[-1:] >= before[-1:]
  at = checkpoints.steps(tmp_path / 'checkpoints')[-1] + 2
  process = _start(tmp_path)
  _wait_for_step(process, tmp_path, at)
  process.terminate()
  output, errors = process.communicate()
  assert process.returncode == 0, errors
  name, step, preempted = output.split()
  assert preempted == 'True' and int(step) == checkpoints.steps(tmp_path / 'checkpoints')[-1]
  last_line = (tmp_path / 'metrics.jsonl').read_text().splitlines()[-1]
  assert int(step) == json.loads(last_line)['step'] < 48  # no step was lost
  result = toy_run.train(tmp_path)
  _assert_same_run(tmp_path, result, reference)
  assert len(checkpoints.steps(tmp_path / 'checkpoints')) == 2
  again = toy_run.train(tmp_path)  # nothing left to do
  assert again.step == 48 and again.metrics == {}


def test_second_signal_leaves_at_once():
  before = signal.getsignal(signal.SIGINT)
  with preemption.stop_signal() as stop:
    assert not stop(0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop(1)
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
  assert signal.getsignal(signal.SIGINT) == before


def test_non_finite_step_stops_with_the_state_before_it(reference, tmp_path):
  with pytest.raises(errors.NonFiniteError, match=r"step 18: .*'loss': nan.*saved as step 18"):
    toy_run.train(tmp_path, lambda: toy.Batches(poison=18))
  assert checkpoints.steps(tmp_path / 'checkpoints')[-1] == 18
  assert max(metrics_writer.read(tmp_path)) == 18
  # with sound data it goes on as if nothing had been
  _assert_same_run(tmp_path, toy_run.train(tmp_path), reference)


def test_non_finite_step_just_before_a_save(tmp_path):
  with pytest.raises(errors.NonFiniteError, match='step 11: '):
    toy_run.train(tmp_path, lambda: toy.Batches(poison=11))
  assert checkpoints.steps(tmp_path / 'checkpoints') == [6, 11]


class Spoiled(toy.Batches):
  """Batch 14 is not finite, batch 27 makes the loss explode."""

  def __init__(self):
    super().__init__(poison=14)

  def __next__(self):
    index = self.get_state()['next_index']
    batch = super().__next__()
    return batch | {'target': batch['target'] * (1e4 if index == 27 else 1)}


def test_more_slack_keeps_what_skips_and_rollbacks_promise(reference, tmp_path, monkeypatch):
  changed = dataclasses.replace(
    toy_run.TRAIN, max_skipped_batches=1, rollback=monitor.RollbackConfig()
  )
  found = []
  for slack in (1, 4):
    monkeypatch.setattr(toy_run, 'TRAIN', dataclasses.replace(changed, slack_steps=slack))
    result = toy_run.train(tmp_path / str(slack), Spoiled)
    metrics = metrics_writer.read(tmp_path / str(slack))
    found.append((jax.device_get(result.variables), [metrics[s]['loss'] for s in sorted(metrics)]))
    assert metrics[48]['rollbacks'] == metrics[48]['skipped_batches'] == 1
  testing.assert_trees_equal(*(variables for variables, _ in found))
  assert found[0][1] == found[1][1]


def test_more_slack_stops_with_the_state_before_the_step(reference, tmp_path, monkeypatch):
  monkeypatch.setattr(toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, slack_steps=3))
  with pytest.raises(errors.NonFiniteError, match='step 19: .*saved as step 19'):
    toy_run.train(tmp_path, lambda: toy.Batches(poison=19))
  assert checkpoints.steps(tmp_path / 'checkpoints')[-1] == 19
  _assert_same_run(tmp_path, toy_run.train(tmp_path), reference)


def test_other_fingerprints_are_refused_and_the_clock_saves_too(tmp_path, monkeypatch):
  changed = dataclasses.replace(
    toy_run.TRAIN, num_steps=3, save_every=1000, save_every_seconds=1e-9, max_to_keep=9
  )
  monkeypatch.setattr(toy_run, 'TRAIN', changed)
  toy_run.train(tmp_path, fingerprints={'codec': 'a'})
  assert checkpoints.steps(tmp_path / 'checkpoints') == [1, 2, 3]
  with pytest.raises(ValueError, match="trained with {'codec': 'a'}, now {'codec': 'b'}"):
    toy_run.train(tmp_path, fingerprints={'codec': 'b'})


def test_any_optax_transformation_takes_the_place_of_the_config(reference, tmp_path, monkeypatch):
  """The same rule given as a transformation: bitwise the same losses, also when resumed."""
  rule = optax.adam(optax.constant_schedule(1e-2), 0.9, 0.999)
  other = optimizers.OptimizerConfig(learning_rate=0.5, clip_norm=1e-3)
  for num_steps in (3, 7):
    settings = dataclasses.replace(
      toy_run.TRAIN, num_steps=num_steps, eval_every=None, optimizer=other
    )
    monkeypatch.setattr(toy_run, 'TRAIN', settings)
    toy_run.train(tmp_path, optimizer=rule)
  metrics, (_, expected, _) = metrics_writer.read(tmp_path), reference
  for step in range(1, 8):
    assert metrics[step]['loss'] == expected[step]['loss']
    assert metrics[step]['update_norm'] == expected[step]['update_norm']
    assert 'learning_rate' not in metrics[step]
  _, _, metadata = checkpoints.load_variables(tmp_path, config=toy.Config())
  assert 'given to loop.train' in metadata['training']['fields']['optimizer']


def test_a_true_value_from_report_saves_and_ends_the_run(reference, tmp_path):
  events = []

  def report(event):
    events.append(event)
    return event['metrics'].get('loss') is not None and event['step'] >= 10

  stopped = toy_run.train(tmp_path, report=report)
  # the step that was reported, and those that had begun
  assert stopped.preempted and 10 <= stopped.step <= 12
  assert checkpoints.steps(tmp_path / 'checkpoints')[-1] == stopped.step
  assert events[-1]['step'] == stopped.step
  _assert_same_run(tmp_path, toy_run.train(tmp_path), reference)


@pytest.mark.parametrize(
  'make_batches, message',
  [
    (
      lambda: (batch for batch in toy.Batches()),
      'a generator, which has no get_state, set_state: .*Return an iterator with get_state',
    ),
    (lambda: [next(toy.Batches())], 'a list, which has no __next__, get_state, set_state'),
  ],
)
def test_batches_whose_position_cannot_be_saved_are_refused(tmp_path, make_batches, message):
  with pytest.raises(UserError, match=message):
    toy_run.train(tmp_path / 'run', make_batches)
  assert not (tmp_path / 'run').exists()


def test_data_that_ends_early_is_explained(tmp_path):
  class Short(toy.Batches):
    def __next__(self):
      if self.get_state()['next_index'] == 2:
        raise StopIteration
      return super().__next__()

  with pytest.raises(ValueError, match='ended before step 2'):
    toy_run.train(tmp_path, Short)


def test_restored_step_beyond_limit_trains_nothing_and_keeps_checkpoints(tmp_path, monkeypatch):
  monkeypatch.setattr(
    toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, num_steps=12, eval_every=None)
  )
  trained = toy_run.train(tmp_path)
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'checkpoints').rglob('*')}
  metrics = (tmp_path / 'metrics.jsonl').read_bytes()
  for num_steps in (12, 7, 0):
    monkeypatch.setattr(toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, num_steps=num_steps))
    events = []
    again = toy_run.train(tmp_path, report=events.append)
    said = f'the run is at step 12, num_steps={num_steps}: nothing to train'
    assert events == [{'step': 12, 'metrics': {}, 'message': said}]
    assert (again.step, again.preempted, again.metrics) == (12, False, {})
    testing.assert_trees_equal(jax.device_get(again.variables), jax.device_get(trained.variables))
  assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'checkpoints').rglob('*')} == before
  assert (tmp_path / 'metrics.jsonl').read_bytes() == metrics


@pytest.mark.parametrize(
  'change, message',
  [
    (
      lambda b: {'waveform': b['waveform']},
      r"has \['waveform'\]; the stage also needs \['target'\]",
    ),
    (
      lambda b: b | {'waveform': b['waveform'][:, :4]},
      r"'waveform' has shape \(8, 4\).*needs \(8, 16\)",
    ),
    (
      lambda b: {name: x[:4] for name, x in b.items()},
      r"'waveform' has shape \(4, 16\).*needs \(8, 16\)",
    ),
    (
      lambda b: b | {'waveform': b['waveform'].astype(np.int16)},
      "'waveform' is of type int16 .*needs float32",
    ),
  ],
)
@pytest.mark.parametrize('which', ['make_batches', 'make_eval_batches'])
def test_first_batch_that_is_not_what_the_stage_asks_for_is_named(
  tmp_path, monkeypatch, which, change, message
):
  class Other(toy.Batches):
    def __next__(self):
      return change(super().__next__())

  monkeypatch.setattr(toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, num_steps=1))
  with pytest.raises(ValueError, match=message):
    toy_run.train(tmp_path, **{which: Other})


def test_first_batch_with_tokens_beyond_the_clusters_is_named_and_nothing_trains(tmp_path):
  transformer = TransformerConfig(
    num_layers=1, num_heads=2, width=16, mlp_width=16, dtype='float32', remat=False
  )
  config = semantic.Config(crop_seconds=0.4, num_clusters=7, transformer=transformer)

  class Batches(toy.Batches):
    def __next__(self):
      return {'semantic': np.full((8, 10), 7, np.int32)}

  train = loop.TrainConfig(batch_size=8, num_steps=2, tensorboard=False)
  with pytest.raises(ValueError, match="'semantic' holds 7, outside of 0 to 6 and -1"):
    loop.train(config.make(), config, train, make_batches=Batches, workdir=tmp_path)
  assert checkpoints.steps(tmp_path / 'checkpoints') == []


@pytest.mark.parametrize(
  'config, message',
  [
    (
      toy.Config(width=8),
      r'reads .*shape=\(16,\).* that of the config .*shape=\(8,\).*pass the config',
    ),
    (toy.Config(widths=(4, 1)), r'params.hidden.bias: the stage has .*8.*, the config makes .*4'),
    (
      {'width': 16},
      r'config is of type dict, which has no make\(\): pass the config that made the stage',
    ),
  ],
)
def test_stage_of_another_config_is_refused_before_the_first_step(tmp_path, config, message):
  with pytest.raises(ValueError, match=message):
    loop.train(
      toy.Config().make(), config, toy_run.TRAIN, make_batches=toy.Batches, workdir=tmp_path / 'run'
    )
  assert not (tmp_path / 'run').exists()


def test_stage_from_outside_of_the_package_is_loaded_by_its_config(tmp_path, monkeypatch):
  monkeypatch.setattr(
    toy_run, 'TRAIN', dataclasses.replace(toy_run.TRAIN, num_steps=2, eval_every=None)
  )
  trained = toy_run.train(tmp_path)
  with pytest.raises(
    ValueError, match=r'tests.training.toy.Config.*load_variables\(directory, config=...\)'
  ):
    checkpoints.load_variables(tmp_path)
  with pytest.raises(ValueError, match=r'another config:\n  inner.noise: checkpoint 0.01, now 0.5'):
    checkpoints.load_variables(tmp_path, config=toy.Config(inner=toy.Inner(noise=0.5)))
  config, variables, metadata = checkpoints.load_variables(tmp_path, config=toy.Config())
  assert config == toy.Config() and metadata['step'] == 2
  testing.assert_trees_equal(jax.device_get(variables), jax.device_get(trained.variables))

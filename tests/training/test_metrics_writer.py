"""The metrics file survives kills, resumes and full disks."""

import json

import numpy as np
import pytest

from audiolm_jax.training import metrics_writer


def test_last_value_of_a_step_wins_and_broken_lines_are_skipped(tmp_path):
  writer = metrics_writer.MetricsWriter(tmp_path, tensorboard=False)
  for step in (1, 2, 3):
    writer.scalars(step, {'loss': 10.0 * step})
  writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 4, "lo')  # killed here
  writer = metrics_writer.MetricsWriter(tmp_path, tensorboard=False)
  writer.scalars(3, {'loss': 0.25})
  writer.scalars(3, {'eval/loss': 0.5})
  writer.close()
  with pytest.warns(UserWarning, match='metrics.jsonl: 1 lines that are not metrics of a step'):
    steps = metrics_writer.read(tmp_path)
  assert list(steps) == [1, 2, 3]
  assert [steps[s]['loss'] for s in steps] == [10.0, 20.0, 0.25]
  assert steps[3]['eval/loss'] == 0.5


def test_float32_values_survive_exactly(tmp_path):
  values = np.random.default_rng(0).normal(size=20).astype(np.float32)
  writer = metrics_writer.MetricsWriter(tmp_path, tensorboard=False)
  for step, value in enumerate(values):
    writer.scalars(step, {'loss': value})
  writer.close()
  read = metrics_writer.read(tmp_path)
  assert [np.float32(read[step]['loss']) for step in read] == list(values)


def test_tensorboard_holds_scalars_audio_and_images(tmp_path):
  writer = metrics_writer.MetricsWriter(tmp_path)
  writer.scalars(3, {'loss': 0.5})
  writer.audio(3, 'speech', np.zeros(1600, np.float32), 16_000)
  writer.image(3, 'spectrum', np.zeros((4, 5, 1), np.float32))
  writer.close()
  [events] = (tmp_path / 'tensorboard').iterdir()
  data = events.read_bytes()
  for needle in (b'loss', b'speech', b'audio/wav', b'spectrum', b'PNG'):
    assert needle in data
  assert json.loads((tmp_path / 'metrics.jsonl').read_text())['loss'] == 0.5


def test_failing_writer_warns_once_and_goes_on(tmp_path):
  writer = metrics_writer.MetricsWriter(tmp_path, tensorboard=False)
  writer._lines.close()  # what a lost mount looks like
  with pytest.warns(UserWarning, match='no longer written') as caught:
    writer.scalars(1, {'loss': 1.0})
    writer.scalars(2, {'loss': 1.0})
  assert len(caught) == 1
  writer.close()


def test_unwritable_directory_is_a_warning(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.warns(UserWarning, match='no longer written'):
    metrics_writer.MetricsWriter(tmp_path / 'file', tensorboard=False).scalars(1, {'loss': 1.0})


def test_hostile_lines_stop_no_resume_and_are_counted(tmp_path):
  bad = [
    '[1]',
    '{}',
    '{"step": null}',
    '{"step": "9"}',
    '{"step": 1e999}',
    '{"step": -1}',
    '{"step": true}',
    '{"step": ' + '9' * 400 + '}',
    '{"step": [9]}',
    '{"step": 9, "loss": "x"}',
    '[' * 100_000,
  ]
  lines = ['{"step": 7, "loss": 0.5}', *bad, '{"step": 8, "loss": NaN}']
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  with pytest.warns(
    UserWarning, match=f'{len(bad)} lines that are not metrics of a step were skipped'
  ):
    steps = metrics_writer.read(tmp_path)
  assert list(steps) == [7, 8] and steps[7] == {'loss': 0.5} and np.isnan(steps[8]['loss'])


def test_a_log_that_is_a_link_is_not_written_through(tmp_path):
  (tmp_path / 'victim').write_text('precious')
  (tmp_path / 'metrics.jsonl').symlink_to(tmp_path / 'victim')
  with pytest.warns(UserWarning, match='no longer written.*is a link'):
    metrics_writer.MetricsWriter(tmp_path, tensorboard=False).scalars(1, {'loss': 1.0})
  assert (tmp_path / 'victim').read_text() == 'precious'

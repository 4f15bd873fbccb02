"""What a measurement finds is averaged over the evaluation batches, and reaches the logs."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from audiolm_jax.training import evaluation, metrics_writer
from tests.training import toy, toy_run


def test_arrays_are_averaged_samples_are_of_the_first_batch(tmp_path, monkeypatch):
  train = dataclasses.replace(
    toy_run.TRAIN, num_steps=4, eval_every=2, eval_batches=3, tensorboard=True
  )
  monkeypatch.setattr(toy_run, 'TRAIN', train)
  seen = []

  def measure(params, state, batch):
    return {'wave': jnp.mean(batch['waveform'], axis=0)}, (batch['waveform'][0], state['count'])

  def summarize(means, samples):
    seen.append((means['wave'], samples))
    picture = np.zeros((4, 5, 1), np.float32)
    return evaluation.Summary(
      {'first': means['wave'][0]}, {'sound': (samples[0], 16_000)}, {'picture': picture}
    )

  toy_run.train(tmp_path, measurement=evaluation.Measurement(measure, summarize))
  batches = toy.Batches()
  waves = np.stack([next(batches)['waveform'] for _ in range(3)])
  assert [int(count) for _, (_, count) in seen] == [2, 4]
  for means, (sample, _) in seen:
    np.testing.assert_allclose(means, waves.mean(axis=(0, 1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(sample, waves[0, 0])
  metrics = metrics_writer.read(tmp_path)
  np.testing.assert_allclose(
    metrics[4]['eval/first'], waves.mean(axis=(0, 1))[0], rtol=1e-4, atol=1e-6
  )
  assert 'eval/loss' in metrics[2]
  [events] = (tmp_path / 'tensorboard').iterdir()
  assert all(
    needle in events.read_bytes()
    for needle in (b'eval/sound', b'audio/wav', b'eval/picture', b'PNG')
  )

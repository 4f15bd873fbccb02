"""A band is held against one step, and a run outside of it says so and goes on."""

import dataclasses

import pytest

from audiolm_jax.training import bands, metrics_writer
from tests.training import toy_run

LOSS = bands.Band(metric='loss', step=25, low=0.5, high=1.0)
HELD_OUT = bands.Band(metric='eval/loss', step=40, low=0.0, high=1.0)


def test_a_band_belongs_to_the_first_value_from_its_step_on():
  judge = lambda step, value, every=10: bands.judge(
    [LOSS], step, {'loss': value}, log_every=every, eval_every=None
  )
  for step in (10, 20, 40):
    assert judge(step, 9.0) == ({}, [])
  assert judge(30, 0.75) == ({'outside_band/loss': 0.0}, [])
  for value in (0.4, 1.1, float('nan')):
    outside, [line] = judge(30, value)
    assert outside == {'outside_band/loss': 1.0} and 'expects 0.5 to 1 from step 25 on' in line
  assert judge(25, 9.0, every=5)[0] and not judge(30, 9.0, every=5)[0]


def test_held_out_metrics_have_their_own_rhythm():
  judge = lambda step, every: bands.judge(
    [HELD_OUT], step, {'eval/loss': 2.0}, log_every=1, eval_every=every
  )[0]
  assert judge(48, 16) and not judge(32, 16) and not judge(64, 16)
  assert judge(1000, None)  # evaluated at the end alone


def test_an_empty_band_is_refused():
  with pytest.raises(ValueError, match='low=2.0 must be below high=1.0'):
    bands.Band(metric='loss', step=0, low=2.0, high=1.0)


def test_a_run_outside_says_so_and_goes_on(tmp_path, monkeypatch):
  low, high = (
    bands.Band(metric=name, step=16, low=1e3, high=1e4) for name in ('loss', 'eval/loss')
  )
  train = dataclasses.replace(
    toy_run.TRAIN, num_steps=20, bands=(low, high, dataclasses.replace(LOSS, step=999))
  )
  monkeypatch.setattr(toy_run, 'TRAIN', train)
  events = []
  assert toy_run.train(tmp_path, report=events.append).step == 20
  said = [event for event in events if 'message' in event]
  assert [event['step'] for event in said] == [16, 16]
  assert all(
    'step 16: ' in event['message'] and 'expects 1000 to 10000' in event['message']
    for event in said
  )
  logged = {
    name
    for values in metrics_writer.read(tmp_path).values()
    for name in values
    if 'outside' in name
  }
  assert logged == {'outside_band/loss', 'outside_band/eval/loss'}

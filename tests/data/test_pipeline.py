import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from audiolm_jax import audio
from audiolm_jax.data import folders, pipeline
from audiolm_jax.stages.base import Feature

RATE, SEMANTIC, CODEC = 16_000, 25.0, 50.0
FEATURES = {
  'waveform': Feature((3200,), np.float32, RATE),
  'semantic': Feature((5,), np.int32, SEMANTIC),
  'codes': Feature((10, 2), np.int32, CODEC),
  'label': Feature((), np.int32, None),
}


class Ramps:
  """Every feature tells its own time: the waveform holds its sample's index, the tokens their
  frame's.
  """

  def __init__(self, lengths, bad=()):
    self.lengths, self.bad = lengths, bad

  def __len__(self):
    return len(self.lengths)

  def __getitem__(self, i):
    if i in self.bad:
      return None
    num_samples = self.lengths[i]
    num_codes = -(-num_samples // 320)
    return {
      'waveform': np.arange(num_samples, dtype=np.float32),
      'semantic': np.arange(-(-num_samples // 640)),
      'codes': np.arange(num_codes)[:, None] + np.array([0, 1000, 2000]),
      'label': np.int32(i),
    }


def make(source, **options):
  return pipeline.batches(
    source, FEATURES, **{'batch_size': 4, 'seed': 0, 'num_threads': 1, **options}
  )


def assert_same(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(num_samples=strategies.integers(3200, 40_000), seed=strategies.integers(0, 2**32))
def test_every_feature_is_cut_at_the_same_instant(num_samples, seed):
  cut = pipeline.crop(Ramps([num_samples])[0], FEATURES, np.random.default_rng(seed))
  start = cut['waveform'][0]
  assert start % 640 == 0  # 40 ms
  np.testing.assert_array_equal(cut['waveform'], start + np.arange(3200))
  np.testing.assert_array_equal(cut['semantic'], start / 640 + np.arange(5))
  np.testing.assert_array_equal(cut['codes'][:, 0], start / 320 + np.arange(10))
  np.testing.assert_array_equal(cut['codes'][:, 1], cut['codes'][:, 0] + 1000)


def test_every_start_is_drawn():
  random = np.random.default_rng(0)
  starts = {
    int(pipeline.crop(Ramps([3200 + 3 * 640 + 5])[0], FEATURES, random)['semantic'][0])
    for _ in range(100)
  }
  assert starts == {0, 1, 2, 3}


def test_features_that_differ_by_a_frame_are_whole():
  example = Ramps([6400])[0]
  example['semantic'] = example['semantic'][:-1]  # 9 frames where the waveform has 10
  for seed in range(50):
    cut = pipeline.crop(example, FEATURES, np.random.default_rng(seed))
    assert (cut['semantic'] >= 0).all() and cut['waveform'][0] == 640 * cut['semantic'][0]


def test_short_examples_are_padded():
  cut = pipeline.crop(Ramps([1000])[0], FEATURES, np.random.default_rng(0))
  np.testing.assert_array_equal(cut['waveform'], np.r_[np.arange(1000), np.zeros(2200)])
  np.testing.assert_array_equal(cut['semantic'], [0, 1, -1, -1, -1])
  np.testing.assert_array_equal(cut['codes'][:, 0], [0, 1, 2, 3] + [-1] * 6)


@pytest.mark.parametrize(
  'rates, grid', [((16_000, 25.0), 25), ((16_000,), 16_000), ((12.5, 50), 12.5)]
)
def test_grid(rates, grid):
  assert pipeline.grid_rate(rates) == grid


@hypothesis.settings(max_examples=6, deadline=None)
@hypothesis.given(at=strategies.integers(0, 12), seed=strategies.integers(0, 1000))
def test_resume_is_exact(at, seed):
  source = Ramps(list(range(4000, 4000 + 11 * 700, 700)), bad=(3,))
  whole = make(source, seed=seed)
  for _ in range(at):
    next(whole)
  state = json.loads(json.dumps(whole.get_state()))
  resumed = make(source, seed=seed)
  next(resumed)  # a state may be set on an iterator that has moved
  resumed.set_state(state)
  for _ in range(6):
    assert_same(next(whole), next(resumed))


@pytest.mark.parametrize('process_count', [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_processes(process_count):
  source = Ramps(list(range(4000, 4000 + 13 * 700, 700)), bad=(0, 5, 6))
  alone = make(source, batch_size=8, num_epochs=3)
  shares = [
    make(source, batch_size=8, num_epochs=3, process_index=i, process_count=process_count)
    for i in range(process_count)
  ]
  count = 0
  for batch in alone:
    parts = [next(share) for share in shares]
    assert_same(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})
    count += 1
  assert count == 3 * 13 // 8
  for share in shares:  # all end together
    with pytest.raises(StopIteration):
      next(share)


def test_a_position_of_one_process_is_good_for_two():
  source = Ramps([4000 + 700 * i for i in range(9)])
  alone = make(source)
  for _ in range(5):
    next(alone)
  second = make(source, process_index=1, process_count=2)
  second.set_state(alone.get_state())
  np.testing.assert_array_equal(next(second)['waveform'], next(alone)['waveform'][2:])


def test_an_epoch_holds_every_example_once_and_epochs_differ():
  iterator = make(Ramps([5000] * 12))
  epochs = [np.concatenate([next(iterator)['label'] for _ in range(3)]) for _ in range(3)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(12))
  assert not (epochs[0] == epochs[1]).all() and not (epochs[1] == epochs[2]).all()


def test_worker_processes_give_the_same():
  source = Ramps([4000 + 700 * i for i in range(9)])
  alone, workers = make(source), make(source, num_workers=1)
  for iterator in (alone, workers):
    iterator.set_state({**iterator.get_state(), 'step': 3})
  for _ in range(4):
    assert_same(next(alone), next(workers))


def test_evaluation_is_the_same_every_time():
  source = Ramps([4000 + 700 * i for i in range(5)])
  one, other = (
    pipeline.evaluation_batches(source, FEATURES, batch_size=4, num_batches=3) for _ in range(2)
  )
  assert len(one) == 3
  for first, second in zip(one, other, strict=True):
    assert_same(first, second)


class WithoutSeeking:
  def __init__(self, source):
    self.source = source

  def __len__(self):
    return len(self.source)

  def __getitem__(self, i):
    return self.source[i]


class SeekingOnly(folders.AudioFiles):
  def __getitem__(self, i):
    raise AssertionError('the whole example is read')


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
  """Parts of FLAC and WAV files: some shorter than a crop, one no audio, one with damage in every
  frame.
  """
  root = tmp_path_factory.mktemp('recordings')
  parts = []
  for i, seconds in enumerate([2.0, 0.9, 0.1, 3.3, 0.2, 1.7, 0.7]):
    path = str(root / f'{i}.{"wav" if i == 1 else "flac"}')
    audio.save(path, np.random.default_rng(i).uniform(-0.5, 0.5, round(seconds * RATE)), RATE)
    parts.append(folders.Part(path, i))
  parts += [folders.Part(parts[3].path, 7, 0.50003, 1.1), folders.Part(parts[0].path, 8, 1.95)]
  (root / '6.flac').write_text('not audio')
  data = bytearray((root / '5.flac').read_bytes())
  data[200::500] = bytes(byte ^ 1 for byte in data[200::500])
  (root / '5.flac').write_bytes(data)
  return parts


def test_seeking_changes_no_batch(recordings):
  features = {'waveform': FEATURES['waveform'], 'speaker': FEATURES['label']}
  options = {'batch_size': 4, 'seed': 3, 'num_threads': 1}
  seeking = SeekingOnly(recordings, RATE, max_bad_fraction=0.5)
  whole = folders.AudioFiles(recordings, RATE, max_bad_fraction=0.5)
  one = pipeline.batches(seeking, features, **options)
  other = pipeline.batches(WithoutSeeking(whole), features, **options)
  for _ in range(20):
    assert_same(next(one), next(other))
  # the next one stood in, and its start was the same
  assert seeking.bad.keys() == whole.bad.keys() == {5, 6}
  resumed = pipeline.batches(seeking, features, process_index=1, process_count=2, **options)
  resumed.set_state(other.get_state())
  assert_same(next(resumed), {name: rows[2:] for name, rows in next(other).items()})


def test_a_crop_beside_another_time_series_is_cut_from_the_whole(recordings):
  features = {'waveform': FEATURES['waveform'], 'noise': FEATURES['waveform']}
  source = folders.AudioFiles(recordings[:4], RATE)
  with pytest.raises(ValueError, match="'noise'; the source has .'speaker', 'waveform'"):
    pipeline.batches(source, features, batch_size=2, seed=0)
  with pytest.raises(AssertionError, match='whole example'):
    pipeline.batches(SeekingOnly(recordings, RATE), features, batch_size=2, seed=0)


def test_mistakes_are_named_before_the_first_step():
  source = Ramps([5000] * 4)
  with pytest.raises(ValueError, match=r"'pitch'.*'codes', 'label', 'semantic', 'waveform'"):
    pipeline.batches(source, {'pitch': Feature((3,), np.float32, 50.0)}, batch_size=2, seed=0)
  with pytest.raises(ValueError, match=r"'codes' has shape \(16, 3\).*\(10, 4\)"):
    pipeline.batches(source, {'codes': Feature((10, 4), np.int32, 50.0)}, batch_size=2, seed=0)
  with pytest.raises(ValueError, match=r"'codes' holds \d+, outside of 0 to 0 and -1"):
    pipeline.batches(source, {'codes': Feature((10, 2), np.int32, 50.0, 1)}, batch_size=2, seed=0)
  with pytest.raises(ValueError, match='batch_size=0: must be a whole number of at least 1'):
    make(source, batch_size=0)
  with pytest.raises(ValueError, match='num_batches=0'):
    pipeline.evaluation_batches(source, FEATURES, batch_size=2, num_batches=0)
  with pytest.raises(ValueError, match='batch_size=3.*process_count=2'):
    make(source, batch_size=3, process_count=2)
  with pytest.raises(ValueError, match='seed=0, this run has 1'):
    make(source, seed=1).set_state(make(source).get_state())
  with pytest.raises(ValueError, match='could not be read'):
    make(Ramps([5000] * 4, bad=(0, 1, 2, 3)))

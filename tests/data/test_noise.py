import numpy as np
import pytest

from audiolm_jax.data import noise

RATE = 16_000
WAVES = [
  {'waveform': np.sin(np.arange(length) / 9).astype(np.float32), 'label': i}
  for i, length in enumerate([8000] * 40)
]


def ratio_db(example):
  return 10 * np.log10(np.mean(example['waveform'] ** 2) / np.mean(example['noise'] ** 2))


def test_noise_has_the_asked_power_and_is_always_the_same():
  source = noise.WithNoise([*WAVES, None], snr_db=(3.0, 9.0))
  examples = [source[i] for i in range(len(source))]
  assert examples.pop() is None
  assert [example['label'] for example in examples] == list(range(40))
  noisy = [example for example in examples if example['noise'].any()]
  assert 20 < len(noisy) < 40
  ratios = [ratio_db(example) for example in noisy]
  assert 3 <= min(ratios) < 5 and 7 < max(ratios) <= 9
  np.testing.assert_array_equal(source[1]['noise'], examples[1]['noise'])
  assert not np.array_equal(noisy[0]['noise'], noisy[1]['noise'])


def test_recorded_noise_is_a_scaled_part_of_a_recording_or_its_repetition():
  recording_N = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
  for length in (20_000, 3000):
    source = noise.WithNoise(WAVES, [None, {'waveform': recording_N[:length]}])
    found = next(example['noise'] for example in source if example['noise'].any())
    repeated = np.resize(recording_N[:length], 30_000)
    correlation = np.correlate(repeated, found) / np.linalg.norm(found)
    norms = np.sqrt(np.convolve(repeated.astype(float) ** 2, np.ones(8000), 'valid'))
    assert (correlation / norms).max() == pytest.approx(1, abs=1e-4)


def test_no_noise_to_choose_from_is_refused():
  with pytest.raises(ValueError, match='no examples'):
    noise.WithNoise(WAVES, [])
  with pytest.raises(ValueError, match='no recording of noise can be read'):
    [noise.WithNoise(WAVES, [None])[i] for i in range(10)]

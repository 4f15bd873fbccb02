import jax
import jax.numpy as jnp
import librosa
import numpy as np

from audiolm_jax.nn import log_mel


def test_windows_longer_than_512_samples_are_read_whole():
  """25 ms at 24 kHz, in float64 by the definition."""
  config = log_mel.LogMelConfig(sample_rate=24_000, window_length=600, hop_length=240, num_mels=16)
  wave_BT = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1080)), jnp.float32)
  filters_NM = librosa.filters.mel(sr=24_000, n_fft=1024, n_mels=16, dtype=np.float64).T
  window_N = np.sin(np.pi * np.arange(600) / 600) ** 2
  expected = [
    np.log(np.abs(np.fft.rfft(wave_BT[0, start : start + 600] * window_N, 1024)) @ filters_NM)
    for start in (0, 240, 480)
  ]
  got_FM = log_mel.features(config, wave_BT)[0]
  np.testing.assert_allclose(got_FM, (np.array(expected) + 5) / 3, atol=1e-4)


def test_spec_augment_hides_spans_of_drawn_width():
  x_BFM = jnp.ones((400, 40, 12))
  hide = lambda **sizes: np.asarray(log_mel.spec_augment(jax.random.key(0), x_BFM, **sizes))
  hidden_BFM = hide(num_masks=1, max_frames=10, max_mels=4) == 0
  hidden_BF, hidden_BM = hidden_BFM.all(axis=2), hidden_BFM.all(axis=1)
  np.testing.assert_array_equal(hidden_BFM, hidden_BF[:, :, None] | hidden_BM[:, None])
  for hidden_BN, largest in ((hidden_BF, 10), (hidden_BM, 4)):
    widths_B = hidden_BN.sum(axis=1)
    edges_B = np.abs(np.diff(hidden_BN.astype(int), axis=1, prepend=0, append=0)).sum(axis=1)
    np.testing.assert_array_equal(edges_B, np.where(widths_B, 2, 0))  # one span, if any
    counts = np.bincount(widths_B)  # all widths from 0 to the largest are equally likely
    assert len(counts) == largest + 1
    assert np.abs(counts - 400 / (largest + 1)).max() < 5 * (400 / (largest + 1)) ** 0.5
    assert hidden_BN[:, 0].any() and hidden_BN[:, -1].any()
  assert (hide(num_masks=2, max_frames=10, max_mels=0) == 0).all(axis=2).sum(axis=1).max() > 10
  np.testing.assert_array_equal(hide(num_masks=0, max_frames=10, max_mels=4), x_BFM)

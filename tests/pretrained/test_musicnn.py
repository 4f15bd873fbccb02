"""musicnn: windows, and which files are refused; tags of real instruments with the package."""

import importlib.util
import shutil

import jax
import numpy as np
import pytest

from audiolm_jax.data import rendering
from audiolm_jax.pretrained import musicnn

RATE = 16_000


def random_params():
  """Returns parameters of the network's shapes."""
  random = np.random.default_rng(0)
  norms = [1, 204, 204, 51, 51, 51, 64, 64, 64, 1506, 200]
  kernels = [(7, 38, 204), (7, 67, 204), (128, 1, 51), (64, 1, 51), (32, 1, 51)]
  kernels += [(7, 561, 64), (7, 64, 64), (7, 64, 64)]
  params = {}
  draw = lambda *shape: random.normal(size=shape).astype(np.float32) / 10
  number = lambda name, n: name if n == 0 else f'{name}_{n}'
  for n, size in enumerate(norms):
    name = number('batch_normalization', n)
    for part in ('beta', 'moving_mean'):
      params[f'{name}/{part}'] = draw(size)
    for part in ('gamma', 'moving_variance'):
      params[f'{name}/{part}'] = 1 + np.abs(draw(size))
  for n, (height, width, size) in enumerate(kernels):
    params[f'{number("conv2d", n)}/kernel'] = draw(height, width, 1, size)
    params[f'{number("conv2d", n)}/bias'] = draw(size)
  for n, shape in enumerate([(1506, 200), (200, 50)]):
    params[f'{number("dense", n)}/kernel'] = draw(*shape)
    params[f'{number("dense", n)}/bias'] = draw(shape[1])
  return params


def test_windows_are_whole_and_silence_is_zero():
  for seconds, count in ((3.0, 1), (5.9, 1), (6.0, 2)):
    frames_BFM = musicnn.windows(np.zeros(round(seconds * 24_000), np.float32), 24_000)
    assert frames_BFM.shape == (count, 187, 96) and not frames_BFM.any()
  with pytest.raises(ValueError, match='a clip of 2.50 s has no tags: give 3 s or more'):
    musicnn.windows(np.zeros(40_000, np.float32), RATE)


def test_loud_sounds_stay_finite():
  loud_T = np.sin(np.arange(3 * RATE) * 0.3).astype(np.float32)
  assert np.isfinite(musicnn.windows(loud_T, RATE)).all()


def test_windows_of_a_batch_do_not_mix():
  params = random_params()
  mel_BFM = jax.random.uniform(jax.random.key(0), (2, 187, 96))
  logits_BV, features_BD = musicnn.logits_and_features(params, mel_BFM)
  assert logits_BV.shape == (2, len(musicnn.TAGS)) and features_BD.shape == (2, 200)
  alone_BV, _ = musicnn.logits_and_features(params, mel_BFM[1:])
  np.testing.assert_allclose(logits_BV[1:], alone_BV, atol=1e-4)


def test_other_files_and_a_missing_package_are_named(tmp_path, monkeypatch):
  (tmp_path / '.index').write_bytes(b'')
  with pytest.raises(
    ValueError, match=r'\.index is not that of musicnn 0.1.0: run `pip install --no'
  ):
    musicnn.load(tmp_path)
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(ValueError, match='run `pip install --no-deps musicnn==0.1.0`'):
    musicnn.load()


@pytest.mark.oracle
def test_instruments_are_heard(tmp_path):
  for package in ('midirenderer', 'pretty_midi', 'musicnn'):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f'{package} is not installed: real weights are not tested')
  shutil.copytree(musicnn.folder(), tmp_path / 'copy')
  hear, font = musicnn.listener(tmp_path / 'copy'), rendering.font_path()
  scale = [(0.4 * n, 0.4 * n + 0.38, 60 + p, 100) for n, p in enumerate([0, 2, 4, 5, 7, 9, 11, 12])]
  probability = {}
  for name, program in (('piano', 0), ('flute', 73), ('sitar', 104)):
    clip_T = rendering.render(np.array(scale), program, 3.2, RATE, font)
    probability[name] = hear(clip_T, RATE).tag_V
  for name, heard_V in probability.items():
    at = musicnn.TAGS.index(name)
    assert all(heard_V[at] > other_V[at] for key, other_V in probability.items() if key != name)

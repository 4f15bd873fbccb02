"""Tags music by musicnn (Pons and Serra, 2019), trained on people's tags of MagnaTagATune.

The weights (ISC licence, 0.8 million) are read from the package musicnn 0.1.0 as they are, a
checkpoint of TensorFlow; neither TensorFlow nor the package is imported. Its requirements are of
2019, so it is installed without them: `pip install --no-deps musicnn==0.1.0`.
"""

import importlib.util
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import librosa
import numpy as np
from jaxtyping import Array, Float

from audiolm_jax import audio, checks, files
from audiolm_jax.errors import UserError

# fmt: off
TAGS = (
  'guitar', 'classical', 'slow', 'techno', 'strings', 'drums', 'electronic', 'rock', 'fast',
  'piano',
  'ambient', 'beat', 'violin', 'vocal', 'synth', 'female', 'indian', 'opera', 'male', 'singing',
  'vocals', 'no vocals', 'harpsichord', 'loud', 'quiet', 'flute', 'woman', 'male vocal', 'no vocal',
  'pop', 'soft', 'sitar', 'solo', 'man', 'classic', 'choir', 'voice', 'new age', 'dance',
  'male voice', 'female vocal', 'beats', 'harp', 'cello', 'no voice', 'weird', 'country', 'metal',
  'female voice', 'choral',
)
# fmt: on
RATE = 16_000  # Hz
WINDOW_FRAMES = 187  # 3 s, as in training
INSTALL = 'pip install --no-deps musicnn==0.1.0'
_FFT, _HOP, _NUM_MELS = 512, 256, 96
_INDEX, _DATA = '.index', '.data-00000-of-00001'
_DIGESTS = {  # SHA-256, of musicnn 0.1.0
  _INDEX: 'da2d7bb670b2b31e9bc441bb1bd75eca31b5b061f963cc1f9630c1aff3238f57',
  _DATA: '041f3935e981a65cea739842d30c188d3a7d2adf4410955c8668eb3de4a5acab',
}
_EPSILON = 1e-3  # of batch normalization in TensorFlow
_FOOTER_BYTES = 48  # of an index: two handles, padding, and a magic number

Params = Mapping[str, Array | np.ndarray]


def folder() -> pathlib.Path:
  """Returns the folder of the weights in the installed package.

  Raises:
    UserError: if it is not installed.
  """
  found = importlib.util.find_spec('musicnn')
  if found is None or not found.submodule_search_locations:
    raise UserError(f'musicnn is not installed: run `{INSTALL}`')
  return pathlib.Path(found.submodule_search_locations[0]) / 'MTT_musicnn'


def load(path: str | os.PathLike | None = None) -> dict[str, np.ndarray]:
  """Returns the parameters by their names in TensorFlow, such as 'conv2d_1/kernel'.

  Args:
    path: folder of the weights; defaults to that of the installed package.

  Raises:
    UserError: if the package is not installed, or a file is not that of musicnn 0.1.0.
  """
  path = folder() if path is None else pathlib.Path(path)
  for name, digest in _DIGESTS.items():
    if not (path / name).is_file() or files.sha256(path / name) != digest:
      raise UserError(f'{path / name} is not that of musicnn 0.1.0: run `{INSTALL}`')
  data = (path / _DATA).read_bytes()
  return {
    name: np.frombuffer(data, '<f4', size // 4, offset).reshape(shape)
    for name, shape, offset, size in _entries((path / _INDEX).read_bytes())
    if 'Adam' not in name and '/' in name
  }


class Heard(NamedTuple):
  """Holds what musicnn hears in a clip, the means over its windows.

  Fields:
    tag_V: probabilities of TAGS [50].
    feature_D: features before the last layer [200].
  """

  tag_V: np.ndarray
  feature_D: np.ndarray


def listener(
  path: str | os.PathLike | None = None,
) -> Callable[[Float[np.ndarray, 'T'], int], Heard]:
  """Returns a function (waveform [T], rate in Hz) -> `Heard`.

  It raises UserError for a clip shorter than a window, 3 s. `path` is that of `load`.
  """
  apply, params = jax.jit(logits_and_features), load(path)

  def hear(wave_T: np.ndarray, sample_rate: int) -> Heard:
    logits_BV, features_BD = apply(params, jnp.asarray(windows(wave_T, sample_rate)))
    tag_V = jax.nn.sigmoid(logits_BV).mean(axis=0)
    return Heard(np.asarray(tag_V), np.asarray(features_BD.mean(axis=0)))

  return hear


def windows(wave_T: Float[np.ndarray, 'T'], sample_rate: int) -> Float[np.ndarray, 'B F M']:
  """Returns the log-mel frames [B, 187, 96] of the whole windows of 3 s in a clip.

  The original computes them in half precision, in which loud sounds overflow.

  Raises:
    UserError: if there is none.
  """
  checks.shapes(wave_T=wave_T)
  [wave_T] = audio.resample(np.asarray(wave_T, np.float32)[None], sample_rate, RATE)
  power_MF = librosa.feature.melspectrogram(
    y=wave_T, sr=RATE, hop_length=_HOP, n_fft=_FFT, n_mels=_NUM_MELS
  )
  frames_FM = np.log10(10_000 * power_MF.T + 1)
  count = len(frames_FM) // WINDOW_FRAMES
  if not count:
    raise UserError(f'a clip of {len(wave_T) / RATE:.2f} s has no tags: give 3 s or more')
  return frames_FM[: count * WINDOW_FRAMES].reshape(count, WINDOW_FRAMES, _NUM_MELS)


def logits_and_features(
  params: Params, mel_BFM: Float[Array, 'B F M']
) -> tuple[Float[Array, 'B V'], Float[Array, 'B D']]:
  """Returns the logits of TAGS [B, 50] and the features before them [B, 200] of log-mel windows."""
  norms, convs = (_numbered(name) for name in ('batch_normalization', 'conv2d'))

  def norm(x):
    name = next(norms)
    scale = params[f'{name}/gamma'] / jnp.sqrt(params[f'{name}/moving_variance'] + _EPSILON)
    return (x - params[f'{name}/moving_mean']) * scale + params[f'{name}/beta']

  def conv(x_BFMC, padding='VALID'):
    name = next(convs)
    y_BFMC = jax.lax.conv_general_dilated(
      x_BFMC, params[f'{name}/kernel'], (1, 1), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return norm(jax.nn.relu(y_BFMC + params[f'{name}/bias']))

  in_time = lambda x_BFMC: jnp.pad(x_BFMC, ((0, 0), (3, 3), (0, 0), (0, 0)))
  x_BFM1 = norm(mel_BFM[..., None])
  # Filters over most mel bands, and over time alone; then the maximum over mel bands.
  wide = [conv(in_time(x_BFM1)).max(axis=2) for _ in range(2)]
  long = [conv(x_BFM1, 'SAME').max(axis=2) for _ in range(3)]
  layers = [jnp.concatenate([*wide, *long], axis=-1)]
  for _ in range(3):
    mixed_BFC = conv(in_time(layers[-1][..., None]))[:, :, 0]
    layers.append(mixed_BFC if len(layers) == 1 else mixed_BFC + layers[-1])
  all_BFC = jnp.concatenate(layers, axis=-1)
  # Flattened with the maximum and the mean of a channel side by side.
  pooled_BC = jnp.stack([all_BFC.max(axis=1), all_BFC.mean(axis=1)], -1).reshape(len(all_BFC), -1)
  hidden_BD = norm(pooled_BC) @ params['dense/kernel'] + params['dense/bias']
  features_BD = norm(jax.nn.relu(hidden_BD))
  return features_BD @ params['dense_1/kernel'] + params['dense_1/bias'], features_BD


def _numbered(name: str) -> Iterator[str]:
  """Yields the names that TensorFlow gives to layers in the order of their creation."""
  yield name
  number = 0
  while True:
    number += 1
    yield f'{name}_{number}'


def _entries(index: bytes) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
  """Yields name, shape, offset and size in bytes of each tensor of an index of TensorFlow.

  An index is a table of LevelDB, whose values are messages of type BundleEntryProto.
  """
  footer = index[-_FOOTER_BYTES:]
  at = 0
  handles = []
  for _ in range(4):  # offset and size of the block of properties, and of that of blocks
    number, at = _varint(footer, at)
    handles.append(number)
  for _, handle in _block(index, handles[2], handles[3]):
    offset, at = _varint(handle, 0)
    for name, value in _block(index, offset, _varint(handle, at)[0]):
      if name:
        fields = dict(_fields(value))
        shape = tuple(dict(_fields(dim)).get(1, 0) for _, dim in _fields(fields.get(2, b'')))
        yield name.decode(), shape, fields.get(4, 0), fields[5]


def _block(index: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
  """Yields keys and values of a block; keys are stored without the prefix of the key before."""
  data = index[offset : offset + size]
  num_restarts = int.from_bytes(data[-4:], 'little')
  end, at, name = len(data) - 4 - 4 * num_restarts, 0, b''
  while at < end:
    shared, at = _varint(data, at)
    added, at = _varint(data, at)
    length, at = _varint(data, at)
    name = name[:shared] + data[at : at + added]
    yield name, data[at + added : at + added + length]
    at += added + length


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
  """Yields number and value of the fields of a protocol buffer."""
  at = 0
  while at < len(message):
    tag, at = _varint(message, at)
    number, kind = divmod(tag, 8)
    if kind == 0:
      value, at = _varint(message, at)
    else:  # 2 has a length, 5 is 4 bytes
      length, at = _varint(message, at) if kind == 2 else (4, at)
      value, at = message[at : at + length], at + length
    yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """Returns a number of 7 bits per byte, the lowest first, and the position after it."""
  number = shift = 0
  while True:
    byte = data[at]
    number |= (byte & 127) << shift
    at, shift = at + 1, shift + 7
    if byte < 128:
      return number, at

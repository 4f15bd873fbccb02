"""The decoder against one of other people: ffmpeg 5.1 decoded these bytes to these samples."""

import base64
import sys
import zlib

import numpy as np
import pytest

from audiolm_jax.data import g722

_BYTES = (
  '+h6OIIQgvzU1thSOlhifrT26uxWbejaWMByuNR6mNle+d/7bNfjqL9vtONx2f5RQWJ1627xt3O4t9PUbmNlS010cvn76'
  'rHHssHPQ1xPX1h/ycTPzeViYWVCXd/utc7W2X9TUVpJ0Me92epb+z5h89a9wurZO2ltd+2s2v9ZW1h1+rnPz3FWRvF/s'
  '7V+7Ug/5d+6329aWWP+uc5/dDxg0MvN/VNPd9bJw2tUUHW0zfFVWmfUseVtS2jL0r9NZ2HXxthjUXHWt/lM='
)
_EVERY_8TH = np.array(
  [
    0,
    -1,
    5,
    -114,
    -286,
    -101,
    -32,
    147,
    -690,
    4461,
    -2473,
    1668,
    2672,
    -3325,
    2699,
    -2133,
    1089,
    272,
    -3624,
    3756,
    -3232,
    -10,
    2762,
    -3249,
    2856,
    -2131,
    -1095,
    2394,
    -3723,
    2447,
    -1868,
    -1081,
    3233,
    -5086,
    6209,
    -6160,
    3764,
    -2554,
    500,
    -660,
    -501,
    911,
    -701,
    567,
    -1102,
    1032,
    2084,
    -3219,
    2939,
    3163,
  ]
)
_CHECKSUM = 1863900734  # of all 400 samples, as little-endian int16


def test_samples_are_those_of_another_decoder(tmp_path):
  pytest.importorskip('G722')
  path = tmp_path / 'sweep.g722'
  path.write_bytes(base64.b64decode(_BYTES))
  wave_T = g722.load(path)
  assert wave_T.dtype == np.float32 and wave_T.shape == (400,)
  samples_T = np.round(wave_T * 32768).astype('<i2')
  np.testing.assert_array_equal(samples_T[::8], _EVERY_8TH)
  assert zlib.crc32(samples_T.tobytes()) == _CHECKSUM


def test_empty_and_endless_files_are_refused(tmp_path):
  pytest.importorskip('G722')
  (tmp_path / 'empty.g722').touch()
  with pytest.raises(ValueError, match='empty.g722: 0 bytes are 0 s'):
    g722.load(tmp_path / 'empty.g722')
  (tmp_path / 'long.g722').write_bytes(bytes(16_000))
  with pytest.raises(ValueError, match='16000 bytes are 2 s .* at most 1'):
    g722.load(tmp_path / 'long.g722', max_seconds=1.0)


def test_a_missing_decoder_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'G722', None)
  with pytest.raises(ValueError, match=r"pip install -e '\.\[speech\]'"):
    g722.load(tmp_path / 'any.g722')

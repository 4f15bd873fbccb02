"""Judges attributes of music (instrument, tempo, mode, ...) by linear classifiers of its sound.

The features of a clip are its log-mel bands (mean, deviation, and mean change between frames), the
autocorrelation of its onsets, its pitch classes from the likeliest tonic, how well they fit to a
major and a minor key, and its level. A logistic regression per attribute reads them. It is fitted
within seconds to a few hundred clips, which should share neither sounds nor instruments' samples
with the model that it judges.
"""

from collections.abc import Mapping
from typing import Any

import librosa
import numpy as np
from jaxtyping import Float, Int
from sklearn import linear_model, pipeline, preprocessing

from audiolm_jax import audio, checks
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import music

RATE = 16_000  # Hz
_FFT, _HOP, _NUM_MELS = 1024, 256, 64
_FLOOR = 1e-5  # of the power of a mel band
_LAGS, _LAGS_PER_FEATURE = (6, 120), 3  # of the autocorrelation: 0.1 to 1.9 s, in frames
_INVERSE_PENALTY = 0.03  # scikit-learn's C
_MAX_ITERATIONS = 1000

Judges = Mapping[str, Any]  # classifiers by attribute, from `fit`


def features(wave_T: Float[np.ndarray, 'T'], sample_rate: int) -> Float[np.ndarray, 'D']:
  """Returns the features of a clip, which are read at 16 kHz.

  Args:
    wave_T: waveform in [-1, 1].
    sample_rate: in Hz.

  Raises:
    UserError: if the clip is shorter than the largest lag of the rhythm, 1.92 s.
  """
  checks.shapes(wave_T=wave_T)
  [wave_T] = audio.resample(np.asarray(wave_T, np.float32)[None], sample_rate, RATE)
  if len(wave_T) < _LAGS[1] * _HOP:
    raise UserError(
      f'a clip of {len(wave_T) / RATE:.2f} s is too short for its rhythm: give '
      f'{_LAGS[1] * _HOP / RATE:.2f} s or more'
    )
  power_MF = librosa.feature.melspectrogram(
    y=wave_T, sr=RATE, n_fft=_FFT, hop_length=_HOP, n_mels=_NUM_MELS
  )
  log_MF = np.log(power_MF + _FLOOR)
  share_12 = music.heard_pitch_classes(wave_T, RATE)
  fits, tonic = _keys(share_12)
  level = np.log(np.sqrt(np.mean(wave_T.astype(np.float64) ** 2)) + _FLOOR)
  return np.concatenate(
    [
      log_MF.mean(axis=1),
      log_MF.std(axis=1),
      np.abs(np.diff(log_MF, axis=1)).mean(axis=1),
      _rhythm(log_MF),
      np.roll(share_12, -tonic),
      [*fits, fits[0] - fits[1], level],
    ]
  )


def _rhythm(log_MF: Float[np.ndarray, 'M F']) -> Float[np.ndarray, '_']:
  """Returns the autocorrelation of the onset strength, the largest one of some lags each."""
  onset_F = librosa.onset.onset_strength(S=log_MF, sr=RATE)
  onset_F = onset_F - onset_F.mean()
  all_L = np.correlate(onset_F, onset_F, 'full')[len(onset_F) - 1 :]
  lag_L = all_L[slice(*_LAGS)] / max(all_L[0], _FLOOR)  # silence has none
  return lag_L.reshape(-1, _LAGS_PER_FEATURE).max(axis=1)


def _keys(share_12: Float[np.ndarray, '12']) -> tuple[list[float], int]:
  """Returns the largest correlation with a major and with a minor key, and the better's tonic."""
  if not np.ptp(share_12) > 0:  # silence
    return [0.0, 0.0], 0
  fit_2K = np.array(
    [
      [np.corrcoef(share_12, np.roll(profile, tonic))[0, 1] for tonic in range(12)]
      for profile in (music.PROFILES['major'], music.PROFILES['minor'])
    ]
  )
  return fit_2K.max(axis=1).tolist(), int(fit_2K.max(axis=0).argmax())


def fit(
  features_ND: Float[np.ndarray, 'N D'], labels: Mapping[str, Int[np.ndarray, 'N']]
) -> Judges:
  """Returns a classifier of each attribute.

  Args:
    features_ND: from `features`.
    labels: by attribute, the value of each clip.

  Raises:
    UserError: if an attribute has a single value.
  """
  checks.shapes(features_ND=features_ND)
  found = {}
  for name, label_N in labels.items():
    if len(set(np.asarray(label_N).tolist())) < 2:
      raise UserError(f'all clips have the same {name}: pass clips of every value')
    regression = linear_model.LogisticRegression(C=_INVERSE_PENALTY, max_iter=_MAX_ITERATIONS)
    found[name] = pipeline.make_pipeline(preprocessing.StandardScaler(), regression)
    found[name].fit(features_ND, label_N)
  return found


def judge(judges: Judges, features_ND: Float[np.ndarray, 'N D']) -> dict[str, Int[np.ndarray, 'N']]:
  """Returns the likeliest value of each attribute of each clip.

  Args:
    judges: from `fit`.
    features_ND: features of each clip.
  """
  checks.shapes(features_ND=features_ND)
  return {name: one.predict(features_ND) for name, one in judges.items()}

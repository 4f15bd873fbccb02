"""Transcribes music to notes by Basic Pitch (Bittner et al., arXiv 2203.09893), for any instrument.

The network (Apache-2.0, 0.23 MB) is read from the package basic-pitch 0.4.0, which is not imported,
and run by onnxruntime. The package pins old versions of others, so it is installed without them:
`pip install --no-deps basic-pitch==0.4.0` and `pip install onnxruntime`. The way from the network's
output to notes follows the package with its default settings, without pitch bends.
"""

import os
import pathlib
from collections.abc import Callable

import numpy as np
import scipy.signal
from jaxtyping import Float

from audiolm_jax import audio, checks
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import extras

RATE = 22_050  # Hz
INSTALL = 'pip install --no-deps basic-pitch==0.4.0 && pip install onnxruntime'
LOWEST_PITCH = 21  # MIDI, of the first of 88 columns
HOP = 256  # samples per frame
WINDOW = 2 * RATE - HOP  # samples
WINDOW_FRAMES = 172
OVERLAP_FRAMES = 30  # of consecutive windows, of which half is dropped at each side
_ONSET, _FRAME = 0.5, 0.3  # thresholds
_SHORTEST = 11  # frames: 128 ms
_PATIENCE = 11  # frames below the threshold after which a note has ended
_ALIGNMENT = 0.0018  # seconds, by which the package shifts windows to agree with its training data
_FILE = pathlib.PurePath('saved_models', 'icassp_2022', 'nmp.onnx')


def path() -> pathlib.Path:
  """Returns the path of the network in the installed package.

  Raises:
    UserError: if it is not installed.
  """
  try:
    return extras.folder('basic_pitch', 'basic-pitch', extra='music') / _FILE
  except UserError as error:
    raise UserError(f'basic-pitch is not installed: run `{INSTALL}`') from error


def transcriber(
  network: str | os.PathLike | None = None,
) -> Callable[[Float[np.ndarray, 'T'], int], Float[np.ndarray, 'N 4']]:
  """Returns a function (waveform [T], rate in Hz) -> notes, as those of `metrics.music`.

  Velocities are 127 times the mean probability of a note.

  Args:
    network: path of the network; defaults to that of the installed package.

  Raises:
    UserError: if basic-pitch or onnxruntime is not installed.
  """
  network = path() if network is None else pathlib.Path(network)
  try:
    import onnxruntime  # not a dependency
  except ImportError as error:
    raise UserError(f'onnxruntime is not installed: run `{INSTALL}`') from error
  session = onnxruntime.InferenceSession(str(network), providers=['CPUExecutionProvider'])
  names = ['StatefulPartitionedCall:1', 'StatefulPartitionedCall:2']  # notes, onsets
  [entry] = session.get_inputs()

  def transcribe(wave_T: np.ndarray, sample_rate: int) -> np.ndarray:
    checks.shapes(wave_T=wave_T)
    [wave_T] = audio.resample(np.asarray(wave_T, np.float32)[None], sample_rate, RATE)
    windows_NT1 = windows(wave_T)[..., None]
    found = [session.run(names, {entry.name: window_T1[None]}) for window_T1 in windows_NT1]
    frame_FP, onset_FP = (
      joined(np.concatenate([pair[number] for pair in found]), len(wave_T)) for number in (0, 1)
    )
    return notes(frame_FP, onset_FP)

  return transcribe


def windows(wave_T: Float[np.ndarray, 'T']) -> Float[np.ndarray, 'N W']:
  """Returns overlapping windows of a clip at `RATE`; the first begins with half an overlap of 0."""
  overlap = OVERLAP_FRAMES * HOP
  padded_T = np.concatenate([np.zeros(overlap // 2, np.float32), wave_T])
  starts = range(0, len(padded_T), WINDOW - overlap)
  padded_T = np.pad(padded_T, (0, WINDOW))
  return np.stack([padded_T[start : start + WINDOW] for start in starts])


def joined(output_NFP: Float[np.ndarray, 'N F P'], num_samples: int) -> Float[np.ndarray, '_ P']:
  """Returns the network's output of a clip from that of its windows."""
  half = OVERLAP_FRAMES // 2
  inside_NFP = output_NFP[:, half:-half]
  all_FP = inside_NFP.reshape(-1, output_NFP.shape[-1])
  return all_FP[: int(num_samples * (RATE // HOP) / RATE)]


def notes(
  frame_FP: Float[np.ndarray, 'F P'], onset_FP: Float[np.ndarray, 'F P']
) -> Float[np.ndarray, 'N 4']:
  """Returns the notes in the probabilities that pitches sound, and that they begin.

  A note begins at a peak of the onsets, and lasts until its pitch has been improbable for some
  frames. What is left without an onset makes notes from its maxima in both directions.
  """
  count, found = len(frame_FP), []
  if count < 3:
    return np.zeros((0, 4))
  onset_FP = with_sudden_frames(frame_FP, onset_FP)
  left_FP = np.array(frame_FP, np.float64)
  peak_F, pitch_F = scipy.signal.argrelmax(onset_FP, axis=0)
  is_onset_F = onset_FP[peak_F, pitch_F] >= _ONSET
  peaks = sorted(zip(peak_F[is_onset_F].tolist(), pitch_F[is_onset_F].tolist()), reverse=True)

  def take(first: int, end: int, pitch: int):
    left_FP[first:end, max(0, pitch - 1) : pitch + 2] = 0
    if end - first > _SHORTEST:
      amplitude = frame_FP[first:end, pitch].mean()
      found.append((first, end, pitch + LOWEST_PITCH, 127 * amplitude))

  for first, pitch in peaks:
    if first < count - 1:
      end = _end(left_FP[:, pitch], first + 1, 1)
      if end - first > _SHORTEST:
        take(first, end, pitch)
  while left_FP.max() > _FRAME:
    middle, pitch = divmod(int(left_FP.argmax()), left_FP.shape[1])
    left_FP[middle, pitch] = 0
    end = _end(left_FP[:, pitch], middle + 1, 1)
    take(_end(left_FP[:, pitch], middle - 1, -1) + 1, end - 1, pitch)  # shorter, as the package's
  if not found:
    return np.zeros((0, 4))
  notes_N4 = np.array(sorted(found), np.float64)
  notes_N4[:, :2] = seconds(notes_N4[:, :2])
  return notes_N4


def _end(left_F: Float[np.ndarray, '_'], at: int, step: int) -> int:
  """Returns the frame at which a note ends, followed from a frame in a direction."""
  below = 0
  limit = len(left_F) - 1 if step > 0 else 0
  while (at < limit if step > 0 else at > limit) and below < _PATIENCE:
    below = below + 1 if left_F[at] < _FRAME else 0
    at += step
  return at - step * below


def with_sudden_frames(
  frame_FP: Float[np.ndarray, 'F P'], onset_FP: Float[np.ndarray, 'F P']
) -> Float[np.ndarray, 'F P']:
  """Returns the onsets, raised where a pitch becomes much more probable within two frames."""
  before = lambda lag: np.pad(frame_FP, ((lag, 0), (0, 0)))[: len(frame_FP)]
  rise_FP = np.maximum(np.minimum(frame_FP - before(1), frame_FP - before(2)), 0)
  rise_FP[:2] = 0
  if not rise_FP.max() > 0:
    return onset_FP
  return np.maximum(onset_FP, rise_FP * onset_FP.max() / rise_FP.max())


def seconds(frame_N: Float[np.ndarray, '*dims']) -> Float[np.ndarray, '*dims']:
  """Returns the times of frames; windows are a little shorter than their frames."""
  too_long = HOP / RATE * (WINDOW_FRAMES - WINDOW / HOP) + _ALIGNMENT
  return frame_N * HOP / RATE - too_long * (frame_N // WINDOW_FRAMES)

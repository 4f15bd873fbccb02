"""Measures notes of music (key, rate, polyphony, agreement), and memorized continuations.

Notes are arrays [N, 4] with the columns onset and end in seconds, MIDI pitch, and velocity, as
those of `data.music` or of a transcriber.
"""

from typing import NamedTuple

import librosa
import numpy as np
from jaxtyping import Float, Int

from audiolm_jax import audio, checks
from audiolm_jax.data.arrangements import SCALES
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import extras
from audiolm_jax.tokens import PAD

# How well each pitch class fits to C major and C minor (Krumhansl and Kessler, 1982).
PROFILES = {
  'major': (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
  'minor': (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
ONSET_TOLERANCE = 0.05  # seconds; of mir_eval, and below which onsets are one chord
FALSE_POSITIVES = 1e-4  # of the threshold in the MusicLM paper
# Hz; librosa's defaults for onsets are made for it: at 16 kHz, they hear many twice.
_ONSET_RATE = 22_050
_WINDOW = 2048  # samples of a frame whose spectral flatness is measured
_QUIETEST = 0.01  # share of the power of the loudest frame
_CHROMA_FFT = 8192  # samples; its bins tell semitones apart from 90 Hz on
_TOLERANCE = (
  1e-4  # of the marginals of a transport plan, and so of the cost relative to the largest
)
# Weight of the entropy in transports, relative to the largest distance; the paper states none.
_REGULARIZATION = 0.02
_MAX_ITERATIONS = 10_000


def pitch_classes(notes_N4: Float[np.ndarray, 'N 4']) -> Float[np.ndarray, '12']:
  """Returns the share of each pitch class, C first, in the time that all notes last.

  Args:
    notes_N4: notes, see the module's docstring.

  Raises:
    UserError: if there are no notes.
  """
  notes_N4 = _notes(notes_N4)
  if not len(notes_N4):
    raise UserError('there are no notes, which have no pitch classes: pass a clip with notes')
  seconds_N = notes_N4[:, 1] - notes_N4[:, 0]
  total_12 = np.bincount(notes_N4[:, 2].astype(int) % 12, weights=seconds_N, minlength=12)
  return total_12 / total_12.sum()


def key(pitch_class_12: Float[np.ndarray, '12']) -> tuple[int, str]:
  """Returns the pitch class of the tonic, and 'major' or 'minor': the key of highest correlation.

  Correlates shares of pitch classes with the profiles of all 24 keys (Krumhansl and Schmuckler).

  Args:
    pitch_class_12: share of each pitch class, C first.

  Raises:
    UserError: if all shares are equal, or one is not finite.
  """
  if not np.ptp(pitch_class_12) > 0:  # also if a share is not a number
    raise UserError('all pitch classes have the same share, or one is not finite: there is no key')
  scores = {
    (tonic, mode): np.corrcoef(pitch_class_12, np.roll(profile, tonic))[0, 1]
    for mode, profile in PROFILES.items()
    for tonic in range(12)
  }
  return max(scores, key=scores.get)


def share_in_key(notes_N4: Float[np.ndarray, 'N 4'], tonic: int, mode: str) -> float:
  """Returns the share of notes in the scale of a key; that of minor keys is the natural one.

  Notes drawn evenly from all pitch classes have 7/12.

  Args:
    notes_N4: notes, see the module's docstring.
    tonic: pitch class, 0 is C.
    mode: 'major' or 'minor'.

  Raises:
    UserError: if there are no notes or the key is unknown.
  """
  checks.values(tonic=(tonic, checks.whole(0, 11)), mode=(mode, checks.one_of(*SCALES)))
  notes_N4 = _notes(notes_N4)
  if not len(notes_N4):
    raise UserError('there are no notes, of which no share is in a key: pass a clip with notes')
  return float(np.isin((notes_N4[:, 2] - tonic) % 12, SCALES[mode]).mean())


def histogram_distance(one_12: Float[np.ndarray, '12'], other_12: Float[np.ndarray, '12']) -> float:
  """Returns the total variation of two pitch-class distributions: 0 if equal, 1 if disjoint.

  Args:
    one_12: share of each pitch class.
    other_12: the shares to compare with.
  """
  return 0.5 * float(np.abs(np.asarray(one_12) - other_12).sum())


def onset_rate(notes_N4: Float[np.ndarray, 'N 4'], seconds: float) -> float:
  """Returns onsets per second of a clip of `seconds`; notes of a chord have one onset.

  Args:
    notes_N4: notes, see the module's docstring.
    seconds: length of the clip.
  """
  checks.values(seconds=(seconds, checks.POSITIVE))
  onset_N = np.sort(_notes(notes_N4)[:, 0])
  count, last = 0, -np.inf
  for onset in onset_N:
    if onset - last > ONSET_TOLERANCE:
      count, last = count + 1, onset
  return count / seconds


def heard_onset_rate(wave_T: Float[np.ndarray, 'T'], sample_rate: int) -> float:
  """Returns onsets per second of a clip, detected by librosa; those of a chord are one.

  Args:
    wave_T: samples in [-1, 1], at least one. Where the spectrum does not change, there are no
      onsets.
    sample_rate: in Hz.
  """
  checks.shapes(wave_T=wave_T)
  wave_1T = audio.resample(np.asarray(wave_T, np.float32)[None], sample_rate, _ONSET_RATE)
  onset_N = librosa.onset.onset_detect(y=wave_1T[0], sr=_ONSET_RATE, units='time')
  count = len(onset_N)
  notes_N4 = np.stack([onset_N, onset_N + ONSET_TOLERANCE, *np.zeros((2, count))], axis=1)
  return onset_rate(notes_N4, len(wave_T) / sample_rate)


def heard_pitch_classes(
  wave_T: Float[np.ndarray, 'T'], sample_rate: int
) -> Float[np.ndarray, '12']:
  """Returns the share of each pitch class, C first, in the spectrum of a clip, by librosa.

  Args:
    wave_T: samples in [-1, 1], at least one. Silence has equal shares.
    sample_rate: in Hz.
  """
  checks.shapes(wave_T=wave_T)
  wave_1T = audio.resample(np.asarray(wave_T, np.float32)[None], sample_rate, _ONSET_RATE)
  class_12F = librosa.feature.chroma_stft(
    y=wave_1T[0], sr=_ONSET_RATE, n_fft=_CHROMA_FFT, hop_length=_CHROMA_FFT // 4, tuning=0.0
  )
  total_12 = class_12F.astype(np.float64).mean(axis=1)
  return total_12 / total_12.sum() if total_12.any() else np.full(12, 1 / 12)


def melody_distance(one_N: Float[np.ndarray, 'N'], other_S: Float[np.ndarray, 'S']) -> float | None:
  """Returns the difference of two melodies in semitones, in any octave, key and tempo.

  Both are moved to a median pitch of 0, one of them also by 0 to 11 semitones, and aligned in time
  by dynamic time warping. The result is the smallest mean difference along a path, where octaves do
  not count: 0 for a melody and its transposition, at most 6.

  Args:
    one_N: MIDI pitch of each frame, NaN without a pitch (`pretrained.swift_f0`).
    other_S: the same of the other melody.

  Returns:
    The distance; None if a melody has no pitch in any frame.
  """
  melodies = [np.asarray(pitch_N, np.float64) for pitch_N in (one_N, other_S)]
  melodies = [pitch_N[np.isfinite(pitch_N)] for pitch_N in melodies]
  if not all(map(len, melodies)):
    return None
  one_N, other_S = (pitch_N - np.median(pitch_N) for pitch_N in melodies)
  difference_NS = one_N[:, None] - other_S
  distances = []
  for shift in range(12):
    cost_NS = np.abs((difference_NS + shift + 6) % 12 - 6)
    _, path_P2 = librosa.sequence.dtw(C=cost_NS)
    distances.append(cost_NS[path_P2[:, 0], path_P2[:, 1]].mean())
  return float(min(distances))


def flatness(wave_T: Float[np.ndarray, 'T']) -> float:
  """Returns the spectral flatness: 0 for a tone, about 0.56 for white noise, 1 for silence.

  It is the mean over frames with at least a hundredth of the power of the loudest one.

  Args:
    wave_T: waveform in [-1, 1].
  """
  checks.shapes(wave_T=wave_T)
  wave_T = np.asarray(wave_T, np.float32)
  wave_T = np.pad(wave_T, (0, max(0, _WINDOW - len(wave_T))))
  power_F = librosa.feature.rms(y=wave_T, frame_length=_WINDOW)[0] ** 2
  if not power_F.max() > 0:
    return 1.0
  flatness_F = librosa.feature.spectral_flatness(y=wave_T, n_fft=_WINDOW)[0]
  return float(flatness_F[power_F >= _QUIETEST * power_F.max()].mean())


def polyphony(notes_N4: Float[np.ndarray, 'N 4']) -> float:
  """Returns the mean number of notes that sound at once, while any sounds; 0 without notes.

  Args:
    notes_N4: notes, see the module's docstring.
  """
  notes_N4 = _notes(notes_N4)
  time_M = np.unique(notes_N4[:, :2])
  if len(time_M) < 2:
    return 0.0
  middle_M, seconds_M = (time_M[1:] + time_M[:-1]) / 2, np.diff(time_M)
  sounding_M = ((notes_N4[:, :1] <= middle_M) & (middle_M < notes_N4[:, 1:2])).sum(axis=0)
  return float((sounding_M * seconds_M).sum() / seconds_M[sounding_M > 0].sum())


def note_f1(true_N4: Float[np.ndarray, 'N 4'], heard_M4: Float[np.ndarray, 'M 4']) -> float:
  """Returns the F1 of notes with the right pitch and an onset within 50 ms, by mir_eval.

  Ends of notes do not count. Two clips without notes agree.

  Args:
    true_N4: notes of the score.
    heard_M4: transcribed notes.

  Raises:
    UserError: if mir_eval is not installed.
  """
  transcription = extras.load('mir_eval.transcription', 'mir_eval')
  true_N4, heard_M4 = _notes(true_N4), _notes(heard_M4)
  if not len(true_N4) or not len(heard_M4):
    return float(len(true_N4) == len(heard_M4))
  hertz = lambda notes_N4: 440.0 * 2 ** ((notes_N4[:, 2] - 69) / 12)
  *_, f1, _ = transcription.precision_recall_f1_overlap(
    true_N4[:, :2],
    hertz(true_N4),
    heard_M4[:, :2],
    hertz(heard_M4),
    onset_tolerance=ONSET_TOLERANCE,
    offset_ratio=None,
  )
  return float(f1)


def _notes(notes_N4) -> Float[np.ndarray, 'N 4']:
  notes_N4 = np.asarray(notes_N4, np.float64)
  checks.shapes(notes_N4=notes_N4)
  if not (notes_N4[:, 0] < notes_N4[:, 1]).all():  # also if a time is not a number
    raise UserError('a note ends before it begins, or never: correct its times')
  return notes_N4


class Memorization(NamedTuple):
  """Holds shares of continuations that are memorized, as in the MusicLM paper.

  Fields:
    exact: share of continuations equal to the training example's.
    approximate: share whose transport cost is below the threshold.
    threshold: the cost that a share `false_positives` of permuted pairs lies below.
  """

  exact: float
  approximate: float
  threshold: float


def memorization(
  generated_NS: Int[np.ndarray, 'N S'],
  true_NS: Int[np.ndarray, 'N S'],
  centroids_KD: Float[np.ndarray, 'K D'],
  *,
  false_positives: float = FALSE_POSITIVES,
  num_negatives: int | None = None,
  seed: int = 0,
) -> Memorization:
  """Compares continuations of training prompts with the training examples (MusicLM, appendix).

  Clips of few different tokens match easily, which biases the approximate share upwards.

  Args:
    generated_NS: semantic tokens of greedy continuations.
    true_NS: tokens of the same examples in the training data.
    centroids_KD: cluster centres of the tokens.
    false_positives: share of negative pairs that the threshold accepts; with fewer than its inverse
      pairs, the threshold is their least cost.
    num_negatives: number of pairs of one clip's continuation and another's tokens; None is N.
    seed: seed of these pairs.

  Returns:
    Shares of exact and approximate matches.

  Raises:
    UserError: if there are fewer than two examples, or tokens have no centre.
  """
  checks.shapes(generated_NS=generated_NS, true_NS=true_NS, centroids_KD=centroids_KD)
  checks.values(
    false_positives=(false_positives, checks.BETWEEN),
    num_negatives=(num_negatives, checks.optional(checks.WHOLE)),
    seed=(seed, checks.SEED),
  )
  count = len(generated_NS)
  if count < 2:
    raise UserError(f'{count} examples have no permuted pairs: pass two or more')
  random = np.random.default_rng(seed)
  num_negatives = count if num_negatives is None else num_negatives
  first_M = np.arange(num_negatives) % count
  second_M = (first_M + random.integers(1, count, num_negatives)) % count
  cost = lambda i, j: transport_cost(generated_NS[i], true_NS[j], centroids_KD)
  negative_M = [cost(i, j) for i, j in zip(first_M, second_M, strict=True)]
  threshold = float(np.quantile(negative_M, false_positives, method='lower'))
  cost_N = np.array([cost(n, n) for n in range(count)])
  exact = (np.asarray(generated_NS) == true_NS).all(axis=1).mean()
  return Memorization(float(exact), float((cost_N < threshold).mean()), threshold)


def transport_cost(
  one_S: Int[np.ndarray, 'S'], other_T: Int[np.ndarray, 'T'], centroids_KD: Float[np.ndarray, 'K D']
) -> float:
  """Returns the cost of moving one clip's histogram of tokens to another's (Sinkhorn iteration).

  Moving a token costs the Euclidean distance of its centre. PAD is ignored.

  Args:
    one_S: tokens of one clip.
    other_T: tokens of the other clip.
    centroids_KD: cluster centres of the tokens.

  Raises:
    UserError: if a clip has no tokens, or they have no centre.
  """
  (kind_A, share_A), (kind_B, share_B) = (
    _histogram(tokens, len(centroids_KD)) for tokens in (one_S, other_T)
  )
  centre_AD, centre_BD = (np.asarray(centroids_KD, float)[kinds] for kinds in (kind_A, kind_B))
  cost_AB = np.linalg.norm(centre_AD[:, None] - centre_BD, axis=-1)
  if not cost_AB.any():
    return 0.0
  # Relative to the largest distance, no entry of the kernel underflows.
  kernel_AB = np.exp(-cost_AB / (_REGULARIZATION * cost_AB.max()))
  scale_B = np.ones(len(kind_B))
  for _ in range(_MAX_ITERATIONS):
    scale_A = share_A / (kernel_AB @ scale_B)
    scale_B = share_B / (scale_A @ kernel_AB)
    if np.abs(scale_A * (kernel_AB @ scale_B) - share_A).sum() < _TOLERANCE:
      break
  return float(scale_A @ (kernel_AB * cost_AB) @ scale_B)


def _histogram(tokens, size: int) -> tuple[np.ndarray, np.ndarray]:
  tokens = np.asarray(tokens)
  checks.ids('tokens', tokens, size)
  kinds, counts = np.unique(tokens[tokens != PAD], return_counts=True)
  if not len(kinds):
    raise UserError('a clip has no tokens: leave it out')
  return kinds, counts / counts.sum()

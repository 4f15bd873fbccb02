"""Reads and writes audio files; computes frames, spectra and mel bands of waveforms.

Waveforms are float32 in [-1, 1]; rates are in Hz, lengths in samples unless a name says seconds.
"""

import functools
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import soundfile
import soxr
from jaxtyping import Array, Complex, Float, Int

from audiolm_jax import audio_checks, files
from audiolm_jax.errors import UserError

# Magnitudes are floored at this value before a logarithm, as in EnCodec.
LOG_FLOOR = 1e-5

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 192_000  # Hz, of files
MAX_CHANNELS = 8
_BLOCK = 1 << 16  # samples decoded at a time; bounds the memory a false header can claim
# Subtypes whose decoders are exact after a seek. Vorbis (at the end of a file), Opus and MP3 are
# not. Those of FLAC files are PCM.
_SEEKS_EXACTLY = (
  'PCM_S8',
  'PCM_U8',
  'PCM_16',
  'PCM_24',
  'PCM_32',
  'FLOAT',
  'DOUBLE',
  'ULAW',
  'ALAW',
)
# soxr's filter covers 102 samples of the lower rate on both sides (beyond, it is below 1e-7 of its
# peak); slices are decoded with a larger margin. The phase is exact for ratios of small numbers and
# drifts for others.
_MARGIN, _EXACT_RATIO = 128, 1024
_UNKNOWN = 1 << 60  # libsndfile reports more samples for FLACs written to a pipe


class Info(NamedTuple):
  """Holds the header of an audio file.

  Fields:
    format: 'WAV', 'FLAC', 'OGG' or 'MP3'.
    sample_rate: in Hz.
    num_channels: number of channels.
    num_samples: number of samples per channel.
    tells_length: whether a header states the length. It does not in MP3s without a tag, and in WAVs
      and FLACs written to a pipe; if such a file is truncated, nobody notices.
  """

  format: str
  sample_rate: int
  num_channels: int
  num_samples: int
  tells_length: bool


def info(path: str | os.PathLike) -> Info:
  """Returns the header of an audio file.

  Args:
    path: path of the file.

  Raises:
    UserError: as `load`.
  """
  with audio_checks.open_file(path) as file, _open(file, str(path)) as sound:
    count = sound.frames if sound.knows_length else sum(len(part_T) for part_T in _parts(sound))
    return Info(sound.format, sound.samplerate, sound.channels, count, sound.tells_length)


def load(
  path: str | os.PathLike,
  sample_rate: int,
  *,
  start_seconds: float = 0.0,
  num_seconds: float | None = None,
  max_seconds: float = 3600.0,
) -> Float[np.ndarray, 'T']:
  """Returns a WAV, FLAC, OGG or MP3 file (or a part of it) as mono float32 at `sample_rate`.

  Files are not trusted: the format is recognized by content, decoding is blockwise and bounded.
  Channels are averaged. If a header states the length (`Info.tells_length`), the file must contain
  that many samples.

  Args:
    path: path of the file.
    sample_rate: rate of the result, in Hz.
    start_seconds: start of the part.
    num_seconds: length of the part; None reads to the end.
    max_seconds: longest accepted length.

  Raises:
    UserError: naming path, value and remedy, if the file is not a regular file, of another format,
      damaged, truncated, empty (also after resampling), not finite, far beyond [-1, 1]
      (audio_checks.MAX_PEAK), longer than `max_seconds`, or has more than 8 channels or a rate
      outside of 4 to 192 kHz.
  """
  with audio_checks.open_file(path) as file:
    return decode(
      file,
      sample_rate,
      name=str(path),
      start_seconds=start_seconds,
      num_seconds=num_seconds,
      max_seconds=max_seconds,
    )


def load_slice(
  path: str | os.PathLike,
  sample_rate: int,
  choose: Callable[[int], tuple[int, int]],
  *,
  start_seconds: float = 0.0,
  num_seconds: float | None = None,
  max_seconds: float = 3600.0,
) -> Float[np.ndarray, 'T']:
  """Returns `load(...)[first:stop]`, where `first, stop = choose(length)`, decoding little more.

  From FLAC and WAV, only the slice is decoded; samples equal those of `load` bitwise, or to 1e-4 if
  resampled. The whole file is decoded if the decoder is not exact after a seek or the length is
  unknown (OGG, MP3, compressed WAV), and for rate ratios such as 44101 / 16000.

  Args:
    path: path of the file.
    sample_rate: rate of the result, in Hz.
    choose: function from the length of `load`'s result to `first` and `stop`.
    start_seconds: start of the part.
    num_seconds: length of the part; None reads to the end.
    max_seconds: longest accepted length.

  Raises:
    UserError: as `load`; damage outside of the slice may go unnoticed.
  """
  with audio_checks.open_file(path) as file, _open(file, str(path)) as sound:
    start, count = _span(sound, str(path), start_seconds, num_seconds, max_seconds)
    up, down = Fraction(sample_rate, sound.samplerate).as_integer_ratio()
    seeks = sound.subtype in _SEEKS_EXACTLY and sound.seekable() and max(up, down) <= _EXACT_RATIO
    if not seeks or count is None:
      wave_T = _whole(
        _resampled(sound, str(path), start, count, sample_rate, max_seconds), str(path)
      )
      return wave_T[slice(*choose(len(wave_T)))]
    length = (2 * count * up + down) // (2 * down)  # rounded as soxr does
    if not length:
      raise UserError(audio_checks.too_short(str(path)))
    first, stop = choose(length)
    margin = 0 if up == down else _MARGIN * math.ceil(up / down)
    # Starting at a multiple of `down` samples keeps the phase of the filter.
    begin = max(0, first - margin) // up * down
    end = min(count, -(-(stop + margin) * down // up))
    wave_T = _whole(
      _resampled(sound, str(path), start + begin, end - begin, sample_rate, max_seconds), str(path)
    )
    skipped = begin // down * up
    return wave_T[first - skipped : stop - skipped]


def decode(
  file: io.BufferedIOBase,
  sample_rate: int,
  *,
  name: str,
  start_seconds: float = 0.0,
  num_seconds: float | None = None,
  max_seconds: float = 3600.0,
) -> Float[np.ndarray, 'T']:
  """Returns the waveform of an open binary file, as `load`; error messages use `name`.

  Args:
    file: WAV, FLAC, OGG or MP3, opened for reading.
    sample_rate: rate of the result, in Hz.
    name: what error messages call the file.
    start_seconds: start of the part.
    num_seconds: length of the part; None reads to the end.
    max_seconds: longest accepted length.

  Raises:
    UserError: as `load`.
  """
  return _whole(_decoded(file, sample_rate, name, start_seconds, num_seconds, max_seconds), name)


def blocks(
  path: str | os.PathLike, sample_rate: int, block_length: int, *, max_seconds: float = 3600.0
) -> Iterator[np.ndarray]:
  """Yields the waveform of `load` in blocks of `block_length` samples, in bounded memory.

  The last block may be shorter.

  Args:
    path: path of the file.
    sample_rate: rate of the result, in Hz.
    block_length: number of samples of each block.
    max_seconds: longest accepted length.

  Raises:
    UserError: as `load`, possibly after some blocks.
  """
  with audio_checks.open_file(path) as file:
    rest_T, given = np.zeros(0, np.float32), 0
    for part_T in _decoded(file, sample_rate, str(path), 0.0, None, max_seconds):
      rest_T = np.concatenate([rest_T, part_T])
      whole = len(rest_T) - len(rest_T) % block_length
      yield from np.split(rest_T[:whole], whole // block_length) if whole else ()
      rest_T, given = rest_T[whole:], given + whole
    if len(rest_T):
      yield rest_T
    elif not given:
      raise UserError(audio_checks.too_short(str(path)))


def _decoded(
  file, sample_rate, name, start_seconds, num_seconds, max_seconds
) -> Iterator[np.ndarray]:
  """Yields the waveform of `decode` in parts of arbitrary lengths."""
  with _open(file, name) as sound:
    start, wanted = _span(sound, name, start_seconds, num_seconds, max_seconds)
    yield from _resampled(sound, name, start, wanted, sample_rate, max_seconds)


class _Sound(soundfile.SoundFile):
  """Decodes a file; if its length is unknown, it cannot seek."""

  def __init__(self, file, headers: audio_checks.Headers):
    super().__init__(audio_checks.Patched(file, headers.patches) if headers.patches else file)
    self.tells_length = headers.tells_length and self.knows_length

  @property
  def knows_length(self) -> bool:
    return self.frames < _UNKNOWN

  def seekable(self) -> bool:
    return self.knows_length and super().seekable()


def _span(
  sound: _Sound, name: str, start_seconds, num_seconds, max_seconds
) -> tuple[int, int | None]:
  """Returns the requested first sample and number of samples, at the file's rate.

  The number is None for all samples of a file of unknown length.
  """
  start = round(start_seconds * sound.samplerate)
  if not sound.knows_length:
    return start, None if num_seconds is None else round(num_seconds * sound.samplerate)
  wanted = sound.frames - start if num_seconds is None else round(num_seconds * sound.samplerate)
  if wanted > max_seconds * sound.samplerate:
    raise UserError(audio_checks.too_long(name, wanted / sound.samplerate, max_seconds))
  if start + wanted > sound.frames or wanted <= 0:
    raise UserError(
      f'{name}: has {sound.frames} samples, but {wanted} from sample {start} were requested: it is '
      'empty or cut short; '
      f'{audio_checks.remedy(name) if sound.frames else "record it again, or delete it"}'
    )
  return start, wanted


def _resampled(
  sound: _Sound, name: str, start: int, wanted: int | None, sample_rate: int, max_seconds: float
) -> Iterator[np.ndarray]:
  parts = _read(sound, name, start, wanted, max_seconds)
  if sound.samplerate == sample_rate:
    yield from parts
    return
  resampler = soxr.ResampleStream(sound.samplerate, sample_rate, 1, dtype='float32')
  for part_T in parts:
    yield resampler.resample_chunk(part_T)
  yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _whole(parts: Iterable[np.ndarray], name: str) -> np.ndarray:
  wave_T = np.concatenate([np.zeros(0, np.float32), *parts])
  if not len(wave_T):
    raise UserError(audio_checks.too_short(name))
  return wave_T


def _read(
  sound: _Sound, name: str, start: int, wanted: int | None, max_seconds: float
) -> Iterator[np.ndarray]:
  """Yields the requested samples, mixed to mono; with `wanted` None, all up to `max_seconds`."""
  count, most = 0, math.floor(max_seconds * sound.samplerate)
  try:
    if sound.subtype in _SEEKS_EXACTLY and sound.seekable():
      sound.seek(start)
    else:
      for skipped in range(0, start, _BLOCK):
        sound.read(min(_BLOCK, start - skipped))
    for part_T in _parts(sound, wanted):
      audio_checks.check_samples(part_T, name)
      count += len(part_T)
      if count > most:
        raise UserError(audio_checks.too_long(name, count / sound.samplerate, max_seconds))
      yield part_T
  except soundfile.SoundFileError as error:
    raise UserError(f'{name}: damaged, {error}; {audio_checks.remedy(name)}') from error
  wanted = wanted or 1
  slack = (
    0
    if sound.format != 'MP3' or not count
    else audio_checks.MP3_SLACK
    if sound.tells_length
    else wanted
  )
  if count < wanted - slack:
    raise UserError(
      f'{name}: cut short, only {count} of {wanted} samples could be decoded: '
      f'{audio_checks.remedy(name)}'
    )


def _parts(sound: _Sound, wanted: int | None = None) -> Iterator[np.ndarray]:
  """Yields the next samples in blocks, mixed to mono: `wanted` samples, or all if None."""
  count = 0
  while wanted is None or count < wanted:
    block = sound.read(
      _BLOCK if wanted is None else min(_BLOCK, wanted - count), dtype='float32', always_2d=True
    )
    if not len(block):
      return
    count += len(block)
    yield block.mean(axis=1, dtype=np.float32)


def _open(file: io.BufferedIOBase, name: str) -> _Sound:
  headers = audio_checks.examine(file, name)
  file.seek(0)
  try:
    sound = _Sound(file, headers)
  except (soundfile.SoundFileError, TypeError) as error:
    # `error_string` excludes the object that soundfile names instead of the path.
    reason = getattr(error, 'error_string', str(error)).rstrip('.')
    raise UserError(f'{name}: damaged, {reason}; {audio_checks.remedy(name)}') from error
  if not MIN_SAMPLE_RATE <= sound.samplerate <= MAX_SAMPLE_RATE:
    raise UserError(
      f'{name}: {sound.samplerate} Hz is outside {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}: resample '
      'it'
    )
  if sound.channels > MAX_CHANNELS:
    raise UserError(f'{name}: {sound.channels} channels, more than {MAX_CHANNELS}: mix it down')
  audio_checks.check_counted(headers, sound.frames, name)
  return sound


def save(
  path: str | os.PathLike,
  wave_T: Float[np.ndarray, 'T'],
  sample_rate: int,
  *,
  overwrite: bool = False,
):
  """Writes a mono waveform as 16-bit WAV, FLAC or OGG (by extension), atomically.

  Values beyond [-1, 1] are clipped.

  Args:
    path: ends with .wav, .flac or .ogg.
    wave_T: samples in [-1, 1].
    sample_rate: in Hz.
    overwrite: whether to replace an existing file.

  Raises:
    UserError: if the file exists (unless `overwrite`), the extension is unknown, or a sample is not
      finite.
  """
  save_blocks(path, [wave_T], sample_rate, overwrite=overwrite)


def save_blocks(
  path: str | os.PathLike,
  blocks: Iterable[np.ndarray],
  sample_rate: int,
  *,
  overwrite: bool = False,
):
  """Writes a waveform given in blocks, as `save`, holding one block at a time.

  Args:
    path: ends with .wav, .flac or .ogg.
    blocks: waveforms [T] in [-1, 1], of any lengths.
    sample_rate: in Hz.
    overwrite: whether to replace an existing file.

  Raises:
    UserError: as `save`.
    OSError: if the disk is full.
  """
  path = os.fspath(path)
  kind = os.path.splitext(path)[1][1:].upper()
  if kind not in ('WAV', 'FLAC', 'OGG'):
    raise UserError(f'{path}: audio is saved as .wav, .flac or .ogg')
  if os.path.exists(path) and not overwrite:
    raise UserError(f'{path} exists: choose another name or pass overwrite=True')
  with files.atomically(path) as partial, open(partial, 'w+b') as file:
    with soundfile.SoundFile(file, 'w', sample_rate, channels=1, format=kind) as sound:
      for block_T in blocks:
        if not np.isfinite(block_T).all():
          raise UserError(
            f'{path}: {np.sum(~np.isfinite(block_T))} samples are NaN or infinite; nothing was '
            'written'
          )
        try:
          sound.write(np.clip(block_T, -1, 1))
        except AssertionError as error:  # raised by soundfile if not all samples were written
          raise OSError(f'{path}: could not be written to the end: is the disk full?') from error


def frame(
  wave_BT: Float[Array, 'B T'], frame_length: int, hop_length: int
) -> Float[Array, 'B F N']:
  """Returns overlapping frames of a waveform, without the samples after the last whole frame.

  Args:
    wave_BT: waveforms.
    frame_length: samples per frame N.
    hop_length: samples from the start of one frame to that of the next.

  Raises:
    UserError: if the waveform is shorter than one frame.
  """
  num_samples = wave_BT.shape[-1]
  if num_samples < frame_length:
    raise UserError(
      f'waveform has {num_samples} samples, fewer than one frame of {frame_length}: pad it with '
      'zeros first'
    )
  num_frames = 1 + (num_samples - frame_length) // hop_length
  # XLA turns a gather with constant indices into cheap, differentiable slices.
  index_FN = np.arange(num_frames)[:, None] * hop_length + np.arange(frame_length)[None, :]
  return wave_BT[:, index_FN]


def stft(
  wave_BT: Float[Array, 'B T'], window_length: int, hop_length: int, fft_length: int | None = None
) -> Complex[Array, 'B F N']:
  """Returns the short-time Fourier transform with a periodic Hann window, without padding.

  Args:
    wave_BT: waveforms.
    window_length: samples per window.
    hop_length: samples from one window to the next.
    fft_length: samples of the transform, zeros after the window; None is `window_length`. N =
      fft_length // 2 + 1.

  Raises:
    UserError: as `frame`.
  """
  frames_BFN = frame(wave_BT, window_length, hop_length)
  window_N = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_length) / window_length)
  return jnp.fft.rfft(
    frames_BFN * window_N.astype(np.float32)[None, None], n=fft_length or window_length
  )


@functools.cache
def mel_filterbank(
  sample_rate: int,
  fft_length: int,
  num_mels: int,
  low_hz: float = 0.0,
  high_hz: float | None = None,
) -> np.ndarray:
  """Returns triangular mel filters (Slaney area norm), [fft_length // 2 + 1, num_mels].

  Args:
    sample_rate: in Hz.
    fft_length: in samples.
    num_mels: number of filters.
    low_hz: start of the first filter.
    high_hz: end of the last filter; None is half the sample rate.
  """
  import librosa  # slow to import, and needed only here

  filters = librosa.filters.mel(
    sr=sample_rate, n_fft=fft_length, n_mels=num_mels, fmin=low_hz, fmax=high_hz
  )
  return filters.T.astype(np.float32)


def mel_spectrogram(
  wave_BT: Float[Array, 'B T'],
  *,
  sample_rate: int,
  window_length: int,
  hop_length: int,
  num_mels: int,
  fft_length: int | None = None,
) -> Float[Array, 'B F M']:
  """Returns the magnitudes of mel bands, neither squared nor logarithmic.

  Args:
    wave_BT: waveforms.
    sample_rate: in Hz.
    window_length: samples per window.
    hop_length: samples from one window to the next.
    num_mels: number of bands M, from 0 Hz to half the sample rate.
    fft_length: samples of the transform; None is `window_length`.

  Raises:
    UserError: as `frame`.
  """
  fft_length = fft_length or window_length
  spectrum_BFN = stft(wave_BT, window_length, hop_length, fft_length)
  # The gradient of |z| is infinite at 0, in digital silence.
  magnitude_BFN = jnp.sqrt(jnp.square(spectrum_BFN.real) + jnp.square(spectrum_BFN.imag) + 1e-12)
  return magnitude_BFN @ mel_filterbank(sample_rate, fft_length, num_mels)


def log_mel_spectrogram(wave_BT: Float[Array, 'B T'], **options) -> Float[Array, 'B F M']:
  """Returns the natural logarithm of `mel_spectrogram`, with magnitudes floored at LOG_FLOOR.

  Args:
    wave_BT: waveforms.
    **options: further arguments of `mel_spectrogram`.

  Raises:
    UserError: as `frame`.
  """
  return jnp.log(jnp.maximum(mel_spectrogram(wave_BT, **options), LOG_FLOOR))


def resample(
  wave_BT: Float[np.ndarray, 'B T'], sample_rate: int, wanted_rate: int
) -> Float[np.ndarray, 'B T2']:
  """Returns waveforms resampled to round(T * wanted_rate / sample_rate) samples.

  Waveforms that have the wanted rate are returned unchanged.

  Args:
    wave_BT: waveforms.
    sample_rate: their rate, in Hz.
    wanted_rate: rate of the result, in Hz.
  """
  if sample_rate == wanted_rate:
    return wave_BT
  return np.ascontiguousarray(soxr.resample(wave_BT.T, sample_rate, wanted_rate).T)


def pad_to_multiple(wave_BT: Float[Array, 'B T'], multiple: int) -> Float[Array, 'B T2']:
  """Returns the waveform, zero-padded at the end to a multiple of `multiple` samples.

  Args:
    wave_BT: waveforms.
    multiple: number of samples.
  """
  return jnp.pad(wave_BT, ((0, 0), (0, -wave_BT.shape[-1] % multiple)))


def stacked(waves: Sequence[np.ndarray]) -> tuple[Float[np.ndarray, 'B T'], Int[np.ndarray, 'B']]:
  """Returns waveforms of any lengths as one zero-padded array, and their lengths in samples.

  Args:
    waves: at least one waveform [T].
  """
  num_samples_B = np.array([len(wave_T) for wave_T in waves], np.int32)
  wave_BT = np.zeros((len(waves), num_samples_B.max()), np.float32)
  for row_T, wave_T in zip(wave_BT, waves, strict=True):
    row_T[: len(wave_T)] = wave_T
  return wave_BT, num_samples_B

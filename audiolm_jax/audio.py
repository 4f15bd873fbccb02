"""Waveforms: files read and written with care; frames, spectra and mel bands as pure functions of
arrays.

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

# below this a magnitude counts as silence before a logarithm (the value EnCodec uses)
LOG_FLOOR = 1e-5

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 192_000  # Hz, of files
MAX_CHANNELS = 8
_BLOCK = 1 << 16  # samples decoded at a time, so that a false header cannot claim memory
# Decoders that give the same samples after a seek as without one. Vorbis (at the end of a file),
# Opus and MP3 do not.
# FLAC's are PCM
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
# soxr's filter reaches 102 samples of the lower rate to either side (beyond is less than 1e-7 of
# its peak); so much and a little more is decoded around a slice. Its phase is exact for ratios of
# small numbers; for others it drifts.
_MARGIN, _EXACT_RATIO = 128, 1024
_UNKNOWN = 1 << 60  # libsndfile gives FLACs from a pipe more samples than that


class Info(NamedTuple):
  """What a file's header says.

  tells_length: False where no header tells the length (MP3 without a tag, WAV and FLAC written into
    a pipe): a file of that kind that was cut short cannot be told from a whole one.
  """

  format: str
  sample_rate: int
  num_channels: int
  num_samples: int
  tells_length: bool


def info(path: str | os.PathLike) -> Info:
  """Returns what the header of an audio file says; raises ValueError as `load` does."""
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

  Files are not trusted: the format is known by content, decoding is in blocks and bounded. Channels
  are averaged. Where a header tells the length, that many samples must be there (`info` says where
  none does).

  Raises ValueError, with the path, the value and what to do, when the file is no regular file, of
  another kind, damaged, cut short, empty (also once resampled), not finite, far beyond [-1, 1]
  (audio_checks.MAX_PEAK), longer than `max_seconds`, or has more than 8 channels or a rate outside
  4 to 192 kHz.
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
  """Returns `load(...)[first:stop]` where `first, stop = choose(length)`, without decoding the rest
  where it can.

  `length` is that of what `load` returns. From FLAC and WAV the slice alone is decoded: its samples
  are those of `load` bit by bit, or within 1e-4 where it is resampled. All is decoded, as by
  `load`, where the decoder is not exact after a seek or the length is not known without it (OGG,
  MP3, compressed WAV), and for a ratio of rates such as 44101 / 16000.

  Raises ValueError as `load`; damage outside of the slice may not be noticed.
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
    # From a multiple of `down` samples on, the filter has the phase that it has there in the whole.
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
  """As `load`, from an open binary file (or io.BytesIO); `name` is what errors call it."""
  return _whole(_decoded(file, sample_rate, name, start_seconds, num_seconds, max_seconds), name)


def blocks(
  path: str | os.PathLike, sample_rate: int, block_length: int, *, max_seconds: float = 3600.0
) -> Iterator[np.ndarray]:
  """Yields what `load` returns in blocks of `block_length` samples, the last one shorter, in
  bounded memory.

  Raises ValueError as `load`; what is wrong with a file may turn up after some blocks.
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
  """Yields the waveform that `decode` returns, in parts of any lengths."""
  with _open(file, name) as sound:
    start, wanted = _span(sound, name, start_seconds, num_seconds, max_seconds)
    yield from _resampled(sound, name, start, wanted, sample_rate, max_seconds)


class _Sound(soundfile.SoundFile):
  """A file being decoded; one of unknown length is read from its beginning to its end, without a
  seek.
  """

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
  """Returns the first sample and the number of those that are asked for, at the file's rate; None:
  to an unknown end.
  """
  start = round(start_seconds * sound.samplerate)
  if not sound.knows_length:
    return start, None if num_seconds is None else round(num_seconds * sound.samplerate)
  wanted = sound.frames - start if num_seconds is None else round(num_seconds * sound.samplerate)
  if wanted > max_seconds * sound.samplerate:
    raise UserError(audio_checks.too_long(name, wanted / sound.samplerate, max_seconds))
  if start + wanted > sound.frames or wanted <= 0:
    raise UserError(
      f'{name}: {wanted} samples from sample {start} on are asked for, it has {sound.frames}: it is empty or cut '
      f'short; {audio_checks.remedy(name) if sound.frames else "record it again, or delete it"}'
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
  """Yields the samples asked for, mixed to one channel; None: all to the end, at most
  `max_seconds`.
  """
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
      f'{name}: cut short, {count} samples could be decoded of the {wanted} that its header '
      'promises: '
      f'{audio_checks.remedy(name)}'
    )


def _parts(sound: _Sound, wanted: int | None = None) -> Iterator[np.ndarray]:
  """Yields up to `wanted` samples from here on (None: all), mixed to one channel, in blocks."""
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
    raise UserError(f'{name}: damaged, {error}; {audio_checks.remedy(name)}') from error
  if not MIN_SAMPLE_RATE <= sound.samplerate <= MAX_SAMPLE_RATE:
    raise UserError(
      f'{name}: {sound.samplerate} Hz is outside {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}: resample it'
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
  """Writes a mono waveform as 16 bits (WAV, FLAC or OGG by the extension), whole or not at all;
  values are clipped.

  Raises ValueError when the file exists (unless `overwrite`), the extension is another, or a sample
  is not finite.
  """
  save_blocks(path, [wave_T], sample_rate, overwrite=overwrite)


def save_blocks(
  path: str | os.PathLike,
  blocks: Iterable[np.ndarray],
  sample_rate: int,
  *,
  overwrite: bool = False,
):
  """As `save`, of a waveform that comes in blocks: only one of them is held at a time.

  Raises OSError, besides, when the disk is full.
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
            f'{path}: {np.sum(~np.isfinite(block_T))} samples are NaN or infinite; nothing was written'
          )
        try:
          sound.write(np.clip(block_T, -1, 1))
        except AssertionError as error:  # soundfile's way to say that not all samples were written
          raise OSError(f'{path}: could not be written to the end: is the disk full?') from error


def frame(
  wave_BT: Float[Array, 'B T'], frame_length: int, hop_length: int
) -> Float[Array, 'B F N']:
  """Cuts a waveform into overlapping frames; samples after the last whole frame are dropped.

  Raises ValueError when the waveform is shorter than one frame.
  """
  num_samples = wave_BT.shape[-1]
  if num_samples < frame_length:
    raise UserError(
      f'waveform has {num_samples} samples, fewer than one frame of {frame_length}: pad it with zeros first'
    )
  num_frames = 1 + (num_samples - frame_length) // hop_length
  # A gather by constant indices: XLA turns it into cheap slices, and it is differentiable.
  index_FN = np.arange(num_frames)[:, None] * hop_length + np.arange(frame_length)[None, :]
  return wave_BT[:, index_FN]


def stft(
  wave_BT: Float[Array, 'B T'], window_length: int, hop_length: int, fft_length: int | None = None
) -> Complex[Array, 'B F N']:
  """Returns the short-time Fourier transform under a periodic Hann window, without padding at the
  ends.
  """
  frames_BFN = frame(wave_BT, window_length, hop_length)
  window_N = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_length) / window_length)
  return jnp.fft.rfft(frames_BFN * window_N.astype(np.float32), n=fft_length or window_length)


@functools.cache
def mel_filterbank(
  sample_rate: int,
  fft_length: int,
  num_mels: int,
  low_hz: float = 0.0,
  high_hz: float | None = None,
) -> np.ndarray:
  """Returns the triangular mel filters (Slaney area norm) as an array [fft_length // 2 + 1,
  num_mels].

  high_hz: where the last one ends; None: at half the sample rate.
  """
  import librosa  # slow to import, and wanted only here

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
  """Returns mel-band magnitudes (not power, not log)."""
  fft_length = fft_length or window_length
  spectrum_BFN = stft(wave_BT, window_length, hop_length, fft_length)
  # The gradient of |z| is not finite at 0, where silence lives.
  magnitude_BFN = jnp.sqrt(jnp.square(spectrum_BFN.real) + jnp.square(spectrum_BFN.imag) + 1e-12)
  return magnitude_BFN @ mel_filterbank(sample_rate, fft_length, num_mels)


def log_mel_spectrogram(wave_BT: Float[Array, 'B T'], **options) -> Float[Array, 'B F M']:
  """Returns the natural logarithm of `mel_spectrogram(wave_BT, **options)`, floored at
  LOG_FLOOR.
  """
  return jnp.log(jnp.maximum(mel_spectrogram(wave_BT, **options), LOG_FLOOR))


def resample(
  wave_BT: Float[np.ndarray, 'B T'], sample_rate: int, wanted_rate: int
) -> Float[np.ndarray, 'B T2']:
  """Returns waveforms at another rate (numpy), T2 = T * wanted_rate / sample_rate, rounded; the
  same rate: as given.
  """
  if sample_rate == wanted_rate:
    return wave_BT
  return np.ascontiguousarray(soxr.resample(wave_BT.T, sample_rate, wanted_rate).T)


def pad_to_multiple(wave_BT: Float[Array, 'B T'], multiple: int) -> Float[Array, 'B T2']:
  """Appends zeros until the length is a multiple of `multiple` samples."""
  return jnp.pad(wave_BT, ((0, 0), (0, -wave_BT.shape[-1] % multiple)))


def stacked(waves: Sequence[np.ndarray]) -> tuple[Float[np.ndarray, 'B T'], Int[np.ndarray, 'B']]:
  """Returns waveforms of any lengths as wave_BT, zero-padded at the end, and their lengths in
  samples.
  """
  num_samples_B = np.array([len(wave_T) for wave_T in waves], np.int32)
  wave_BT = np.zeros((len(waves), num_samples_B.max()), np.float32)
  for row_T, wave_T in zip(wave_BT, waves, strict=True):
    row_T[: len(wave_T)] = wave_T
  return wave_BT, num_samples_B

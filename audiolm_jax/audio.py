"""Waveforms: files read and written with care; frames, spectra and mel bands as pure functions of arrays.

Waveforms are float32 in [-1, 1]; rates are in Hz, lengths in samples unless a name says seconds.
"""

import functools
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import soundfile
import soxr
from jaxtyping import Array, Complex, Float

from audiolm_jax import files

LOG_FLOOR = 1e-5  # below this a magnitude counts as silence before a logarithm (the value EnCodec uses)

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 192_000  # Hz, of files
MAX_CHANNELS = 8
MAX_CHUNKS = 1024  # of a WAV: libsndfile takes minutes for a million
_BLOCK = 1 << 16  # samples decoded at a time, so that a false header cannot claim memory
# Decoders that give the same samples after a seek as without one. Vorbis (at the end of a file), Opus and MP3 do not.
_SEEKS_EXACTLY = ('PCM_S8', 'PCM_U8', 'PCM_16', 'PCM_24', 'PCM_32', 'FLOAT', 'DOUBLE', 'ULAW', 'ALAW')  # FLAC's are PCM
# soxr's filter reaches 102 samples of the lower rate to either side (beyond is less than 1e-7 of its peak); so much and
# a little more is decoded around a slice. Its phase is exact for ratios of small numbers; for others it drifts.
_MARGIN, _EXACT_RATIO = 128, 1024
_FORMATS = {b'RIFF': 'WAV', b'RF64': 'WAV', b'fLaC': 'FLAC', b'OggS': 'OGG', b'ID3': 'MP3'}


class Info(NamedTuple):
  """What a file's header says."""

  format: str
  sample_rate: int
  num_channels: int
  num_samples: int


def info(path: str | os.PathLike) -> Info:
  """Returns what the header of an audio file says; raises ValueError as `load` does."""
  with _file(path) as file, _open(file, str(path)) as sound:
    return Info(sound.format, sound.samplerate, sound.channels, sound.frames)


def load(
    path: str | os.PathLike,
    sample_rate: int,
    *,
    start_seconds: float = 0.0,
    num_seconds: float | None = None,
    max_seconds: float = 3600.0,
) -> Float[np.ndarray, 'T']:
  """Returns a WAV, FLAC, OGG or MP3 file (or a part of it) as mono float32 at `sample_rate`.

  Files are not trusted: the format is known by content, decoding is in blocks and bounded. Channels are averaged.

  Raises ValueError, with the path, the value and what to do, when the file is of another kind, damaged, cut short,
  empty, not finite, longer than `max_seconds`, or has more than 8 channels or a rate outside 4 to 192 kHz.
  """
  with _file(path) as file:
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
  """Returns `load(...)[first:stop]` where `first, stop = choose(length)`, without decoding the rest where it can.

  `length` is that of what `load` returns. From FLAC and WAV the slice alone is decoded: its samples are those of `load`
  bit by bit, or within 1e-4 where it is resampled. All is decoded, as by `load`, where the decoder is not exact after a
  seek or the length is not known without it (OGG, MP3, compressed WAV), and for a ratio of rates such as 44101 / 16000.

  Raises ValueError as `load`; damage outside of the slice may not be noticed.
  """
  with _file(path) as file, _open(file, str(path)) as sound:
    start, count = _span(sound, str(path), start_seconds, num_seconds, max_seconds)
    up, down = Fraction(sample_rate, sound.samplerate).as_integer_ratio()
    if sound.subtype not in _SEEKS_EXACTLY or not sound.seekable() or max(up, down) > _EXACT_RATIO:
      wave_T = _whole(_resampled(sound, str(path), start, count, sample_rate))
      return wave_T[slice(*choose(len(wave_T)))]
    first, stop = choose((2 * count * up + down) // (2 * down))  # rounded as soxr does
    margin = 0 if up == down else _MARGIN * math.ceil(up / down)
    # From a multiple of `down` samples on, the filter has the phase that it has there in the whole.
    begin = max(0, first - margin) // up * down
    end = min(count, -(-(stop + margin) * down // up))
    wave_T = _whole(_resampled(sound, str(path), start + begin, end - begin, sample_rate))
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
  return _whole(_decoded(file, sample_rate, name, start_seconds, num_seconds, max_seconds))


def blocks(
    path: str | os.PathLike, sample_rate: int, block_length: int, *, max_seconds: float = 3600.0
) -> Iterator[np.ndarray]:
  """Yields what `load` returns in blocks of `block_length` samples, the last one shorter, in bounded memory.

  Raises ValueError as `load`; what is wrong with a file may turn up after some blocks.
  """
  with _file(path) as file:
    rest_T = np.zeros(0, np.float32)
    for part_T in _decoded(file, sample_rate, str(path), 0.0, None, max_seconds):
      rest_T = np.concatenate([rest_T, part_T])
      whole = len(rest_T) - len(rest_T) % block_length
      yield from np.split(rest_T[:whole], whole // block_length) if whole else ()
      rest_T = rest_T[whole:]
    if len(rest_T):
      yield rest_T


def _decoded(file, sample_rate, name, start_seconds, num_seconds, max_seconds) -> Iterator[np.ndarray]:
  """Yields the waveform that `decode` returns, in parts of any lengths."""
  with _open(file, name) as sound:
    yield from _resampled(sound, name, *_span(sound, name, start_seconds, num_seconds, max_seconds), sample_rate)


def _span(sound: soundfile.SoundFile, name: str, start_seconds, num_seconds, max_seconds) -> tuple[int, int]:
  """Returns the first sample and the number of those that are asked for, at the file's rate."""
  start = round(start_seconds * sound.samplerate)
  wanted = sound.frames - start if num_seconds is None else round(num_seconds * sound.samplerate)
  if wanted > max_seconds * sound.samplerate:
    raise ValueError(
        f'{name}: {wanted / sound.samplerate:.0f} s are to be decoded, more than max_seconds={max_seconds:g}: '
        'cut the file, or raise max_seconds'
    )
  if start + wanted > sound.frames or wanted <= 0:
    raise ValueError(
        f'{name}: {wanted} samples from sample {start} on are asked for, it has {sound.frames}: it is empty or cut '
        'short; leave it out'
    )
  return start, wanted


def _resampled(
    sound: soundfile.SoundFile, name: str, start: int, wanted: int, sample_rate: int
) -> Iterator[np.ndarray]:
  parts = _read(sound, name, start, wanted)
  if sound.samplerate == sample_rate:
    yield from parts
    return
  resampler = soxr.ResampleStream(sound.samplerate, sample_rate, 1, dtype='float32')
  for part_T in parts:
    yield resampler.resample_chunk(part_T)
  yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _whole(parts: Iterable[np.ndarray]) -> np.ndarray:
  return np.concatenate([np.zeros(0, np.float32), *parts])


def _file(path: str | os.PathLike) -> io.BufferedIOBase:
  return open(os.open(path, os.O_RDONLY), 'rb')  # without a name, or soundfile would go by the extension .raw


def _read(sound: soundfile.SoundFile, name: str, start: int, wanted: int) -> Iterator[np.ndarray]:
  count = 0
  try:
    if sound.subtype in _SEEKS_EXACTLY and sound.seekable():
      sound.seek(start)
    else:
      for skipped in range(0, start, _BLOCK):
        sound.read(min(_BLOCK, start - skipped))
    while count < wanted:
      block = sound.read(min(_BLOCK, wanted - count), dtype='float32', always_2d=True)
      if not len(block):
        break
      part_T = block.mean(axis=1, dtype=np.float32)
      if not np.isfinite(part_T).all():
        raise ValueError(f'{name}: {np.sum(~np.isfinite(part_T))} samples are NaN or infinite: leave it out')
      yield part_T
      count += len(part_T)
  except soundfile.SoundFileError as error:
    raise ValueError(f'{name}: damaged, {error}; leave it out or get it anew') from error
  # The length that an MP3's header gives is an estimate.
  if count < wanted and not (sound.format == 'MP3' and count):
    raise ValueError(f'{name}: {count} samples could be decoded of the {wanted} that its header promises: get it anew')


def _open(file: io.BufferedIOBase, name: str) -> soundfile.SoundFile:
  start = file.read(16)
  kind = next((kind for magic, kind in _FORMATS.items() if start.startswith(magic)), None)
  if kind is None and len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0:
    kind = 'MP3'  # a bare frame
  if kind is None:
    raise ValueError(f'{name}: begins with {start[:4]!r}, which is not WAV, FLAC, OGG or MP3: convert it to FLAC')
  if kind == 'WAV':
    _check_wav_is_whole(file, name)
  elif kind == 'OGG':
    _check_ogg_is_whole(file, name)
  file.seek(0)
  try:
    sound = soundfile.SoundFile(file)
  except (soundfile.SoundFileError, TypeError) as error:
    raise ValueError(f'{name}: damaged, {error}; leave it out or get it anew') from error
  if not MIN_SAMPLE_RATE <= sound.samplerate <= MAX_SAMPLE_RATE:
    raise ValueError(f'{name}: {sound.samplerate} Hz is outside {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}: resample it')
  if sound.channels > MAX_CHANNELS:
    raise ValueError(f'{name}: {sound.channels} channels, more than {MAX_CHANNELS}: mix it down')
  return sound


def _check_wav_is_whole(file: io.BufferedIOBase, name: str):
  """libsndfile reads a truncated WAV without a word: compare its data chunk with the file's size."""
  size, at = file.seek(0, os.SEEK_END), 12
  for _ in range(MAX_CHUNKS):
    if at + 8 > size:
      return
    file.seek(at)
    chunk = file.read(8)
    length = int.from_bytes(chunk[4:], 'little')
    if chunk[:4] == b'data':
      if length not in (0, 0xFFFFFFFF) and at + 8 + length > size:  # those two: a stream of unknown length
        raise ValueError(f'{name}: cut short, {size - at - 8} bytes of {length} are there: get it anew')
      if length in (0, 0xFFFFFFFF):
        return
    elif not chunk[:4].isascii() or not chunk[:4].decode('ascii').isprintable():
      return  # no chunk begins here: libsndfile stops, too
    at += 8 + length + length % 2
  raise ValueError(f'{name}: more than {MAX_CHUNKS:,} chunks, a WAV has a few: convert it to FLAC')


def _check_ogg_is_whole(file: io.BufferedIOBase, name: str):
  """libsndfile reads a truncated OGG without a word: its last page must say that it is the last, and be whole."""
  size = file.seek(0, os.SEEK_END)
  file.seek(max(0, size - (1 << 17)))  # a page is below 64 KiB
  tail = file.read()
  page = tail[tail.rfind(b'OggS') :]
  segments = page[27 : 27 + page[26]] if len(page) > 26 else b''
  if len(page) < 27 or not page[5] & 4 or len(page) < 27 + page[26] + sum(segments):
    raise ValueError(f'{name}: cut short, its last page is missing: get it anew')


def save(path: str | os.PathLike, wave_T: Float[np.ndarray, 'T'], sample_rate: int, *, overwrite: bool = False):
  """Writes a mono waveform as 16 bits (WAV, FLAC or OGG by the extension), whole or not at all; values are clipped.

  Raises ValueError when the file exists (unless `overwrite`), the extension is another, or a sample is not finite.
  """
  save_blocks(path, [wave_T], sample_rate, overwrite=overwrite)


def save_blocks(path: str | os.PathLike, blocks: Iterable[np.ndarray], sample_rate: int, *, overwrite: bool = False):
  """As `save`, of a waveform that comes in blocks: only one of them is held at a time.

  Raises OSError, besides, when the disk is full.
  """
  path = os.fspath(path)
  kind = os.path.splitext(path)[1][1:].upper()
  if kind not in ('WAV', 'FLAC', 'OGG'):
    raise ValueError(f'{path}: audio is saved as .wav, .flac or .ogg')
  if os.path.exists(path) and not overwrite:
    raise ValueError(f'{path} exists: choose another name or pass overwrite=True')
  with files.atomically(path) as partial, open(partial, 'w+b') as file:
    with soundfile.SoundFile(file, 'w', sample_rate, channels=1, format=kind) as sound:
      for block_T in blocks:
        if not np.isfinite(block_T).all():
          raise ValueError(f'{path}: {np.sum(~np.isfinite(block_T))} samples are NaN or infinite; nothing was written')
        try:
          sound.write(np.clip(block_T, -1, 1))
        except AssertionError as error:  # soundfile's way to say that not all samples were written
          raise OSError(f'{path}: could not be written to the end: is the disk full?') from error


def frame(wave_BT: Float[Array, 'B T'], frame_length: int, hop_length: int) -> Float[Array, 'B F N']:
  """Cuts a waveform into overlapping frames; samples after the last whole frame are dropped.

  Raises ValueError when the waveform is shorter than one frame.
  """
  num_samples = wave_BT.shape[-1]
  if num_samples < frame_length:
    raise ValueError(
        f'waveform has {num_samples} samples, fewer than one frame of {frame_length}: pad it with zeros first'
    )
  num_frames = 1 + (num_samples - frame_length) // hop_length
  # A gather by constant indices: XLA turns it into cheap slices, and it is differentiable.
  index_FN = np.arange(num_frames)[:, None] * hop_length + np.arange(frame_length)[None, :]
  return wave_BT[:, index_FN]


def stft(
    wave_BT: Float[Array, 'B T'], window_length: int, hop_length: int, fft_length: int | None = None
) -> Complex[Array, 'B F N']:
  """Returns the short-time Fourier transform under a periodic Hann window, without padding at the ends."""
  frames_BFN = frame(wave_BT, window_length, hop_length)
  window_N = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_length) / window_length)
  return jnp.fft.rfft(frames_BFN * window_N.astype(np.float32), n=fft_length or window_length)


@functools.cache
def mel_filterbank(
    sample_rate: int, fft_length: int, num_mels: int, low_hz: float = 0.0, high_hz: float | None = None
) -> np.ndarray:
  """Returns the triangular mel filters (Slaney area norm) as an array [fft_length // 2 + 1, num_mels].

  high_hz: where the last one ends; None: at half the sample rate.
  """
  import librosa  # slow to import, and wanted only here

  filters = librosa.filters.mel(sr=sample_rate, n_fft=fft_length, n_mels=num_mels, fmin=low_hz, fmax=high_hz)
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
  """Returns the natural logarithm of `mel_spectrogram(wave_BT, **options)`, floored at LOG_FLOOR."""
  return jnp.log(jnp.maximum(mel_spectrogram(wave_BT, **options), LOG_FLOOR))


def resample(wave_BT: Float[np.ndarray, 'B T'], sample_rate: int, wanted_rate: int) -> Float[np.ndarray, 'B T2']:
  """Returns waveforms at another rate (numpy), T2 = T * wanted_rate / sample_rate, rounded; the same rate: as given."""
  if sample_rate == wanted_rate:
    return wave_BT
  return np.ascontiguousarray(soxr.resample(wave_BT.T, sample_rate, wanted_rate).T)


def pad_to_multiple(wave_BT: Float[Array, 'B T'], multiple: int) -> Float[Array, 'B T2']:
  """Appends zeros until the length is a multiple of `multiple` samples."""
  return jnp.pad(wave_BT, ((0, 0), (0, -wave_BT.shape[-1] % multiple)))

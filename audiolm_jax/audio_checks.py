"""Checks headers of audio files before decoding, and samples before use.

libsndfile reads truncated WAV, OGG and MP3 files without an error, takes the data length of 0 that
programs write to a pipe literally, and reports unknown formats without naming them.
"""

import io
import os
import shlex
import stat
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from audiolm_jax.errors import UserError

# Float files may exceed 1 slightly, as masters and decoded MP3s do; ten times as loud are integers
# stored as floats.
MAX_PEAK = 10.0

MP3_SLACK = 1152 + 529  # samples: the tag's own frame, and the decoder delay

_FORMATS = {b'RIFF': 'WAV', b'RF64': 'WAV', b'fLaC': 'FLAC', b'OggS': 'OGG', b'ID3': 'MP3'}
_OTHERS = {  # by their first bytes
  b'version https://git-lfs': 'is a Git LFS pointer, not audio: run `git lfs pull` in its folder',
  b'\x00\x05\x16\x07': 'is macOS metadata of another file (AppleDouble), not audio: delete it',
  b'PK\x03\x04': 'is a ZIP archive: unpack it',
  b'\x1f\x8b': 'is compressed by gzip: unpack it',
}
_HTML = (b'<!doctype', b'<html', b'<head', b'<?xml')
_START = 64  # bytes that determine the format
MAX_CHUNKS = 1024  # of a WAV: libsndfile takes minutes for a million
# Data sizes from here on mark an unknown size (sox, ffmpeg, arecord).
_ENDLESS = 0x7FFF0000
# MP3 (layer III) bit rates in kbit/s by header index: MPEG 1, then MPEG 2 and 2.5.
_BIT_RATES = (
  (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
  (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_SAMPLE_RATES = {
  3: (44_100, 48_000, 32_000),
  2: (22_050, 24_000, 16_000),
  0: (11_025, 12_000, 8_000),
}


class Headers(NamedTuple):
  """Holds the result of `examine`.

  Fields:
    format: 'WAV', 'FLAC', 'OGG' or 'MP3'.
    tells_length: False where no header states the length, so that truncation goes unnoticed.
    patches: bytes that replace those of the file, by position.
    num_samples: of an MP3 without a stated length, counted frame by frame; else None.
  """

  format: str
  tells_length: bool = True
  patches: Mapping[int, bytes] = {}
  num_samples: int | None = None


def examine(file: io.BufferedIOBase, name: str) -> Headers:
  """Returns format and header information of an open file.

  Raises:
    UserError: with `name` and a remedy, if the format is unknown or the file is truncated.
  """
  file.seek(0)
  start = file.read(_START)
  kind = _kind(start)
  if kind is None:
    raise UserError(f'{name}: {_described(start, name)}')
  if kind == 'WAV':
    return _wav(file, name, start)
  if kind == 'OGG':
    _check_ogg_is_whole(file, name)
  return _mp3(file) if kind == 'MP3' else Headers(kind)


def open_file(path: str | os.PathLike) -> io.BufferedIOBase:
  """Opens a regular file for reading, without blocking.

  Raises:
    UserError: if it is not a regular file.
  """
  # Opening a pipe without a writer would block forever: open it without blocking, and refuse it.
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise UserError(
      f'{os.fspath(path)}: no regular file (a folder, a pipe or a device): save the audio as a file'
    )
  return open(descriptor, 'rb')  # nameless, because soundfile would interpret the extension .raw


def check_counted(headers: Headers, num_samples: int, name: str):
  """Checks that a decoder will read all samples of an MP3 without a stated length.

  Without a header, the decoder assumes the bit rate of the first frame throughout.

  Raises:
    UserError: if it would stop at `num_samples` of more.
  """
  if headers.num_samples is not None and headers.num_samples > num_samples + MP3_SLACK:
    tagged = shlex.quote(os.path.splitext(name)[0] + '.tagged.mp3')
    raise UserError(
      f'{name}: no header states its length, and of {headers.num_samples} samples the decoder '
      f'would read {num_samples}: give it a header by '
      f'`ffmpeg -i {shlex.quote(name)} -c copy {tagged}`'
    )


def remedy(name: str) -> str:
  """Returns the remedy for a damaged file, as the end of an error message."""
  whole = os.path.splitext(name)[0] + '.repaired.flac'
  return (
    'copy or download it again, or keep what can be decoded by '
    f'`ffmpeg -i {shlex.quote(name)} {shlex.quote(whole)}` and move the original away'
  )


def check_samples(wave_T: np.ndarray, name: str):
  """Checks that samples are finite and not far beyond [-1, 1].

  Raises:
    UserError: if they are not.
  """
  if not np.isfinite(wave_T).all():
    raise UserError(
      f'{name}: {np.sum(~np.isfinite(wave_T))} samples are NaN or infinite: write it again with '
      'finite samples'
    )
  peak = float(np.abs(wave_T).max(initial=0))
  if peak > MAX_PEAK:
    raise UserError(
      f'{name}: a sample is {peak:g}, far beyond [-1, 1], as of integers written as floats: '
      'scale it, as by '
      f'`sox --norm=-1 {shlex.quote(name)} '
      f'{shlex.quote(os.path.splitext(name)[0] + ".scaled.wav")}`'
    )


def too_long(name: str, seconds: float, max_seconds: float) -> str:
  return (
    f'{name}: {seconds:.0f} s are to be decoded, more than max_seconds={max_seconds:g}: cut the '
    'file into parts, or '
    'raise max_seconds (of a corpus: --set corpus.max_seconds=SECONDS)'
  )


def too_short(name: str) -> str:
  return f'{name}: too short, no sample is left at the rate asked for: delete it, or record more'


def _kind(start: bytes) -> str | None:
  if start[:4] == b'RIFF' and start[8:12] != b'WAVE' and len(start) >= 12:
    return None  # video (AVI) or pictures (WEBP)
  kind = next((kind for magic, kind in _FORMATS.items() if start.startswith(magic)), None)
  if kind is None and len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0:
    kind = 'MP3'  # a frame without a tag
  return kind


def _described(start: bytes, name: str) -> str:
  """Returns the description of a file of unknown format, and a remedy."""
  if not start:
    return 'is empty (0 bytes): copy or download it again, or delete it'
  if not any(start):
    return 'begins with zeros, as an interrupted download does: copy or download it again'
  for magic, text in _OTHERS.items():
    if start.startswith(magic):
      return text
  if start.removeprefix(b'\xef\xbb\xbf').lstrip().lower().startswith(_HTML):
    return 'is a web page (HTML), not audio, as a failed download leaves it: download it again'
  return (
    f'begins with {start[:4]!r}, which is not WAV, FLAC, OGG or MP3: where it is audio, '
    f'{_conversion(name)}'
  )


def _conversion(name: str) -> str:
  flac = shlex.quote(os.path.splitext(name)[0] + '.flac')
  return f'convert it by `ffmpeg -i {shlex.quote(name)} {flac}`'


def _wav(file: io.BufferedIOBase, name: str, start: bytes) -> Headers:
  """Compares the data chunk with the file size.

  A data chunk of size 0 or of an absurd size extends to the end of the file.
  """
  size, at, long_size = file.seek(0, os.SEEK_END), 12, None
  for _ in range(MAX_CHUNKS):
    if at + 8 > size:
      return Headers('WAV')  # no data chunk: the decoder reports it
    file.seek(at)
    head = file.read(8)
    length, there = int.from_bytes(head[4:], 'little'), size - at - 8
    if head[:4] == b'ds64' and start[:4] == b'RF64':
      long_size = int.from_bytes(file.read(16)[8:], 'little')
    if head[:4] == b'data':
      if length == 0xFFFFFFFF and long_size:
        length = long_size
      unknown = length == 0 if start[:4] == b'RIFF' else not long_size
      if there and (unknown or length > there and _ENDLESS <= length <= 0xFFFFFFFF):
        if length or not _chunks_to_the_end(file, at + 8, size):
          patches = {0: b'RIFF', 4: _four(size - 8), at + 4: _four(there)}
          return Headers('WAV', tells_length=False, patches=patches)
      if length > there:
        raise UserError(f'{name}: cut short, {there} bytes of {length} are there: {remedy(name)}')
      if not length or length == 0xFFFFFFFF:
        return Headers('WAV')
    elif not head[:4].isascii() or not head[:4].decode('ascii').isprintable():
      return Headers('WAV')  # no chunk begins here: libsndfile stops as well
    at += 8 + length + length % 2
  raise UserError(f'{name}: more than {MAX_CHUNKS:,} chunks, a WAV has a few: {_conversion(name)}')


def _four(number: int) -> bytes:
  return min(number, 0xFFFFFFFE).to_bytes(4, 'little')


def _chunks_to_the_end(file: io.BufferedIOBase, at: int, size: int) -> bool:
  """Returns whether chunks, instead of samples, follow an empty data chunk."""
  for _ in range(MAX_CHUNKS):
    if at >= size:
      return True
    file.seek(at)
    head = file.read(8)
    if len(head) < 8 or not all(32 <= byte < 127 for byte in head[:4]):
      return False
    length = int.from_bytes(head[4:], 'little')
    at += 8 + length + length % 2
    if at > size + 1:
      return False
  return False


def _check_ogg_is_whole(file: io.BufferedIOBase, name: str):
  """Checks that the last page is whole and marked as the last.

  Raises:
    UserError: if it is not.
  """
  size = file.seek(0, os.SEEK_END)
  file.seek(max(0, size - (1 << 17)))  # a page is below 64 KiB
  tail = file.read()
  page = tail[tail.rfind(b'OggS') :]
  segments = page[27 : 27 + page[26]] if len(page) > 26 else b''
  if len(page) < 27 or not page[5] & 4 or len(page) < 27 + page[26] + sum(segments):
    raise UserError(f'{name}: cut short, its last page is missing: {remedy(name)}')


def _mp3(file: io.BufferedIOBase) -> Headers:
  """Reads an MP3's frame count from its tag (Xing, Info, VBRI), or counts the frames."""
  at = 0
  while (tag := _bytes(file, at, 10))[:3] == b'ID3':  # sizes have seven bits per byte
    at += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0)))
  data = _bytes(file, at, 1 << 16)
  first = next((i for i in range(len(data)) if _frame(data[i : i + 4])), None)
  if first is None:
    return Headers('MP3', tells_length=False)
  sides = (17, 32) if data[first + 1] & 8 else (9, 17)  # bytes of side information: mono, stereo
  tag = data[first + 4 + sides[data[first + 3] >> 6 != 3] :][:8]
  has_length = tag[:4] in (b'Xing', b'Info') and len(tag) == 8 and tag[7] & 1
  if has_length or data[first + 36 : first + 40] == b'VBRI':
    return Headers('MP3')
  samples, at = 0, at + first
  while frame := _frame(_bytes(file, at, 4)):
    samples, at = samples + frame[1], at + frame[0]
  return Headers('MP3', tells_length=False, num_samples=samples)


def _bytes(file: io.BufferedIOBase, at: int, count: int) -> bytes:
  file.seek(at)
  return file.read(count)


def _frame(header: bytes) -> tuple[int, int] | None:
  """Returns bytes and samples of the MP3 frame with this header of 4 bytes.

  None if it is no header, or the size is unknown.
  """
  if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
    return None
  version, rate, bits = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
  if version == 1 or rate == 3 or not 0 < bits < 15:
    return None
  per_frame = 1152 if version == 3 else 576
  bit_rate = 1000 * _BIT_RATES[version != 3][bits]
  return per_frame // 8 * bit_rate // _SAMPLE_RATES[version][rate] + (header[2] >> 1 & 1), per_frame


class Patched(io.RawIOBase):
  """Reads a file with some bytes replaced."""

  def __init__(self, file: io.BufferedIOBase, patches: Mapping[int, bytes]):
    self._file, self._patches = file, patches

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    return self._file.seek(offset, whence)

  def tell(self) -> int:
    return self._file.tell()

  def readinto(self, buffer) -> int:
    begin = self._file.tell()
    count = self._file.readinto(buffer)
    view = memoryview(buffer).cast('B')
    for position, content in self._patches.items():
      for at, byte in enumerate(content, position - begin):
        if 0 <= at < count:
          view[at] = byte
    return count

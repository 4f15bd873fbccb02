"""Checks audio files before a decoder believes them, and samples before anything is made of them.

libsndfile reads a WAV, OGG or MP3 that was cut short without a word; it takes the length of 0 that
a program writes into a pipe for the truth; and of formats that it does not know it says only that
it does not know them.
"""

import io
import os
import shlex
import stat
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from audiolm_jax.errors import UserError

# Files of floats may pass 1 a little, as masters and decoded MP3s do; ten times as loud are
# integers taken for floats.
MAX_PEAK = 10.0

MP3_SLACK = 1152 + 529  # samples: tags may count their own frame, and the delay of decoders

_FORMATS = {b'RIFF': 'WAV', b'RF64': 'WAV', b'fLaC': 'FLAC', b'OggS': 'OGG', b'ID3': 'MP3'}
_OTHERS = {  # by their first bytes
  b'version https://git-lfs': 'is a Git LFS pointer, not audio: run `git lfs pull` in its folder',
  b'\x00\x05\x16\x07': 'is macOS metadata of another file (AppleDouble), not audio: delete it',
  b'PK\x03\x04': 'is a ZIP archive: unpack it',
  b'\x1f\x8b': 'is compressed by gzip: unpack it',
}
_HTML = (b'<!doctype', b'<html', b'<head', b'<?xml')
_START = 64  # bytes that tell the format
MAX_CHUNKS = 1024  # of a WAV: libsndfile takes minutes for a million
# data sizes from here on are written where the size is not known (sox, ffmpeg, arecord)
_ENDLESS = 0x7FFF0000
# kbit/s of MP3 (layer III) by the index in a frame's header, of MPEG 1, and of MPEG 2 and 2.5
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
  """The result of `examine`.

  tells_length: False where no header tells how much audio there should be: a cut end would not be
  noticed.
  patches: bytes to read in place of those in the file, by position.
  num_samples: of an MP3 without a length, counted frame by frame; else None.
  """

  format: str
  tells_length: bool = True
  patches: Mapping[int, bytes] = {}
  num_samples: int | None = None


def examine(file: io.BufferedIOBase, name: str) -> Headers:
  """Returns the format of an open file and what its headers tell.

  Raises ValueError, with `name` and a remedy, for another format and for a file that was cut short.
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
  """Opens a regular file to read. Raises ValueError for anything else, without waiting for it."""
  # A pipe that nobody writes to would be waited for without an end: it is opened without waiting,
  # and refused.
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise UserError(
      f'{os.fspath(path)}: no regular file (a folder, a pipe or a device): save the audio as a file'
    )
  return open(descriptor, 'rb')  # without a name, or soundfile would go by the extension .raw


def check_counted(headers: Headers, num_samples: int, name: str):
  """Raises ValueError where a decoder would stop at `num_samples` of an MP3 that has more.

  Without a header it takes the bit rate of the first frame for that of all.
  """
  if headers.num_samples is not None and headers.num_samples > num_samples + MP3_SLACK:
    tagged = shlex.quote(os.path.splitext(name)[0] + '.tagged.mp3')
    raise UserError(
      f'{name}: no header tells its length, and of {headers.num_samples} samples the decoder '
      f'would read {num_samples}: give it a header by '
      f'`ffmpeg -i {shlex.quote(name)} -c copy {tagged}`'
    )


def remedy(name: str) -> str:
  """Returns what to do about a damaged file, as the end of an error message."""
  whole = os.path.splitext(name)[0] + '.repaired.flac'
  return (
    'copy or download it again, or keep what can be decoded by '
    f'`ffmpeg -i {shlex.quote(name)} {shlex.quote(whole)}` and move the original away'
  )


def check_samples(wave_T: np.ndarray, name: str):
  """Raises ValueError where samples are not finite, or far beyond [-1, 1]."""
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
  """Returns what a file is that is not audio of a known format, and what to do."""
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
  """Compares the data chunk with the file's size; one whose size is 0 or absurd lasts to the end of
  the file.
  """
  size, at, long_size = file.seek(0, os.SEEK_END), 12, None
  for _ in range(MAX_CHUNKS):
    if at + 8 > size:
      return Headers('WAV')  # no data chunk: the decoder says so
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
      return Headers('WAV')  # no chunk begins here: libsndfile stops, too
    at += 8 + length + length % 2
  raise UserError(f'{name}: more than {MAX_CHUNKS:,} chunks, a WAV has a few: {_conversion(name)}')


def _four(number: int) -> bytes:
  return min(number, 0xFFFFFFFE).to_bytes(4, 'little')


def _chunks_to_the_end(file: io.BufferedIOBase, at: int, size: int) -> bool:
  """Returns whether chunks, not samples, follow an empty data chunk."""
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
  """Raises ValueError unless the last page is whole and says that it is the last."""
  size = file.seek(0, os.SEEK_END)
  file.seek(max(0, size - (1 << 17)))  # a page is below 64 KiB
  tail = file.read()
  page = tail[tail.rfind(b'OggS') :]
  segments = page[27 : 27 + page[26]] if len(page) > 26 else b''
  if len(page) < 27 or not page[5] & 4 or len(page) < 27 + page[26] + sum(segments):
    raise UserError(f'{name}: cut short, its last page is missing: {remedy(name)}')


def _mp3(file: io.BufferedIOBase) -> Headers:
  """Looks for the tag (Xing, Info, VBRI) that tells an MP3's frames; counts them where there is
  none.
  """
  at = 0
  while (tag := _bytes(file, at, 10))[:3] == b'ID3':  # its size has seven bits a byte
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
  """Returns bytes and samples of the MP3 frame with this header of 4 bytes; None where it is none
  of known size.
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
  """A file of which some bytes are read as others."""

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

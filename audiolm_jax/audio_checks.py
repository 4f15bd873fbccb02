"""Checks headers of audio files before decoding, and samples before use.

libsndfile reads truncated WAV, OGG and MP3 files without an error, trusts the data length of 0 that
programs write to a pipe, and does not name unknown formats.
"""

import io
import os
import shlex
import stat
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from audiolm_jax.errors import UserError

# Float files may exceed 1 slightly, as masters and decoded MP3s do. Ten times that means integers
# stored as floats.
MAX_PEAK = 10.0

MP3_SLACK = 1152 + 529  # samples: the frame of the tag, and the decoder delay

_FORMATS = {b'RIFF': 'WAV', b'RF64': 'WAV', b'fLaC': 'FLAC', b'OggS': 'OGG', b'ID3': 'MP3'}
_OTHERS = {  # by first bytes
  b'version https://git-lfs': 'is a Git LFS pointer, not audio: run `git lfs pull` in its folder',
  b'\x00\x05\x16\x07': 'is macOS metadata of another file (AppleDouble), not audio: delete it',
  b'PK\x03\x04': 'is a ZIP archive: unpack it',
  b'\x1f\x8b': 'is compressed by gzip: unpack it',
}
_HTML = (b'<!doctype', b'<html', b'<head', b'<?xml')
_START = 64  # bytes that determine the format
MAX_CHUNKS = 1024  # of a WAV; libsndfile takes minutes for a million
# Data sizes of at least this mean that the size is unknown (sox, ffmpeg, arecord).
_ENDLESS = 0x7FFF0000
# MP3 (layer III) bit rates in kbit/s by header index: MPEG 1, then MPEG 2 and 2.5.
_BIT_RATES = (
  (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
  (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
# Rates and widths of a FLAC frame by the codes in its header; for other codes, they are stated
# elsewhere in this header or in the file's.
_FLAC_RATES = dict(
  enumerate(
    (88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000), 1
  )
)
_FLAC_WIDTHS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}
_SAMPLE_RATES = {
  3: (44_100, 48_000, 32_000),
  2: (22_050, 24_000, 16_000),
  0: (11_025, 12_000, 8_000),
}


class Headers(NamedTuple):
  """Holds the result of `examine`.

  Fields:
    format: 'WAV', 'FLAC', 'OGG' or 'MP3'.
    tells_length: whether a header states the length; if not, truncation goes unnoticed.
    patches: replacement bytes by position in the file.
    num_samples: number of samples counted frame by frame, for MP3s without a stated length; else
      None.
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
  if kind == 'MP3':
    return _mp3(file, name)
  (_check_ogg if kind == 'OGG' else _check_flac)(file, name)
  return Headers(kind)


def open_file(path: str | os.PathLike) -> io.BufferedIOBase:
  """Opens a regular file for reading, without blocking.

  Raises:
    UserError: if it is not a regular file.
  """
  # Opening a pipe without a writer would block forever.
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  if not stat.S_ISREG(os.fstat(descriptor).st_mode):
    os.close(descriptor)
    raise UserError(
      f'{os.fspath(path)}: no regular file (a folder, a pipe or a device): save the audio as a file'
    )
  return open(descriptor, 'rb')  # nameless, because soundfile would interpret the extension .raw


def check_counted(headers: Headers, num_samples: int, name: str):
  """Checks that a decoder will read all samples of an MP3 without a stated length.

  Without a stated length, decoders derive it from the bit rate of the first frame.

  Args:
    headers: result of `examine`.
    num_samples: number of samples that the decoder will read.
    name: name of the file in messages.

  Raises:
    UserError: if the file has more samples.
  """
  if headers.num_samples is not None and headers.num_samples > num_samples + MP3_SLACK:
    tagged = shlex.quote(os.path.splitext(name)[0] + '.tagged.mp3')
    raise UserError(
      f'{name}: no header states its length, and the decoder would read only {num_samples} of '
      f'{headers.num_samples} samples: add a header by '
      f'`ffmpeg -i {shlex.quote(name)} -c copy {tagged}`'
    )


def remedy(name: str) -> str:
  """Returns the remedy for a damaged file, as the end of an error message."""
  whole = os.path.splitext(name)[0] + '.repaired.flac'
  return (
    'copy or download it again, or save the decodable part by '
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
      f'{name}: a sample is {peak:g}, far beyond [-1, 1], as if integers were stored as floats: '
      'scale it, for example by '
      f'`sox --norm=-1 {shlex.quote(name)} '
      f'{shlex.quote(os.path.splitext(name)[0] + ".scaled.wav")}`'
    )


def too_long(name: str, seconds: float, max_seconds: float) -> str:
  return (
    f'{name}: {seconds:.0f} s of audio, more than max_seconds={max_seconds:g}: cut the file into '
    'parts, or raise max_seconds (of a corpus: --set corpus.max_seconds=SECONDS)'
  )


def too_short(name: str) -> str:
  return f'{name}: too short, no sample is left after resampling: delete it, or record more'


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
    f'begins with {start[:4]!r}, which is not WAV, FLAC, OGG or MP3: if it is audio, '
    f'{_conversion(name)}'
  )


def _conversion(name: str) -> str:
  flac = shlex.quote(os.path.splitext(name)[0] + '.flac')
  return f'convert it by `ffmpeg -i {shlex.quote(name)} {flac}`'


def _wav(file: io.BufferedIOBase, name: str, start: bytes) -> Headers:
  """Compares the size of the data chunk with the file size.

  If the size is unknown (0 or absurdly large), it is replaced by the rest of the file.
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


def _check_ogg(file: io.BufferedIOBase, name: str):
  """Checks that pages are contiguous and undamaged up to a page marked as the last.

  Decoders silently skip damaged pages, and silently read only the first of several recordings.

  Raises:
    UserError: if pages are damaged or missing, or there are several recordings.
  """
  at, flags = 0, 0
  while head := _bytes(file, at, 27):
    page = head + file.read(head[26]) if len(head) == 27 else head
    length = len(page) + sum(page[27:])
    if head[:4] != b'OggS' and flags & 4:
      return  # foreign data after the last page
    if flags & 4 and len(head) == 27 and head[5] & 2:
      raise UserError(
        f'{name}: several recordings in one file, of which decoders read only the first: '
        f'{_conversion(name)}'
      )
    page += file.read(length - len(page))
    if head[:4] != b'OggS' or len(page) < max(length, 27):
      missing = 'cut short, its last page is missing' if file.read(1) == b'' else f'damaged at {at}'
      raise UserError(f'{name}: {missing}: {remedy(name)}')
    if page[22:26] != _ogg_checksum(page[:22] + bytes(4) + page[26:]):
      raise UserError(f'{name}: damaged between bytes {at} and {at + length}: {remedy(name)}')
    at, flags = at + length, head[5]
  if not flags & 4:
    raise UserError(f'{name}: cut short, its last page is missing: {remedy(name)}')


_REVERSED = bytes(int(f'{byte:08b}'[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> bytes:
  """Returns the CRC-32 of RFC 3533, which is zlib's with the bits of every byte reversed."""
  register = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
  return register.to_bytes(4, 'little').translate(_REVERSED)[::-1]


def _check_flac(file: io.BufferedIOBase, name: str):
  """Compares the header of the file, which has no checksum (RFC 9639), with the first frame's.

  Raises:
    UserError: if rates, sample widths or numbers of channels differ.
  """
  at, last, bits = 4, False, int.from_bytes(_bytes(file, 18, 8), 'big')
  for _ in range(MAX_CHUNKS):
    block = b'' if last else _bytes(file, at, 4)
    if len(block) < 4:
      break
    last, at = bool(block[0] & 0x80), at + 4 + int.from_bytes(block[1:], 'big')
  frame = _bytes(file, at, 16)
  if not last or len(frame) < 16 or frame[0] != 0xFF or frame[1] & 0xFE != 0xF8:
    return  # no frame: the decoder reports it
  stated = bits >> 44, (bits >> 41 & 7) + 1, (bits >> 36 & 31) + 1
  number = max(1, 8 - (frame[4] ^ 0xFF).bit_length())  # bytes of the frame number, as in UTF-8
  behind = 4 + number + {6: 1, 7: 2}.get(frame[2] >> 4, 0)
  two = int.from_bytes(frame[behind : behind + 2], 'big')
  rates = _FLAC_RATES | {12: 1000 * (two >> 8), 13: two, 14: 10 * two}
  channels = (frame[3] >> 4) + 1 if frame[3] >> 4 < 8 else 2  # from 8 on: sums and differences
  width = _FLAC_WIDTHS.get(frame[3] >> 1 & 7, stated[2])
  found = rates.get(frame[2] & 15, stated[0]), channels, width
  if found != stated:
    as_text = lambda values: '{} Hz, {} channels, {} bits'.format(*values)
    raise UserError(
      f'{name}: damaged, its header states {as_text(stated)}, its first frame {as_text(found)}: '
      f'{remedy(name)}'
    )


def _mp3(file: io.BufferedIOBase, name: str) -> Headers:
  """Returns the headers of an MP3: its length is in a tag (Xing, Info, VBRI), or counted.

  Raises:
    UserError: if frames follow after the length in the tag, because decoders do not read them.
  """
  at = _behind_id3(file, 0)
  data = _bytes(file, at, 1 << 16)
  first = next((i for i in range(len(data)) if _frame(data[i : i + 4])), None)
  if first is None:
    return Headers('MP3', tells_length=False)
  sides = (17, 32) if data[first + 1] & 8 else (9, 17)  # bytes of side information: mono, stereo
  tag = data[first + 4 + sides[data[first + 3] >> 6 != 3] :][:16]
  has_length = tag[:4] in (b'Xing', b'Info') and len(tag) == 16 and tag[7] & 1
  if has_length or data[first + 36 : first + 40] == b'VBRI':
    if has_length and tag[7] & 2:  # the tag states the number of bytes, too
      end = at + first + int.from_bytes(tag[12:16], 'big')
      if _frame(_bytes(file, _behind_id3(file, end), 4)):
        raise UserError(
          f'{name}: audio follows after the length in its header, as if several recordings were '
          f'concatenated: {_conversion(name)}'
        )
    return Headers('MP3')
  samples, at = 0, at + first
  while frame := _frame(_bytes(file, at, 4)):
    samples, at = samples + frame[1], at + frame[0]
  return Headers('MP3', tells_length=False, num_samples=samples)


def _behind_id3(file: io.BufferedIOBase, at: int) -> int:
  """Returns the position after the ID3 tags at `at`, whose sizes have seven bits per byte."""
  while (tag := _bytes(file, at, 10))[:3] == b'ID3':
    at += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0)))
  return at


def _bytes(file: io.BufferedIOBase, at: int, count: int) -> bytes:
  file.seek(at)
  return file.read(count)


def _frame(header: bytes) -> tuple[int, int] | None:
  """Returns the numbers of bytes and samples of an MP3 frame, from its header of 4 bytes.

  Returns None if it is no header, or the size is unknown.
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

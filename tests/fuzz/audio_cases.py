"""Damaged and odd audio files, each made of its number: (kind, content, what must come of it)."""

import io
import struct
from typing import NamedTuple

import numpy as np
import soundfile

from tests.fuzz import battery

RATES = (8_000, 12_000, 16_000, 24_000, 48_000)  # what every format here takes
CODINGS = (
  ('WAV', 'PCM_16'),
  ('WAV', 'PCM_U8'),
  ('WAV', 'PCM_24'),
  ('WAV', 'FLOAT'),
  ('WAV', 'ULAW'),
  ('WAV', 'IMA_ADPCM'),
  ('FLAC', 'PCM_16'),
  ('FLAC', 'PCM_24'),
  ('OGG', 'VORBIS'),
  ('OGG', 'OPUS'),
  ('MP3', 'MPEG_LAYER_III'),
)
OTHERS = ('AIFF', 'AU', 'CAF', 'W64', 'VOC', 'PAF', 'SVX', 'NIST', 'IRCAM', 'AVR', 'MAT4', 'HTK')
EXTENSIONS = ('wav', 'wave', 'flac', 'ogg', 'oga', 'opus', 'mp3')
RIGHT, REFUSED, EITHER = 'right', 'refused', 'right or refused'


class Case(NamedTuple):
  """`wave_T` is the truth, mono at `rate`, where one is known: what is read must be that.

  says: what an error must hold, besides the file. slack: samples that may be missing at the end.
  """

  content: bytes
  must: str = EITHER
  wave_T: np.ndarray | None = None
  rate: int = 0
  says: str = ''
  extension: str = 'wav'
  slack: int = 0


class Written(NamedTuple):
  """A whole file of soundfile's, and what soundfile itself reads of it."""

  content: bytes
  format: str
  wave_T: np.ndarray
  rate: int

  @property
  def extension(self) -> str:
    return self.format.lower()


def make(number: int) -> tuple[str, Case]:
  """Returns the kind and the case of a number; the same in every run."""
  rng = np.random.default_rng([battery.SEED, number])
  kind = list(KINDS)[number % len(KINDS)]
  return kind, KINDS[kind](rng)


def _noise(rng, length: int, channels: int = 1) -> np.ndarray:
  return rng.uniform(-0.9, 0.9, (length, channels))


def written(rng, coding=None, *, rate=None, channels=None, length=None) -> Written:
  """Returns a random file of noise."""
  kind, subtype = coding or CODINGS[rng.integers(len(CODINGS))]
  rate = rate or int(rng.choice(RATES))
  shape = length or int(rng.integers(2_000, 12_000)), channels or int(rng.integers(1, 3))
  return _written(_noise(rng, *shape), rate, kind, subtype)


def _written(wave_TC, rate: int, kind: str, subtype: str | None) -> Written:
  file = io.BytesIO()
  soundfile.write(file, wave_TC, rate, format=kind, subtype=subtype)
  content = file.getvalue()
  read_TC, _ = soundfile.read(io.BytesIO(content), dtype='float32', always_2d=True)
  return Written(content, kind, read_TC.mean(axis=1, dtype=np.float32), rate)


def _of(one: Written, content: bytes, **options) -> Case:
  return Case(content, rate=one.rate, **({'extension': one.extension} | options))


def _cut(rng) -> Case:
  one = written(rng)
  content = one.content[: rng.integers(len(one.content))]
  if one.format == 'MP3':  # at most its last frame and the decoder's delay are no loss
    return _of(one, content, wave_T=one.wave_T, slack=1152 + 529)
  end = len(one.content)
  if one.format == 'WAV':  # behind the samples there may be one byte of padding
    at = one.content.index(b'data') + 4
    end = at + 4 + int.from_bytes(one.content[at : at + 4], 'little')
  if len(content) >= end:
    return _of(one, content, must=RIGHT, wave_T=one.wave_T)
  return _of(one, content, must=REFUSED)


def _damaged(one: Written, content: bytes) -> Case:
  """Returns the case of a file in which something was changed."""
  if one.format in ('FLAC', 'OGG'):  # their parts have checksums: what is read is what was written
    header = one.content[:42]  # but FLAC's first block, of the sizes, has none
    known = one.format == 'OGG' or content[: len(header)] == header
    return _of(one, content, wave_T=one.wave_T if known else None)
  start = one.content.index(b'data') + 8 if one.format == 'WAV' else 0
  same_header = one.format == 'WAV' and content[:start] == one.content[:start]
  if not same_header or len(content) != len(one.content):
    return _of(one, content)
  samples_TC, _ = soundfile.read(io.BytesIO(content), dtype='float32', always_2d=True)
  sane = np.isfinite(samples_TC).all() and np.abs(samples_TC.mean(axis=1)).max() < 9.9
  return _of(one, content, wave_T=samples_TC.mean(axis=1, dtype=np.float32) if sane else None)


def _flipped(rng) -> Case:
  one = written(rng)
  content = bytearray(one.content)
  for _ in range(rng.integers(1, 9)):
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
  return _damaged(one, bytes(content))


def _scribbled(rng) -> Case:
  one = written(rng)
  at, length = int(rng.integers(len(one.content))), int(rng.integers(1, 800))
  junk = (rng.bytes(length), bytes(length), b'\xff' * length, one.content[:length])
  junk = junk[rng.integers(len(junk))]
  removed = (0, length, 2 * length)[rng.integers(3)]  # inserted, overwritten, or shortened
  if rng.integers(4) == 0:
    junk, removed = b'', length
  return _damaged(one, one.content[:at] + junk + one.content[at + removed :])


def _header(rng) -> Case:
  one = written(rng)
  content = bytearray(one.content)
  for at in rng.integers(64, size=rng.integers(1, 7)):
    content[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)]))
  return _damaged(one, bytes(content))


def wav(
  data: bytes,
  *,
  tag=1,
  channels=1,
  rate=16_000,
  align=None,
  bits=16,
  size=None,
  riff=None,
  before=b'',
  after=b'',
) -> bytes:
  """Returns a WAV made by hand; sizes are those of what is there unless given."""
  align = channels * bits // 8 & 0xFFFF if align is None else align
  second = rate * align & 0xFFFFFFFF
  form = struct.pack('<4sIHHIIHH', b'fmt ', 16, tag, channels, rate, second, align, bits)
  size = len(data) if size is None else size
  chunks = form + before + b'data' + size.to_bytes(4, 'little') + data
  chunks += b'\0' * (len(data) % 2 if after else 0) + after
  riff = 4 + len(chunks) if riff is None else riff
  return b'RIFF' + riff.to_bytes(4, 'little') + b'WAVE' + chunks


def _samples(rng) -> tuple[bytes, np.ndarray]:
  """Returns 16-bit samples as bytes, and as floats by their definition."""
  samples_T = rng.integers(-20_000, 20_000, rng.integers(2_000, 12_000)).astype('<i2')
  return samples_T.tobytes(), samples_T.astype(np.float32) / 32768


def _fields(rng) -> Case:
  odd = lambda bits: int(rng.choice([0, 1, 3, 2 ** (bits - 1), 2**bits - 1, rng.integers(2**bits)]))
  sizes = dict(tag=16, channels=16, rate=32, align=16, bits=16, size=32, riff=32)
  chosen = rng.choice(list(sizes), size=rng.integers(1, 4), replace=False)
  return Case(wav(_samples(rng)[0], **{name: odd(sizes[name]) for name in chosen}))


def _piped(rng) -> Case:
  if rng.integers(3) == 0:
    one = written(rng, ('FLAC', 'PCM_16'))
    content = bytearray(one.content)
    content[21], content[22:26] = content[21] & 0xF0, bytes(4)  # 36 bits that count samples
    return _of(one, bytes(content), must=RIGHT, wave_T=one.wave_T)
  data, wave_T = _samples(rng)
  size = int(rng.choice([0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, 0xFFFFFFFF]))
  riff = int(rng.choice([0, 36, 0x7FFFFFFF, 0xFFFFFFFF]))
  return Case(wav(data, size=size, riff=riff), RIGHT, wave_T, 16_000)


def _chunk(rng) -> bytes:
  name = (b'LIST', b'junk', b'JUNK', b'bext', b'iXML', b'abcd', b'PAD ', b'id3 ')[rng.integers(8)]
  body = rng.bytes(int(rng.integers(0, 300)))
  return name + len(body).to_bytes(4, 'little') + body + b'\0' * (len(body) % 2)


def _chunks(rng) -> Case:
  data, wave_T = _samples(rng)
  before, after = (b''.join(_chunk(rng) for _ in range(rng.integers(0, 6))) for _ in range(2))
  return Case(wav(data, before=before, after=after), RIGHT, wave_T, 16_000)


def _other_format(rng) -> Case:
  one = _written(_noise(rng, 4_000), 16_000, OTHERS[rng.integers(len(OTHERS))], None)
  says = 'not WAV, FLAC, OGG or MP3'
  return Case(one.content, REFUSED, says=says, extension=_extension(rng))


def _extension(rng) -> str:
  return EXTENSIONS[rng.integers(len(EXTENSIONS))]


def _legal(rng) -> Case:
  """Any rate, number of channels, coding and length; and a little beyond what is taken."""
  coding = CODINGS[rng.integers(8)]
  rate = int(rng.choice([4_000, 8_000, 11_025, 22_050, 37_800, 44_100, 44_101, 96_000, 192_000]))
  channels, length = int(rng.integers(1, 9)), int(rng.choice([1, 2, 7, 500, 5_000]))
  if coding[1] == 'IMA_ADPCM':
    channels = min(channels, 2)
  beyond = rng.integers(8)
  if beyond == 0 and coding[0] == 'WAV':
    rate = int(rng.choice([1, 3_999, 192_001, 1_000_000]))
  elif beyond == 1 and coding[1] in ('PCM_16', 'FLOAT') and coding[0] == 'WAV':
    channels = int(rng.choice([9, 64, 1000]))
  one = written(rng, coding, rate=rate, channels=channels, length=length)
  if not 4_000 <= rate <= 192_000:
    return _of(one, one.content, must=REFUSED, says='Hz is outside 4000 to 192000')
  if channels > 8:
    return _of(one, one.content, must=REFUSED, says='more than 8')
  if round(len(one.wave_T) * 16_000 / rate) == 0:
    return _of(one, one.content, must=REFUSED, says='too short')
  return _of(one, one.content, must=RIGHT, wave_T=one.wave_T)


def _no_audio(rng) -> Case:
  text = ''.join(map(chr, rng.integers(32, 1000, 300))).encode()
  pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0' * 64 + b'\nsize 99\n'
  page = (b'<!DOCTYPE html>', b'<html>', b'\xef\xbb\xbf \n<HTML lang=x>', b'<?xml version="1.0"?>')
  contents = [
    (b'', r'is empty \(0 bytes\)'),
    (bytes(int(rng.integers(1, 5_000))), 'begins with zeros'),
    (pointer, 'is a Git LFS pointer'),
    (page[rng.integers(4)] + text, 'is a web page'),
    (b'PK\x03\x04' + rng.bytes(500), 'is a ZIP archive'),
    (b'\x1f\x8b' + rng.bytes(500), 'is compressed by gzip'),
    (b'\x00\x05\x16\x07' + rng.bytes(500), 'is macOS metadata'),
    (b'{"a": ' + text, 'not WAV, FLAC, OGG or MP3'),
    (b'\x01' + rng.bytes(int(rng.integers(1, 3_000))), 'not WAV, FLAC, OGG or MP3'),
    (b'RIFF\x10\0\0\0WEBP' + rng.bytes(100), 'not WAV, FLAC, OGG or MP3'),
    (b'RIFF', ''),
    (b'fLaC' + rng.bytes(int(rng.integers(200))), ''),
    (b'OggS' + rng.bytes(int(rng.integers(200))), ''),
  ]
  content, says = contents[rng.integers(len(contents))]
  return Case(content, REFUSED, says=says, extension=_extension(rng))


def _more(rng) -> Case:
  """A whole file with something in front of it or behind it."""
  one = written(rng)
  junk = rng.bytes(int(rng.integers(1, 3_000)))
  tag = b'TAG' + bytes(125)
  size = len(junk) + 10
  id3 = b'ID3\x04\0\0' + bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
  id3 += b'TXXX' + len(junk).to_bytes(4, 'big') + b'\0\0' + junk
  choice = rng.integers(4)
  if choice == 0 and one.format == 'MP3':
    return _of(one, id3 + one.content, must=RIGHT, wave_T=one.wave_T)
  if choice == 1 and one.format in ('MP3', 'WAV'):
    return _of(one, one.content + tag, must=RIGHT, wave_T=one.wave_T)
  if choice == 2 and one.format == 'WAV':
    return _of(one, one.content + bytes(len(one.content) % 2) + bytes(3_000), wave_T=one.wave_T)
  if choice == 3:
    says = {'OGG': 'several recordings', 'MP3': 'audio follows', 'WAV': ''}
    must = REFUSED if one.format in says else RIGHT
    known = one.wave_T if one.format == 'FLAC' else None
    return _of(one, 2 * one.content, must=must, wave_T=known, says=says.get(one.format, ''))
  return _of(one, (id3 + one.content, one.content + junk, junk + one.content)[rng.integers(3)])


def _values(rng) -> Case:
  wave_T = _noise(rng, int(rng.integers(100, 5_000)))[:, 0]
  value = float(rng.choice([np.nan, np.inf, -np.inf, 1e30, -11.0, 300.0, 9.0, -5.0, 1.2, 0.0]))
  wave_T[rng.integers(len(wave_T), size=rng.integers(1, 9))] = value
  one = _written(wave_T, 16_000, 'WAV', ('FLOAT', 'DOUBLE')[rng.integers(2)])
  if not np.isfinite(value):
    return _of(one, one.content, must=REFUSED, says='samples are NaN or infinite')
  if abs(value) > 10:
    return _of(one, one.content, must=REFUSED, says=r'far beyond \[-1, 1\]')
  return _of(one, one.content, must=RIGHT, wave_T=one.wave_T)


def _renamed(rng) -> Case:
  one = written(rng)
  return _of(one, one.content, must=RIGHT, wave_T=one.wave_T, extension=_extension(rng))


KINDS = {
  'cut short': _cut,
  'bits flipped': _flipped,
  'a stretch overwritten, inserted, removed': _scribbled,
  'bytes of the header': _header,
  'wrong fields of a WAV': _fields,
  'written into a pipe': _piped,
  'further chunks': _chunks,
  'another format': _other_format,
  'any rate, channels, coding, length': _legal,
  'no audio': _no_audio,
  'something in front or behind': _more,
  'values not finite or beyond': _values,
  'another extension': _renamed,
}

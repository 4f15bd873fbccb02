"""Reads and writes .alm files: the packed codes of one clip, with a header and a digest::

  8 bytes   MAGIC; as PNG's, it detects transfers in text mode
  34 bytes  header, little-endian (bytes): version (2), sample rate (4), hop length (4), number of
            levels (2), codebook size (4), number of samples (8), fingerprint of the codec (8),
            zeros (2)
  n bytes   codes [F, Q] in row-major order, ceil(log2(codebook size)) bits each, high bit first,
            zero-padded to a whole byte
  32 bytes  SHA-256 of everything before

Files are not trusted: declared sizes are checked against limits and the file size before any
allocation, the digest is checked before codes are read, and a file contains nothing executable.
"""

import hashlib
import io
import math
import os
import struct
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from audiolm_jax import files
from audiolm_jax.errors import UserError

EXTENSION = '.alm'
MAGIC = b'\x89ALM\r\n\x1a\n'
VERSION = 1
_FIELDS = struct.Struct('<HIIHIQ8s2x')
_START = len(MAGIC) + _FIELDS.size
_DIGEST = hashlib.sha256().digest_size
_LIMITS = {  # smallest and largest legal values of the header fields
  'sample_rate': (1, 1 << 20),
  'hop_length': (1, 1 << 20),
  'num_quantizers': (1, 1 << 10),
  'codebook_size': (2, 1 << 24),
  'num_samples': (1, 1 << 40),
}
MAX_CODES = 1 << 27  # per file: 62 hours of AudioLM's codec, 512 MiB unpacked
_BLOCK = 1 << 16  # codes packed at a time; a multiple of 8 makes each block whole bytes


class Header(NamedTuple):
  """Holds the header of a file; `fingerprint` has 16 hex digits and identifies the codec."""

  sample_rate: int
  hop_length: int
  num_quantizers: int
  codebook_size: int
  num_samples: int
  fingerprint: str

  @property
  def num_frames(self) -> int:
    """Number of frames of `hop_length` samples; the last may extend beyond `num_samples`."""
    return -(-self.num_samples // self.hop_length)

  @property
  def seconds(self) -> float:
    """Duration of the clip in seconds."""
    return self.num_samples / self.sample_rate

  @property
  def bit_rate(self) -> float:
    """Bits per second of the codes."""
    return self.sample_rate / self.hop_length * self.num_quantizers * math.log2(self.codebook_size)

  @property
  def num_bytes(self) -> int:
    """Size of the file in bytes."""
    return (
      _START + -(-self.num_frames * self.num_quantizers * _bits(self.codebook_size) // 8) + _DIGEST
    )


def encode(header: Header, codes_FQ: Int[np.ndarray, 'F Q']) -> bytes:
  """Returns the content of a file.

  Args:
    header: sizes of the clip and its codes.
    codes_FQ: codes in [0, codebook_size).

  Raises:
    UserError: if the header exceeds the limits of the format, or does not match the codes.
  """
  _check(header)
  shape = (header.num_frames, header.num_quantizers)
  if codes_FQ.shape != shape:
    raise UserError(
      f'codes have shape {codes_FQ.shape}, but {header} has {shape}: cut or pad the last frame'
    )
  if codes_FQ.min() < 0 or codes_FQ.max() >= header.codebook_size:
    raise UserError(
      f'codes are between {codes_FQ.min()} and {codes_FQ.max()}, outside of '
      f'codebook_size={header.codebook_size}: were they made by another codec?'
    )
  *numbers, fingerprint = header
  content = MAGIC + _FIELDS.pack(VERSION, *numbers, bytes.fromhex(fingerprint))
  content += b''.join(_packed(codes_FQ.reshape(-1), _bits(header.codebook_size)))
  return content + hashlib.sha256(content).digest()


def decode(content: bytes, name: str) -> tuple[Header, Int[np.ndarray, 'F Q']]:
  """Returns header and codes (int32) of a file's content; errors call it `name`.

  Args:
    content: all bytes of the file.
    name: what error messages call it.

  Raises:
    UserError: as `load`.
  """
  return _read(io.BytesIO(content), name)


def save(
  path: str | os.PathLike,
  header: Header,
  codes_FQ: Int[np.ndarray, 'F Q'],
  *,
  overwrite: bool = False,
):
  """Writes a file atomically.

  Args:
    path: path of the new file.
    header: sizes of the clip and its codes.
    codes_FQ: codes in [0, codebook_size).
    overwrite: whether to replace an existing file.

  Raises:
    UserError: as `encode`, and if the file exists (unless `overwrite`).
  """
  path = os.fspath(path)
  content = encode(header, codes_FQ)
  if os.path.exists(path) and not overwrite:
    raise UserError(f'{path} exists: choose another name or pass overwrite=True')
  with files.atomically(path) as partial:
    partial.write_bytes(content)


def load(path: str | os.PathLike) -> tuple[Header, Int[np.ndarray, 'F Q']]:
  """Returns header and codes (int32) of a file.

  Args:
    path: path of the file.

  Raises:
    UserError: naming path and reason, if the file has another format or version, exceeds the limits
      of the format, or is truncated or damaged.
  """
  with open(path, 'rb') as file:
    return _read(file, os.fspath(path))


def info(path: str | os.PathLike) -> Header:
  """Returns the header of a file after checking its size; the digest is not checked.

  Args:
    path: path of the file.

  Raises:
    UserError: as `load`.
  """
  with open(path, 'rb') as file:
    return _read_header(file, os.fspath(path))


def _bits(codebook_size: int) -> int:
  return (codebook_size - 1).bit_length()


def _check(header: Header):
  for field, (least, largest) in _LIMITS.items():
    value = getattr(header, field)
    if not least <= value <= largest:
      raise UserError(f'{field}={value} is outside {least} to {largest}, the limits of the format')
  num_codes = header.num_frames * header.num_quantizers
  if num_codes > MAX_CODES:
    raise UserError(
      f'{num_codes:,} codes are more than {MAX_CODES:,}, the limit of a file: cut the clip into '
      'parts'
    )
  if len(header.fingerprint) != 16 or set(header.fingerprint) - set('0123456789abcdef'):
    raise UserError(f'fingerprint {header.fingerprint!r} does not have 16 hex digits')


def _read_header(file: io.BufferedIOBase, name: str) -> Header:
  start = file.read(_START)
  if not start.startswith(MAGIC):
    raise UserError(f'{name}: begins with {start[:8]!r}, so it is not an {EXTENSION} file')
  if len(start) < _START:
    raise UserError(f'{name}: truncated within its header of {_START} bytes: copy it again')
  version, *numbers, fingerprint = _FIELDS.unpack(start[len(MAGIC) :])
  if version != VERSION:
    raise UserError(
      f'{name}: has version {version} of the format; this program reads version {VERSION}'
    )
  header = Header(*numbers, fingerprint.hex())
  try:
    _check(header)
  except ValueError as error:
    raise UserError(f'{name}: damaged or not made by this program ({error})') from error
  size = file.seek(0, os.SEEK_END)
  if size != header.num_bytes:
    raise UserError(
      f'{name}: has {size:,} bytes, but its header declares {header.num_bytes:,}: copy it again'
    )
  return header


def _read(file: io.BufferedIOBase, name: str) -> tuple[Header, np.ndarray]:
  header = _read_header(file, name)
  file.seek(0)
  content = file.read(header.num_bytes - _DIGEST)
  if hashlib.sha256(content).digest() != file.read():
    raise UserError(f'{name}: damaged (its SHA-256 differs): copy it again')
  shape = (header.num_frames, header.num_quantizers)
  codes_N = _unpacked(memoryview(content)[_START:], math.prod(shape), _bits(header.codebook_size))
  if codes_N.max() >= header.codebook_size:
    raise UserError(
      f'{name}: contains code {codes_N.max()}, but its codebook_size is {header.codebook_size}'
    )
  return header, codes_N.reshape(shape)


def _packed(codes_N: np.ndarray, bits: int):
  """Yields the packed bytes of each block of codes."""
  shifts = np.arange(bits - 1, -1, -1)
  for start in range(0, len(codes_N), _BLOCK):
    yield np.packbits(codes_N[start : start + _BLOCK, None] >> shifts & 1).tobytes()


def _unpacked(packed: memoryview, num_codes: int, bits: int) -> np.ndarray:
  codes_N = np.empty(num_codes, np.int32)
  places = 1 << np.arange(bits - 1, -1, -1)
  for start in range(0, num_codes, _BLOCK):
    block_N = codes_N[start : start + _BLOCK]
    block = np.frombuffer(packed[start * bits // 8 : (start + _BLOCK) * bits // 8], np.uint8)
    block_N[:] = np.unpackbits(block, count=len(block_N) * bits).reshape(-1, bits) @ places
  return codes_N

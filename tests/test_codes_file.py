"""What is written comes back; what is not exactly what was written is refused, and by nothing but
ValueError.
"""

import hashlib
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from audiolm_jax import codes_file
from audiolm_jax.codes_file import Header

HEADER = Header(16_000, 320, 12, 1024, 16_001, '0123456789abcdef')


def random_codes(header, seed=0):
  shape = (header.num_frames, header.num_quantizers)
  return np.random.default_rng(seed).integers(0, header.codebook_size, shape).astype(np.int32)


@st.composite
def headers(draw):
  hop_length = draw(st.integers(1, 500))
  bits = draw(st.integers(1, 24))
  return Header(
    sample_rate=draw(st.integers(1, 200_000)),
    hop_length=hop_length,
    num_quantizers=draw(st.integers(1, 20)),
    codebook_size=draw(st.integers(2 ** (bits - 1) + 1, 2**bits)),
    num_samples=draw(st.integers(1, 40 * hop_length)),
    fingerprint=draw(st.binary(min_size=8, max_size=8)).hex(),
  )


def sealed(content: bytes) -> bytes:
  """Returns content with a digest that fits: what a forger would write."""
  return content + hashlib.sha256(content).digest()


CONTENT = codes_file.encode(HEADER, random_codes(HEADER))


@given(header=headers(), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_what_was_encoded_comes_back(header, seed):
  codes_FQ = random_codes(header, seed)
  content = codes_file.encode(header, codes_FQ)
  assert len(content) == header.num_bytes
  got, got_FQ = codes_file.decode(content, 'a')
  assert got == header and got_FQ.dtype == np.int32
  np.testing.assert_array_equal(got_FQ, codes_FQ)


def test_the_layout_is_the_documented_one():
  """A reader of its own, from the docstring alone: bits as text, integers by Python."""
  codes_FQ = random_codes(HEADER)
  assert CONTENT[:8] == b'\x89ALM\r\n\x1a\n'
  sizes, fields, at = (2, 4, 4, 2, 4, 8), [], 8
  for size in sizes:
    fields.append(int.from_bytes(CONTENT[at : at + size], 'little'))
    at += size
  assert fields == [1, 16_000, 320, 12, 1024, 16_001]
  assert CONTENT[at : at + 8].hex() == '0123456789abcdef' and CONTENT[at + 8 : 42] == bytes(2)
  bits = ''.join(f'{byte:08b}' for byte in CONTENT[42:-32])
  codes = [int(bits[start : start + 10], 2) for start in range(0, 51 * 12 * 10, 10)]
  assert codes == codes_FQ.reshape(-1).tolist() and not int(bits[51 * 12 * 10 :] or '0', 2)
  assert CONTENT[-32:] == hashlib.sha256(CONTENT[:-32]).digest()


def test_size_and_rates():
  second = HEADER._replace(num_samples=16_000)
  assert (second.num_frames, second.seconds, second.bit_rate) == (50, 1.0, 6000)
  assert second.num_bytes == 6000 / 8 + 42 + 32
  assert HEADER.num_frames == 51  # the sample beyond fills a frame of its own


def test_more_codes_than_one_block(monkeypatch):
  monkeypatch.setattr(codes_file, '_BLOCK', 64)
  codes_FQ = random_codes(HEADER)
  assert codes_file.encode(HEADER, codes_FQ) == CONTENT
  np.testing.assert_array_equal(codes_file.decode(CONTENT, 'a')[1], codes_FQ)


@given(length=st.integers(0, len(CONTENT) - 1))
def test_truncated_files_are_refused(length):
  with pytest.raises(ValueError, match='^cut.alm: '):
    codes_file.decode(CONTENT[:length], 'cut.alm')


@given(flips=st.sets(st.integers(0, 8 * len(CONTENT) - 1), min_size=1, max_size=8))
@settings(max_examples=300)
def test_flipped_bits_are_always_noticed(flips):
  content = bytearray(CONTENT)
  for flip in flips:
    content[flip // 8] ^= 1 << flip % 8
  with pytest.raises(ValueError, match='^flipped.alm: '):
    codes_file.decode(bytes(content), 'flipped.alm')


def test_every_single_flipped_bit_of_a_small_file_is_noticed():
  small = Header(16_000, 320, 1, 3, 640, 'ffffffffffffffff')
  content = codes_file.encode(small, np.array([[2], [1]]))
  for flip in range(8 * len(content)):
    damaged = bytearray(content)
    damaged[flip // 8] ^= 1 << flip % 8
    with pytest.raises(ValueError):
      codes_file.decode(bytes(damaged), 'a')


@given(content=st.binary(max_size=200), magic=st.booleans(), seal=st.booleans())
@settings(max_examples=300)
def test_random_bytes_are_refused(content, magic, seal):
  content = codes_file.MAGIC * magic + content
  with pytest.raises(ValueError, match='^random.alm: '):
    codes_file.decode(sealed(content) if seal else content, 'random.alm')


@given(
  fields=st.tuples(
    *(st.one_of(st.integers(0, 40), st.integers(0, 2**n - 1)) for n in (32, 32, 16, 32, 64))
  ),
  payload=st.binary(max_size=60),
)
@settings(max_examples=500)
def test_forged_headers_are_refused_or_consistent(fields, payload):
  """With a digest that fits, any header is either refused or tells of exactly the codes that are
  there.
  """
  header = codes_file._FIELDS.pack(1, *fields, bytes(8))
  content = sealed(codes_file.MAGIC + header + payload)
  try:
    got, codes_FQ = codes_file.decode(content, 'forged.alm')
  except ValueError as error:
    assert str(error).startswith('forged.alm: ')
  else:
    assert (
      codes_FQ.shape == (got.num_frames, got.num_quantizers) and codes_FQ.max() < got.codebook_size
    )
    assert len(payload) == -(-codes_FQ.size * math.ceil(math.log2(got.codebook_size)) // 8)


@given(payload=st.binary(min_size=1, max_size=60), codebook_size=st.integers(2, 40))
def test_forged_codes_are_refused_or_in_range(payload, codebook_size):
  bits = math.ceil(math.log2(codebook_size))
  num_codes = 8 * len(payload) // bits
  assume(-(-num_codes * bits // 8) == len(payload))
  header = codes_file._FIELDS.pack(1, 8000, 1, 1, codebook_size, num_codes, bytes(8))
  try:
    _, codes_FQ = codes_file.decode(sealed(codes_file.MAGIC + header + payload), 'forged.alm')
  except ValueError as error:
    assert f'its codebook_size is {codebook_size}' in str(error)
  else:
    assert 0 <= codes_FQ.min() and codes_FQ.max() < codebook_size


@pytest.mark.parametrize(
  'changes, reason',
  [
    ({'num_samples': 2**63}, 'num_samples=9223372036854775808 is outside'),
    ({'num_samples': 0}, 'num_samples=0 is outside'),
    ({'num_samples': 2**40}, 'codes are more than 134,217,728'),
    # 0 bits a code: any number of them would fit
    ({'codebook_size': 1}, 'codebook_size=1 is outside 2 to'),
    ({'codebook_size': 2**32 - 1}, 'codebook_size=4294967295 is outside'),
    ({'num_quantizers': 2**16 - 1}, 'num_quantizers=65535 is outside'),
    ({'hop_length': 0}, 'hop_length=0 is outside'),
    ({'sample_rate': 0}, 'sample_rate=0 is outside'),
    ({'num_samples': 2**30}, 'its header declares'),
  ],
)
def test_declared_sizes_are_checked_before_anything_is_allocated(changes, reason):
  *numbers, _ = HEADER._replace(**changes)
  content = sealed(codes_file.MAGIC + codes_file._FIELDS.pack(1, *numbers, bytes(8)) + bytes(100))
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=f'forged.alm: .*{reason}'):
      codes_file.decode(content, 'forged.alm')
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
  finally:
    tracemalloc.stop()


def test_fields_end_at_the_limits_of_the_format():
  """A legal header is refused for the codes that it is given: there are none."""
  smallest = Header(1, 1, 1, 2, 1, '0123456789abcdef')
  one_frame = smallest._replace(hop_length=2**20)
  for header, field, largest in (
    (smallest, 'sample_rate', 2**20),
    (smallest, 'hop_length', 2**20),
    (smallest, 'num_quantizers', 2**10),
    (smallest, 'codebook_size', 2**24),
    (one_frame, 'num_samples', 2**40),
  ):
    for value, reason in ((largest, 'codes have shape'), (largest + 1, f'{field}=.* is outside')):
      with pytest.raises(ValueError, match=reason):
        codes_file.encode(header._replace(**{field: value}), np.zeros((0, 1), np.int32))
  for count, reason in ((2**27, 'codes have shape'), (2**27 + 1, 'codes are more than')):
    with pytest.raises(ValueError, match=reason):
      codes_file.encode(smallest._replace(num_samples=count), np.zeros((0, 1), np.int32))
  for shape in ((2, 1), (1, 2)):
    with pytest.raises(ValueError, match=r'codes have shape .* has \(1, 1\)'):
      codes_file.encode(smallest, np.zeros(shape, np.int32))


def test_other_kinds_of_files_and_later_versions_are_named():
  with pytest.raises(ValueError, match=r"a.wav: begins with b'RIFF.*', so it is not an .alm file"):
    codes_file.decode(b'RIFF1234WAVE' * 10, 'a.wav')
  later = CONTENT[:8] + b'\x02\x00' + CONTENT[10:-32]
  with pytest.raises(ValueError, match='a.alm: has version 2 .* reads version 1'):
    codes_file.decode(sealed(later), 'a.alm')


@pytest.mark.parametrize(
  'header, codes_FQ, reason',
  [
    (HEADER, np.zeros((50, 12), np.int32), 'cut or pad the last frame'),
    (HEADER, np.full((51, 12), 1024, np.int32), 'between 1024 and 1024'),
    (HEADER, np.full((51, 12), -1, np.int32), 'between -1 and -1'),
    (HEADER._replace(codebook_size=1), np.zeros((51, 12), np.int32), 'codebook_size=1 is outside'),
    (
      HEADER._replace(fingerprint='ABCDEF0123456789'),
      np.zeros((51, 12), np.int32),
      'not have 16 hex digits',
    ),
    (HEADER._replace(fingerprint='abc'), np.zeros((51, 12), np.int32), 'not have 16 hex digits'),
  ],
)
def test_what_could_not_be_read_is_not_written(header, codes_FQ, reason):
  with pytest.raises(ValueError, match=reason):
    codes_file.encode(header, codes_FQ)


def test_files_are_written_whole_and_not_over_others(tmp_path, monkeypatch):
  path, codes_FQ = tmp_path / 'a.alm', random_codes(HEADER)
  codes_file.save(path, HEADER, codes_FQ)
  assert path.read_bytes() == CONTENT and codes_file.info(path) == HEADER
  with pytest.raises(ValueError, match='a.alm exists: .* overwrite=True'):
    codes_file.save(path, HEADER, 0 * codes_FQ)
  assert path.read_bytes() == CONTENT
  codes_file.save(path, HEADER, 0 * codes_FQ, overwrite=True)
  got, got_FQ = codes_file.load(path)
  assert got == HEADER and not got_FQ.any()

  def fail(*_):
    raise OSError('no space left')

  monkeypatch.setattr(codes_file.os, 'replace', fail)
  with pytest.raises(OSError, match='no space left'):
    codes_file.save(tmp_path / 'b.alm', HEADER, codes_FQ)
  assert [found.name for found in tmp_path.iterdir()] == ['a.alm']


def test_a_cut_file_is_named(tmp_path):
  path = tmp_path / 'a.alm'
  path.write_bytes(CONTENT[:-1])
  for read in (codes_file.load, codes_file.info):
    with pytest.raises(ValueError, match=r'a\.alm: has 838 bytes, but its header declares 839'):
      read(path)

import io
import struct
import time

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import soxr

from audiolm_jax import audio


def test_stft_matches_numpy_on_one_frame():
  wave_T = np.random.default_rng(0).normal(size=64).astype(np.float32)
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
  got = audio.stft(jnp.asarray(wave_T[None]), 64, 16)[0, 0]
  np.testing.assert_allclose(got, np.fft.rfft(wave_T * hann), atol=1e-4)


RATE = 16_000
TONE_T = (0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.float32)


def written(path, wave=TONE_T, rate=RATE, **options):
  soundfile.write(path, wave, rate, **options)
  return path


@pytest.mark.parametrize('extension', ['wav', 'flac', 'ogg'])
def test_save_then_load(tmp_path, extension):
  path = tmp_path / f'a.{extension}'
  audio.save(path, TONE_T, RATE)
  got = audio.load(path, RATE)
  np.testing.assert_allclose(got, TONE_T, atol=0.05 if extension == 'ogg' else 1e-4)
  assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no temporary file stays


def test_a_part_of_a_file(tmp_path):
  path = written(tmp_path / 'a.flac')
  np.testing.assert_allclose(
    audio.load(path, RATE, start_seconds=0.5, num_seconds=0.25), TONE_T[8000:12000], atol=1e-4
  )
  assert audio.info(path) == ('FLAC', RATE, 1, len(TONE_T), True)


def test_resampling_and_mono(tmp_path):
  stereo = np.stack(
    [np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100), np.zeros(44_100)], axis=1
  )
  got = audio.load(written(tmp_path / 'a.wav', stereo, 44_100), RATE)
  assert abs(len(got) - RATE) <= 1 and got.dtype == np.float32
  expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
  np.testing.assert_allclose(got[500:15_000], expected[500:15_000], atol=2e-3)


@pytest.mark.parametrize('rate', [8000, RATE, 44_100])
@pytest.mark.parametrize('block_length', [320, 31_999, 32_000, 10**6])
def test_blocks_are_the_waveform(tmp_path, rate, block_length):
  # more than the decoder takes at a time
  noise_T = np.random.default_rng(0).uniform(-0.5, 0.5, size=150_000 + 1)
  path = written(tmp_path / 'a.wav', noise_T, rate)
  whole_T = soxr.resample(soundfile.read(path, dtype='float32')[0], rate, RATE)
  blocks = list(audio.blocks(path, RATE, block_length))
  assert [len(block_T) for block_T in blocks[:-1]] == [block_length] * (len(blocks) - 1)
  assert 0 < len(blocks[-1]) <= block_length
  np.testing.assert_array_equal(np.concatenate(blocks), whole_T)
  np.testing.assert_array_equal(audio.load(path, RATE), whole_T)


def test_blocks_are_refused_as_the_whole_is(tmp_path):
  path = written(tmp_path / 'a.flac', np.tile(TONE_T, 4))
  with pytest.raises(ValueError, match='max_seconds=1'):
    list(audio.blocks(path, RATE, 320, max_seconds=1.0))
  path.write_bytes(path.read_bytes()[:-5000])
  with pytest.raises(ValueError, match='a.flac'):
    list(audio.blocks(path, RATE, 320))


def test_saving_blocks_is_saving_the_whole(tmp_path):
  audio.save(tmp_path / 'a.wav', TONE_T, RATE)
  audio.save_blocks(tmp_path / 'b.wav', iter(np.array_split(TONE_T, 7)), RATE)
  assert (tmp_path / 'a.wav').read_bytes() == (tmp_path / 'b.wav').read_bytes()

  def broken():
    yield TONE_T
    raise ValueError('no more')

  with pytest.raises(ValueError, match='no more'):
    audio.save_blocks(tmp_path / 'c.wav', broken(), RATE)
  with pytest.raises(ValueError, match='1 samples are NaN'):
    audio.save_blocks(tmp_path / 'c.wav', [TONE_T, np.array([np.nan], np.float32)], RATE)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a.wav', 'b.wav']


def test_content_decides_not_the_extension(tmp_path):
  written(tmp_path / 'a.flac').rename(tmp_path / 'a.raw')
  assert len(audio.load(tmp_path / 'a.raw', RATE)) == len(TONE_T)


def test_mp3(tmp_path):
  assert abs(len(audio.load(written(tmp_path / 'a.mp3'), RATE)) - len(TONE_T)) < 2500


NOISE_T = np.random.default_rng(0).normal(size=3 * RATE + 7).clip(-3, 3) / 4


def slices(path, length, rate=RATE, **options):
  """Yields (a slice of the file as it is read alone, the same slice of the whole) at both ends and
  between.
  """
  whole_T = audio.load(path, rate, **options)
  last = len(whole_T) - length
  for first in [0, 1, last - 1, last, *np.random.default_rng(1).integers(last, size=6)]:

    def choose(found, first=int(first)):
      assert found == len(whole_T)
      return first, first + length

    yield audio.load_slice(path, rate, choose, **options), whole_T[first : first + length]


@pytest.mark.parametrize('length', [1, 4000])
@pytest.mark.parametrize('part', [{}, {'start_seconds': 0.30001, 'num_seconds': 2.2}])
@pytest.mark.parametrize(
  'name, subtype',
  [
    ('a.flac', 'PCM_16'),
    ('a.flac', 'PCM_24'),
    ('a.wav', 'PCM_16'),
    ('a.wav', 'PCM_U8'),
    ('a.wav', 'FLOAT'),
    ('a.wav', 'ULAW'),
    ('a.wav', 'IMA_ADPCM'),
    ('a.ogg', 'VORBIS'),
    ('a.ogg', 'OPUS'),
    ('a.mp3', 'MPEG_LAYER_III'),
  ],
)
def test_a_slice_is_that_of_the_whole(tmp_path, name, subtype, part, length):
  path = written(tmp_path / name, np.stack([NOISE_T, NOISE_T[::-1]], axis=1), subtype=subtype)
  for got_T, expected_T in slices(path, length, **part):
    np.testing.assert_array_equal(got_T, expected_T)


@pytest.mark.parametrize(
  'name, subtype', [('a.flac', 'PCM_16'), ('a.ogg', 'VORBIS'), ('a.wav', 'IMA_ADPCM')]
)
def test_a_part_is_that_of_the_whole_up_to_the_end(tmp_path, name, subtype):
  path = written(tmp_path / name, NOISE_T, subtype=subtype)
  whole_T = audio.load(path, RATE)
  for before_end in (500, 3000, 20_000):  # samples; where Vorbis' own seeking misses
    start_seconds = (len(whole_T) - before_end) / RATE
    np.testing.assert_array_equal(
      audio.load(path, RATE, start_seconds=start_seconds), whole_T[-before_end:]
    )


@pytest.mark.parametrize('part', [{}, {'start_seconds': 0.30001, 'num_seconds': 0.6}])
@pytest.mark.parametrize('wanted', [RATE, 24_000, 44_100])
@pytest.mark.parametrize('rate', [8000, 11_025, 22_050, 37_800, 44_100, 48_000, 192_000])
def test_a_resampled_slice_is_that_of_the_whole(tmp_path, rate, wanted, part):
  noise_T = np.random.default_rng(0).uniform(-0.9, 0.9, size=rate + 11)
  path = written(tmp_path / 'a.flac', noise_T, rate, subtype='PCM_24')
  for got_T, expected_T in slices(path, 4000, wanted, **part):
    np.testing.assert_allclose(got_T, expected_T, rtol=0, atol=5e-6)


def test_where_the_resamplers_phase_drifts_the_whole_is_decoded(tmp_path):
  path = written(tmp_path / 'a.wav', NOISE_T, 44_101)
  for got_T, expected_T in slices(path, 4000):
    np.testing.assert_array_equal(got_T, expected_T)


def test_a_slice_of_a_damaged_file_is_right_or_refused(tmp_path):
  path = written(tmp_path / 'a.flac', NOISE_T)
  data, whole_T, random = path.read_bytes(), audio.load(path, RATE), np.random.default_rng(0)
  outcomes = {'right': 0, 'refused': 0}
  for kind in ('flipped', 'zeros', 'cut') * 30:
    at = int(random.integers(100, len(data) - 600))
    changed = {
      'flipped': data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :],
      'zeros': data[:at] + bytes(600) + data[at + 600 :],
      'cut': data[:at],
    }
    path.write_bytes(changed[kind])
    first = int(random.integers(len(whole_T) - 8000))
    try:
      got_T = audio.load_slice(path, RATE, lambda _, first=first: (first, first + 8000))
    except ValueError as error:
      assert 'a.flac' in str(error)
      outcomes['refused'] += 1
      continue
    np.testing.assert_array_equal(got_T, whole_T[first : first + 8000])
    outcomes['right'] += 1
  assert min(outcomes.values()) > 20


@pytest.mark.parametrize('extension', ['wav', 'flac', 'ogg'])
@pytest.mark.parametrize('share', [0.97, 0.5, 0.01])
def test_truncated_files_are_refused(tmp_path, extension, share):
  path = written(
    tmp_path / f'a.{extension}', np.random.default_rng(0).normal(size=2 * RATE).clip(-3, 3) / 4
  )
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  with pytest.raises(ValueError, match='a.' + extension):
    audio.load(path, RATE)


def test_bad_files_are_named(tmp_path):
  with pytest.raises(ValueError, match='2 samples are NaN or infinite'):
    audio.load(written(tmp_path / 'nan.wav', np.r_[TONE_T, np.nan, np.inf], subtype='FLOAT'), RATE)
  with pytest.raises(ValueError, match='empty'):
    audio.load(written(tmp_path / 'empty.wav', np.zeros(0)), RATE)
  with pytest.raises(ValueError, match='20 channels'):
    audio.load(written(tmp_path / 'many.wav', np.zeros((10, 20))), RATE)
  with pytest.raises(ValueError, match='7 Hz'):
    audio.load(written(tmp_path / 'slow.wav', np.zeros(10), 7), RATE)
  with pytest.raises(ValueError, match='max_seconds=1'):
    audio.load(written(tmp_path / 'long.flac'), RATE, max_seconds=1.0)
  (tmp_path / 'text.mp3').write_text('not audio at all')
  with pytest.raises(ValueError, match="begins with b'not '"):
    audio.load(tmp_path / 'text.mp3', RATE)


def test_a_flac_header_that_claims_too_much_allocates_nothing(tmp_path):
  path = written(tmp_path / 'a.flac')
  data = bytearray(path.read_bytes())
  data[21] = data[21] & 0xF0 | 0x0F  # the top bits of the 36 that count samples
  path.write_bytes(data)
  with pytest.raises(ValueError, match='max_seconds'):
    audio.load(path, RATE)


def test_save_refuses(tmp_path):
  path = tmp_path / 'a.wav'
  audio.save(path, TONE_T, RATE)
  with pytest.raises(ValueError, match='overwrite=True'):
    audio.save(path, TONE_T, RATE)
  audio.save(path, TONE_T[:100], RATE, overwrite=True)
  assert audio.info(path).num_samples == 100
  with pytest.raises(ValueError, match='1 samples are NaN'):
    audio.save(tmp_path / 'b.wav', np.array([0, np.nan], np.float32), RATE)
  with pytest.raises(ValueError, match='.flac'):
    audio.save(tmp_path / 'b.mp3', TONE_T, RATE)


def chunked_wav(before: int, after: int) -> bytes:
  """A WAV of 100 zeros with empty chunks in front of and behind its data."""
  junk, data = b'junk' + bytes(4), bytes(200)
  form = struct.pack('<4sIHHIIHH', b'fmt ', 16, 1, 1, RATE, 2 * RATE, 2, 16)
  chunks = form + junk * before + b'data' + len(data).to_bytes(4, 'little') + data + junk * after
  return b'RIFF' + (4 + len(chunks)).to_bytes(4, 'little') + b'WAVE' + chunks


@pytest.mark.parametrize('before, after', [(1_000_000, 0), (0, 1_000_000), (600, 600)])
def test_a_wav_of_a_million_chunks_is_refused_at_once(before, after):
  content, started = chunked_wav(before, after), time.process_time()
  with pytest.raises(ValueError, match='many.wav: more than 1,024 chunks, a WAV has a few'):
    audio.decode(io.BytesIO(content), RATE, name='many.wav')
  assert time.process_time() - started < 1.0


@pytest.mark.parametrize('content', [chunked_wav(400, 400), chunked_wav(0, 0) + bytes(100_000)])
def test_some_chunks_and_zeros_at_the_end_are_no_harm(content):
  np.testing.assert_array_equal(
    audio.decode(io.BytesIO(content), RATE, name='a.wav'), np.zeros(100)
  )


def test_stacked_pads_with_zeros_at_the_end():
  wave_BT, num_samples_B = audio.stacked([np.ones(2, np.float32), np.full(3, 2, np.float32)])
  np.testing.assert_array_equal(wave_BT, [[1, 1, 0], [2, 2, 2]])
  np.testing.assert_array_equal(num_samples_B, [2, 3])
  assert (wave_BT.dtype, num_samples_B.dtype) == (np.float32, np.int32)

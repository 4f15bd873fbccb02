"""What users' files really hold: pipes, pointers, web pages, halves of downloads, integers as
floats.
"""

import io
import os
import re

import numpy as np
import pytest
import soundfile

from audiolm_jax import audio, audio_checks

RATE = 16_000
NOISE_T = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE)


def written(path, wave=NOISE_T, rate=RATE, **options):
  soundfile.write(path, wave, rate, **options)
  return path


@pytest.mark.parametrize('size', [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_is_read_to_its_end(tmp_path, size):
  path = written(tmp_path / 'a.wav')
  whole_T, data = audio.load(path, RATE), bytearray(path.read_bytes())
  at = data.find(b'data') + 4
  data[at : at + 4] = size.to_bytes(4, 'little')
  data[4:8] = min(size + 36, 0xFFFFFFFF).to_bytes(4, 'little')
  path.write_bytes(data)
  np.testing.assert_array_equal(audio.load(path, RATE), whole_T)
  got_T = audio.load_slice(path, RATE, lambda length: (length - 100, length))
  np.testing.assert_array_equal(got_T, whole_T[-100:])
  assert audio.info(path).num_samples == len(NOISE_T) and not audio.info(path).tells_length


def test_an_empty_wav_with_metadata_behind_is_empty_not_a_pipe(tmp_path):
  path = written(tmp_path / 'a.wav', np.zeros(0))
  path.write_bytes(path.read_bytes() + b'LIST\x04\x00\x00\x00INFO')
  with pytest.raises(ValueError, match='it is empty'):
    audio.load(path, RATE)


def test_a_flac_from_a_pipe_is_read_to_its_end(tmp_path):
  path = written(tmp_path / 'a.flac')
  whole_T, data = audio.load(path, RATE), bytearray(path.read_bytes())
  data[21], data[22:26] = data[21] & 0xF0, bytes(4)  # of 36 bits that count samples
  path.write_bytes(data)
  np.testing.assert_array_equal(audio.load(path, RATE), whole_T)
  part_T = audio.load(path, RATE, start_seconds=1.0, num_seconds=0.5)
  np.testing.assert_array_equal(part_T, whole_T[RATE : RATE * 3 // 2])
  assert audio.info(path)[3:] == (len(NOISE_T), False)
  with pytest.raises(ValueError, match='more than max_seconds=1'):
    audio.load(path, RATE, max_seconds=1.0)


def test_half_an_rf64_is_refused(tmp_path):
  path = written(tmp_path / 'a.wav', format='RF64')
  assert audio.info(path)[3:] == (len(NOISE_T), True)
  path.write_bytes(path.read_bytes()[: len(NOISE_T)])
  with pytest.raises(ValueError, match='cut short, .* bytes of 96000 are there'):
    audio.load(path, RATE)


@pytest.mark.parametrize('rate', [RATE, 44_100])
@pytest.mark.parametrize('share', [0.5, 0.9])
def test_half_an_mp3_whose_header_tells_its_length_is_refused(tmp_path, share, rate):
  path = written(tmp_path / 'a.mp3', rate=rate)
  assert audio.info(path)[3:] == (len(NOISE_T), True)
  assert len(audio.load(path, rate)) == len(NOISE_T)
  path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
  with pytest.raises(ValueError, match=f'cut short, only .* of {len(NOISE_T)} samples'):
    audio.load(path, rate)


def without_tag(data: bytes) -> bytes:
  length, _ = audio_checks._frame(data[:4])
  return data[length:]


def test_an_mp3_whose_length_cannot_be_checked_says_so_and_none_is_read_in_part(tmp_path):
  path = tmp_path / 'a.mp3'
  options = dict(format='MP3', bitrate_mode='CONSTANT', compression_level=0.9)
  with soundfile.SoundFile(path, 'w', RATE, 1, **options) as file:
    file.write(np.zeros(len(NOISE_T)))
  data = without_tag(path.read_bytes())
  frames = 0
  while frame := audio_checks._frame(data[:4]):
    data, frames = data[frame[0] :], frames + 1
  path.write_bytes(without_tag(path.read_bytes()))
  headers = audio_checks.examine(io.BytesIO(path.read_bytes()), 'a.mp3')
  assert headers == audio_checks.Headers('MP3', False, {}, 576 * frames)
  assert 0 <= 576 * frames - len(NOISE_T) < 4 * 576  # the encoder's delay
  written(path)  # of changing bit rate, where the decoder takes the first frame's for that of all
  path.write_bytes(without_tag(path.read_bytes()))
  with pytest.raises(ValueError, match=r'no header states its length.* -c copy .*a.tagged.mp3'):
    audio.load(path, RATE)


@pytest.mark.parametrize(
  'content, message',
  [
    (b'version https://git-lfs.github.com/spec/v1\noid sha', 'Git LFS pointer.*git lfs'),
    (b'<!DOCTYPE html><html>404</html>', 'web page'),
    (b'\xef\xbb\xbf\n <HTML>', 'web page'),
    (b'\x00\x05\x16\x07\x00\x02', 'AppleDouble'),
    (b'PK\x03\x04aaaa', 'ZIP'),
    (b'', r'is empty \(0 bytes\)'),
    (bytes(1000), 'begins with zeros'),
    (b'RIFF\x00\x00\x00\x00AVI LIST', "begins with b'RIFF', which is not WAV"),
    (b'\x00\x00\x00\x20ftypM4A ', 'convert it by `ffmpeg -i .*a.wav'),
  ],
)
def test_what_is_named_wav_and_is_something_else_is_called_that(tmp_path, content, message):
  (tmp_path / 'a.wav').write_bytes(content)
  with pytest.raises(ValueError, match=message):
    audio.load(tmp_path / 'a.wav', RATE)


@pytest.mark.parametrize(
  'read',
  [
    lambda path: audio.load(path, RATE),
    lambda path: list(audio.blocks(path, RATE, 320)),
    lambda path: audio.load_slice(path, RATE, lambda length: (0, length)),
  ],
)
def test_a_clip_of_less_than_one_sample_at_the_rate_asked_for_is_named(tmp_path, read):
  path = written(tmp_path / 'one.wav', np.full(1, 0.5), 48_000)
  with pytest.raises(ValueError, match='one.wav: too short'):
    read(path)
  np.testing.assert_array_equal(audio.load(path, 48_000), [0.5])


def test_values_far_beyond_one_are_named_and_a_little_beyond_are_kept(tmp_path):
  loud_T = 9830 * NOISE_T / 0.5
  path = written(tmp_path / 'a b.wav', loud_T, subtype='FLOAT')
  with pytest.raises(ValueError, match="a sample is 98.*, far beyond .*sox --norm=-1 '.*a b.wav'"):
    audio.load(path, RATE)
  path = written(tmp_path / 'b.wav', 4 * NOISE_T, subtype='FLOAT')
  np.testing.assert_allclose(audio.load(path, RATE), 4 * NOISE_T, rtol=1e-6)


def test_a_pipe_is_refused_without_waiting(tmp_path):
  os.mkfifo(tmp_path / 'a.wav')
  with pytest.raises(ValueError, match='a.wav: no regular file'):
    audio.load(tmp_path / 'a.wav', RATE)
  with pytest.raises(ValueError, match='no regular file'):
    audio.info('/dev/null')


def test_a_name_that_is_no_text_is_read_and_named(tmp_path):
  path = os.fsdecode(os.fsencode(tmp_path) + b'/\xe9\xff.wav')
  with open(path, 'wb') as file:
    soundfile.write(file, NOISE_T, RATE, format='WAV')
  assert len(audio.load(path, RATE)) == audio.info(path).num_samples == len(NOISE_T)
  open(path, 'wb').close()
  with pytest.raises(ValueError, match='\udce9\udcff.wav: is empty'):
    audio.load(path, RATE)


@pytest.mark.parametrize('subtype', ['VORBIS', 'OPUS'])
def test_damage_in_the_middle_of_an_ogg_is_named_not_passed_over(tmp_path, subtype):
  path = written(tmp_path / 'a.ogg', np.tile(NOISE_T, 4), subtype=subtype)
  data = path.read_bytes()
  starts = [match.start() for match in re.finditer(b'OggS', data)]
  at = starts[len(starts) // 2]
  assert 2 < len(starts) // 2 < len(starts) - 1
  for changed in (
    data[:at] + bytes(622) + data[at:],  # inserted
    data[: at + 60] + data[at + 90 :],  # removed
    data[: at + 60] + bytes([data[at + 60] ^ 1]) + data[at + 61 :],  # one bit
  ):
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r'a.ogg: damaged (at|between)'):
      audio.load(path, RATE)
  path.write_bytes(data + b'TAG' + bytes(125))  # what follows the last page is no harm
  assert len(audio.load(path, RATE)) == 4 * len(NOISE_T)


@pytest.mark.parametrize(
  'extension, says', [('ogg', 'several recordings'), ('mp3', 'audio follows')]
)
def test_recordings_put_one_behind_another_are_not_read_to_the_first_end(tmp_path, extension, says):
  path = written(tmp_path / f'a.{extension}')
  data = path.read_bytes()
  path.write_bytes(data + data)
  with pytest.raises(ValueError, match=f'a.{extension}: {says}.*convert it by `ffmpeg -i'):
    audio.load(path, RATE)
  path.write_bytes(data + b'TAG' + bytes(125))
  assert len(audio.load(path, RATE)) == len(NOISE_T)


def test_the_checksum_of_an_ogg_page_is_that_of_its_definition():
  register, page = 0, b'OggS' + bytes(range(200))  # RFC 3533: polynomial 0x04c11db7, no reflection
  for bit in (byte >> shift & 1 for byte in page for shift in range(7, -1, -1)):
    register = (register << 1 & 0xFFFFFFFF) ^ (0x04C11DB7 if (register >> 31) ^ bit else 0)
  assert audio_checks._ogg_checksum(page) == register.to_bytes(4, 'little')


@pytest.mark.parametrize('rate', [8_000, 11_025, 12_345, 44_100, 95_000, 96_000, 192_000])
@pytest.mark.parametrize('subtype, channels', [('PCM_16', 1), ('PCM_24', 2), ('PCM_S8', 7)])
def test_a_flac_whose_header_and_frames_differ_is_refused(tmp_path, rate, subtype, channels):
  path = written(
    tmp_path / 'a.flac', np.tile(NOISE_T[:5000, None], channels), rate, subtype=subtype
  )
  assert audio.info(path) == ('FLAC', rate, channels, 5000, True)
  data = bytearray(path.read_bytes())
  data[18] ^= 0x01  # of the 20 bits of the rate
  path.write_bytes(data)
  told = rf'its header states {rate ^ 0x1000} Hz, .* its first frame {rate} Hz, {channels} channels'
  with pytest.raises(ValueError, match=f'a.flac: damaged, {told}'):
    audio.load(path, RATE)

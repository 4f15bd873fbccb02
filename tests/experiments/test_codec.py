"""Files through the codec program and back: lengths, resuming, and what it refuses."""

import os
import shutil
import socket
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from audiolm_jax import audio, codes_file, files
from audiolm_jax import codec as codec_lib
from audiolm_jax.codec import Codec
from audiolm_jax.training import saving
from experiments import codec
from tests.toy_codec import CONFIG, random_variables

RATE = CONFIG.sample_rate
LENGTHS = {'short.wav': 1, 'x/odd.flac': 8001, 'x/y/long.wav': 3 * RATE + 5, 'chunk.ogg': RATE}
ALM = ['chunk.alm', 'short.alm', 'x/odd.alm', 'x/y/long.alm']


def save_codec(workdir, variables):
  saving.save_variables(workdir / 'soundstream', CONFIG, variables)


@pytest.fixture(scope='module')
def variables():
  return random_variables(CONFIG)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, variables):
  save_codec(folder := tmp_path_factory.mktemp('workdir'), variables)
  return folder


@pytest.fixture
def run(workdir, monkeypatch):
  def call(*arguments, workdir=workdir):
    monkeypatch.setattr(sys, 'argv', ['codec', f'--workdir={workdir}', *map(str, arguments)])
    codec.main()

  return call


@pytest.fixture
def recordings(tmp_path):
  random = np.random.default_rng(0)
  for name, length in LENGTHS.items():
    (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
    audio.save(tmp_path / 'in' / name, random.uniform(-0.5, 0.5, length).astype(np.float32), RATE)
  return tmp_path / 'in'


def names(folder, pattern='*.*'):
  return sorted(
    path.relative_to(folder).as_posix() for path in folder.rglob(pattern) if path.is_file()
  )


def test_a_folder_there_and_back(run, recordings, variables, tmp_path):
  run('encode', recordings, f'--output={tmp_path}/codes')
  assert names(tmp_path / 'codes') == ALM
  run('decode', tmp_path / 'codes', f'--output={tmp_path}/out')
  for name, length in LENGTHS.items():
    stem = name.rpartition('.')[0]
    header, codes_FQ = codes_file.load(tmp_path / f'codes/{stem}.alm')
    assert header == (RATE, 8, 3, 16, length, Codec(CONFIG, variables).fingerprint)
    wave_BT = jnp.asarray(audio.load(recordings / name, RATE))[None]
    want_BFQ = Codec(CONFIG, variables).encode(wave_BT)
    assert np.mean(codes_FQ == want_BFQ[0]) > 0.999  # a tie may fall otherwise in 3,000 frames
    wave_T, rate = soundfile.read(tmp_path / f'out/{stem}.wav', dtype='float32')
    assert (len(wave_T), rate) == (length, RATE)
    want_BT = Codec(CONFIG, variables).decode(jnp.asarray(codes_FQ)[None], length)
    np.testing.assert_allclose(wave_T, np.clip(want_BT[0], -1, 1), atol=1e-4)  # of 16 bits


def test_lengths_share_one_compilation(run, recordings, tmp_path):
  for step in (codec_lib._encode_step, codec_lib._decode_step):
    step.clear_cache()
  run('encode', recordings, f'--output={tmp_path}/codes')
  run('decode', tmp_path / 'codes', f'--output={tmp_path}/out')
  assert codec_lib._encode_step._cache_size() == codec_lib._decode_step._cache_size() == 1


def test_other_rates_and_channels_are_taken(run, tmp_path):
  stereo = np.random.default_rng(0).uniform(-0.5, 0.5, size=(44_100, 2))
  soundfile.write(tmp_path / 'a.wav', stereo, 44_100)
  run('encode', tmp_path / 'a.wav', f'--output={tmp_path}')
  assert codes_file.info(tmp_path / 'a.alm').num_samples == RATE


def test_a_folder_goes_on_where_it_was(run, recordings, tmp_path, capsys):
  out = tmp_path / 'codes'
  run('encode', recordings, f'--output={out}')
  before = {name: (out / name).stat().st_mtime_ns for name in names(out)}
  (out / 'x/odd.alm').unlink()
  left = f'odd.alm.{socket.gethostname()}.{2**22 + 1}.{"0" * 16}.partial'  # no process has that id
  (out / 'x' / left).write_bytes(b'killed here')
  files._clear.cache_clear()  # as in a new process
  run('encode', recordings, f'--output={out}')
  assert '1 files made, 3 kept' in capsys.readouterr().out
  assert names(out) == sorted(before)
  assert [name for name in before if (out / name).stat().st_mtime_ns != before[name]] == [
    'x/odd.alm'
  ]
  for _ in range(2):
    run('decode', out, f'--output={tmp_path}/out')
  assert '0 files made, 4 kept' in capsys.readouterr().out


def test_what_is_there_and_is_something_else_stays(run, recordings, tmp_path):
  out = tmp_path / 'codes'
  run('encode', recordings, f'--output={out}', '--num-quantizers=2')
  content = (out / 'x/odd.alm').read_bytes()
  with pytest.raises(
    ValueError, match=r'4 of 4 files failed: .*num_quantizers=2.*pass --overwrite'
  ):
    run('encode', recordings, f'--output={out}')
  (out / 'short.alm').write_bytes((out / 'short.alm').read_bytes()[:-1])
  with pytest.raises(
    ValueError, match=r'1 of 4 files failed: .*short.alm: has .*, or pass --overwrite'
  ):
    run('encode', recordings, f'--output={out}', '--num-quantizers=2')
  assert (out / 'x/odd.alm').read_bytes() == content
  run('encode', recordings, f'--output={out}', '--overwrite')
  assert all(codes_file.load(out / name)[0].num_quantizers == 3 for name in ALM)
  run('decode', out, f'--output={tmp_path}/out')
  audio.save(tmp_path / 'out/short.wav', np.zeros(7, np.float32), RATE, overwrite=True)
  with pytest.raises(ValueError, match=r'short.wav exists with 7 samples at 8000 Hz, not 1 '):
    run('decode', out, f'--output={tmp_path}/out')


def test_a_file_that_is_named_is_not_replaced_unasked(run, recordings, tmp_path):
  run('encode', recordings / 'short.wav', f'--output={tmp_path}/codes')
  with pytest.raises(
    ValueError, match='short.alm exists: choose another --output, or pass --overwrite'
  ):
    run('encode', recordings / 'short.wav', f'--output={tmp_path}/codes')
  run('encode', recordings / 'short.wav', f'--output={tmp_path}/codes', '--overwrite')


def test_the_codes_of_another_codec_are_refused(run, recordings, variables, tmp_path):
  run('encode', recordings, f'--output={tmp_path}/codes')
  books = variables.state['codebooks']
  books = books._replace(vectors_QKD=books.vectors_QKD + 1e-3)
  other = variables._replace(state=variables.state | {'codebooks': books})
  save_codec(tmp_path / 'other', other)
  found, own = (Codec(CONFIG, one).fingerprint for one in (variables, other))
  for path in (tmp_path / 'codes', tmp_path / 'codes/short.alm'):
    with pytest.raises(
      ValueError, match=f'was made by codec {found}, this is {own}: give the --workdir of the other'
    ):
      run('decode', path, f'--output={tmp_path}/out', workdir=tmp_path / 'other')
  assert not (tmp_path / 'out').exists()


def test_levels(run, recordings, variables, tmp_path):
  name = recordings / 'x/odd.flac'
  run('encode', name, f'--output={tmp_path}/all')
  run('encode', name, f'--output={tmp_path}/two', '--num-quantizers=2')
  _, all_FQ = codes_file.load(tmp_path / 'all/odd.alm')
  header, two_FQ = codes_file.load(tmp_path / 'two/odd.alm')
  np.testing.assert_array_equal(two_FQ, all_FQ[:, :2])
  assert header.bit_rate == 1000 * 2 * 4
  run('decode', tmp_path / 'all/odd.alm', f'--output={tmp_path}/all', '--num-quantizers=2')
  run('decode', tmp_path / 'two/odd.alm', f'--output={tmp_path}/two')
  assert (tmp_path / 'all/odd.wav').read_bytes() == (tmp_path / 'two/odd.wav').read_bytes()
  with pytest.raises(ValueError, match='two/odd.alm has 2 levels, fewer than --num-quantizers=3'):
    run('decode', tmp_path / 'two/odd.alm', f'--output={tmp_path}/more', '--num-quantizers=3')
  with pytest.raises(ValueError, match='--num-quantizers=4: this codec has levels 1 to 3'):
    run('encode', name, f'--output={tmp_path}/more', '--num-quantizers=4')


def test_bad_files_are_named_and_keep_no_others_back(run, recordings, tmp_path):
  (recordings / 'text.wav').write_text('not audio at all')
  long = recordings / 'x/y/long.wav'
  long.write_bytes(long.read_bytes()[:-100])
  with pytest.raises(ValueError, match='2 of 5 files failed: .*text.wav.*long.wav: cut short'):
    run('encode', recordings, f'--output={tmp_path}/codes')
  assert names(tmp_path / 'codes') == ['chunk.alm', 'short.alm', 'x/odd.alm']
  (tmp_path / 'codes/short.alm').write_bytes(b'short')
  with pytest.raises(ValueError, match="1 of 3 files failed: .*short.alm: begins with b'short'"):
    run('decode', tmp_path / 'codes', f'--output={tmp_path}/out')
  assert names(tmp_path / 'out') == ['chunk.wav', 'x/odd.wav']


def test_one_output_that_cannot_be_made_keeps_no_others_back(run, recordings, tmp_path, capsys):
  """Where a file stands in the place of a folder; names of 250 bytes are made."""
  shutil.copy(recordings / 'short.wav', recordings / f'{"b" * 246}.wav')
  (tmp_path / 'codes').mkdir()
  (tmp_path / 'codes/x').write_text('precious')
  with pytest.raises(
    ValueError, match='2 of 5 files failed: .*x/odd.alm cannot be made .Not a dir.*long.alm'
  ):
    run('encode', recordings, f'--output={tmp_path}/codes')
  assert '3 files made, 0 kept' in capsys.readouterr().out
  assert names(tmp_path / 'codes') == [f'{"b" * 246}.alm', 'chunk.alm', 'short.alm']
  assert (tmp_path / 'codes/x').read_text() == 'precious'


def test_names_that_are_no_text_go_there_and_back(run, recordings, tmp_path):
  odd = os.fsdecode(b'\xff\xfe')
  shutil.copy(recordings / 'short.wav', recordings / f'{odd}.wav')
  run('encode', recordings, f'--output={tmp_path}/codes')
  run('decode', tmp_path / f'codes/{odd}.alm', f'--output={tmp_path}/out')
  assert os.listdir(os.fsencode(tmp_path / 'out')) == [b'\xff\xfe.wav']


def test_originals_are_not_counted_as_decoded(run, recordings, tmp_path, capsys):
  """In their folder, with their names, rates and lengths."""
  run('encode', recordings, f'--output={tmp_path}/codes')
  originals = {name: (recordings / name).read_bytes() for name in ('short.wav', 'x/y/long.wav')}
  with pytest.raises(
    ValueError, match='2 of 4 files failed: .*long.wav exists and was not decoded from .*long.alm'
  ):
    run('decode', tmp_path / 'codes', f'--output={recordings}')
  assert '2 files made, 0 kept' in capsys.readouterr().out
  assert {name: (recordings / name).read_bytes() for name in originals} == originals


def test_audio_of_other_levels_is_not_counted_as_decoded(run, recordings, tmp_path):
  run('encode', recordings / 'x', f'--output={tmp_path}/codes')
  run('decode', tmp_path / 'codes', f'--output={tmp_path}/out', '--num-quantizers=1')
  with pytest.raises(
    ValueError, match='2 of 2 files failed: .*was not decoded from .* in this way'
  ):
    run('decode', tmp_path / 'codes', f'--output={tmp_path}/out')
  run('decode', tmp_path / 'codes', f'--output={tmp_path}/out', '--num-quantizers=1')


def test_info_tells_and_checks(run, recordings, variables, tmp_path, capsys):
  run('encode', recordings, f'--output={tmp_path}/codes')
  capsys.readouterr()
  run('info', tmp_path / 'codes/x/odd.alm')
  size = (tmp_path / 'codes/x/odd.alm').stat().st_size
  assert capsys.readouterr().out == (
    f'{tmp_path}/codes/x/odd.alm: 1.00 s (8,001 samples at 8000 Hz), 3 levels of 16 codes, 12000 bit/s, '
    f'{size:,} bytes, codec {Codec(CONFIG, variables).fingerprint}\n'
  )
  content = bytearray((tmp_path / 'codes/chunk.alm').read_bytes())
  content[100] ^= 1
  (tmp_path / 'codes/chunk.alm').write_bytes(content)
  with pytest.raises(ValueError, match='chunk.alm: damaged .its SHA-256 differs'):
    run('info', tmp_path / 'codes')
  assert capsys.readouterr().out.count('\n') == 3
  with pytest.raises(ValueError, match='info takes only paths'):
    run('info', tmp_path / 'codes', f'--output={tmp_path}/out')


def test_mistakes_are_explained(run, recordings, tmp_path):
  with pytest.raises(ValueError, match='encode needs --output=FOLDER'):
    run('encode', recordings)
  with pytest.raises(
    ValueError, match="'copy' is not a command: choose one of encode, decode, info"
  ):
    run('copy', recordings)
  with pytest.raises(ValueError, match='missing.wav: no such file or folder'):
    run('encode', recordings, tmp_path / 'missing.wav', f'--output={tmp_path}/codes')
  with pytest.raises(ValueError, match=r'in: no files \(\.alm\) in it or below'):
    run('decode', recordings, f'--output={tmp_path}/out')
  with pytest.raises(ValueError, match='experiments.train --stage=soundstream'):
    run('encode', recordings, f'--output={tmp_path}/codes', workdir=tmp_path / 'none')
  audio.save(recordings / 'x/odd.wav', np.zeros(9, np.float32), RATE)
  with pytest.raises(
    ValueError, match='odd.flac and .*odd.wav would both become .*odd.alm: rename one'
  ):
    run('encode', recordings, f'--output={tmp_path}/codes')

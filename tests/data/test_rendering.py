"""Rendering: pitch, time and loudness of notes; skipped without the extra `music`."""

import pathlib

import numpy as np
import pytest

from audiolm_jax.data import rendering

RATE = 16_000
FLUTE = 73


@pytest.fixture(scope='module')
def font():
  for package in ('midirenderer', 'pretty_midi'):
    pytest.importorskip(package, reason=f'{package} is not installed: no music can be rendered')
  return rendering.font_path()


def play(font, *notes, seconds=2.0, program=FLUTE, rate=RATE):
  return rendering.render(np.array(notes), program, seconds, rate, font)


def strongest(wave_T, rate=RATE):
  return np.argmax(np.abs(np.fft.rfft(wave_T * np.hanning(len(wave_T))))) * rate / len(wave_T)


def test_notes_sound_at_their_pitch_and_time(font):
  wave_T = play(font, [0.5, 1.5, 69, 100])
  assert wave_T.dtype == np.float32 and wave_T.shape == (2 * RATE,)
  assert np.abs(wave_T[: RATE // 2 - 400]).max() < 1e-3 < np.abs(wave_T).max() / 10
  np.testing.assert_allclose(strongest(wave_T[10_000:22_000]), 440, rtol=0.01)
  np.testing.assert_allclose(
    strongest(play(font, [0.0, 2.0, 81, 100], rate=24_000), 24_000), 880, rtol=0.01
  )


def test_velocity_is_loudness(font):
  soft, loud = (np.std(play(font, [0.0, 2.0, 69, velocity])) for velocity in (56, 112))
  assert loud > 2.5 * soft


def test_programs_are_instruments_and_renders_are_equal(font):
  note = [0.0, 2.0, 60, 100]
  np.testing.assert_array_equal(play(font, note), play(font, note))
  piano_T = play(font, note, program=0)
  # A piano's tone decays, a flute's does not.
  decay = lambda wave_T: np.std(wave_T[-8000:]) / np.std(wave_T[4000:12_000])
  assert decay(piano_T) < 0.5 < decay(play(font, note))


def test_a_clip_is_as_long_as_asked_for_after_the_last_note(font):
  wave_T = play(font, [0.0, 0.1, 60, 100], seconds=7.0)
  assert len(wave_T) == 7 * RATE and np.abs(wave_T[-RATE:]).max() < 0.01


def test_samples_are_those_of_16_bits(font):
  wave_T = play(font, [0.0, 2.0, 60, 127])
  np.testing.assert_array_equal(wave_T * 32768, np.rint(wave_T * 32768))


@pytest.mark.parametrize('content', [b'', b'RIFF....sfpk', b'no font'])
def test_files_that_are_no_fonts_are_named(tmp_path, content):
  path = tmp_path / 'a.sf2'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f'{path} is no sound font'):
    rendering.font_path(str(path))
  with pytest.raises(ValueError, match=r'nothing.sf2.*is no file: --set corpus.config.font'):
    rendering.font_path(str(tmp_path / 'nothing.sf2'))


def test_a_damaged_font_is_named(font, tmp_path):
  path = tmp_path / 'a.sf2'
  path.write_bytes(pathlib.Path(font).read_bytes()[:5000])
  with pytest.raises(ValueError, match='cannot be played'):
    play(str(path), [0.0, 2.0, 60, 127])


def test_a_missing_package_is_named_with_its_command(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"pretty_midi is not installed: run `pip install -e '.\[mu"):
    rendering.font_path()

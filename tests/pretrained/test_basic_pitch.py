"""Notes of probabilities made by hand; the network itself where its package is installed."""

import importlib.util
import sys

import numpy as np
import pytest

from audiolm_jax.errors import UserError
from audiolm_jax.pretrained import basic_pitch

SECONDS = basic_pitch.HOP / basic_pitch.RATE  # of a frame


def maps(*spans, count=150, onsets=True):
  """Returns the probabilities of notes (first frame, end, MIDI pitch) with 0.9, and of onsets."""
  frame_FP, onset_FP = np.zeros((count, 88)), np.zeros((count, 88))
  for first, end, pitch in spans:
    frame_FP[first:end, pitch - 21] = 0.9
    onset_FP[first, pitch - 21] = 0.8 if onsets else 0.0
  return frame_FP, onset_FP


def test_notes_with_onsets_have_their_times_and_pitches():
  found_N4 = basic_pitch.notes(*maps((10, 41, 60), (10, 70, 67), (60, 90, 60)))
  frames = [(10, 41, 60), (10, 70, 67), (60, 90, 60)]
  wanted = [(a * SECONDS, b * SECONDS, pitch, 127 * 0.9) for a, b, pitch in frames]
  np.testing.assert_allclose(found_N4, wanted, rtol=1e-6)


def test_a_short_gap_does_not_end_a_note_but_an_onset_begins_another():
  frame_FP, onset_FP = maps((10, 60, 60))
  frame_FP[30:36, 39] = 0.1  # 6 of the 11 frames that end a note
  frame_FP[36:42, 39] = np.linspace(0.25, 0.75, 6)  # too slowly for an onset
  [note_4] = basic_pitch.notes(frame_FP, onset_FP)
  np.testing.assert_allclose(note_4[:2], [10 * SECONDS, 60 * SECONDS])
  onset_FP[36, 39] = 0.8
  found_N4 = basic_pitch.notes(frame_FP, onset_FP)
  np.testing.assert_allclose(found_N4[:, 0], [10 * SECONDS, 36 * SECONDS])


def test_short_notes_are_dropped_and_sudden_frames_are_onsets():
  assert len(basic_pitch.notes(*maps((10, 20, 60)))) == 0
  # No onset of its own, but one as loud as that of the other note.
  frame_FP, onset_FP = maps((10, 40, 60), (50, 80, 72))
  onset_FP[50] = 0
  found_N4 = basic_pitch.notes(frame_FP, onset_FP)
  np.testing.assert_allclose(found_N4[:, :1], [[10 * SECONDS], [50 * SECONDS]])
  assert found_N4[:, 2].tolist() == [60, 72]


def test_what_rises_slowly_is_found_without_an_onset():
  frame_FP, onset_FP = maps()
  frame_FP[20:60, 40] = np.minimum(np.linspace(0.1, 1.7, 40), 0.9)
  assert [note_4[2] for note_4 in basic_pitch.notes(frame_FP, onset_FP)] == [61]


def test_windows_overlap_and_are_joined_to_the_frames_of_the_clip():
  wave_T = np.arange(3 * basic_pitch.RATE, dtype=np.float32)
  windows_NT = basic_pitch.windows(wave_T)
  half = basic_pitch.OVERLAP_FRAMES // 2 * basic_pitch.HOP
  assert windows_NT.shape == (2, basic_pitch.WINDOW) and not windows_NT[0, :half].any()
  np.testing.assert_array_equal(windows_NT[0, half:], wave_T[: basic_pitch.WINDOW - half])
  np.testing.assert_array_equal(windows_NT[1, : 2 * half], windows_NT[0, -2 * half :])
  output_NFP = np.arange(2 * 172, dtype=float).reshape(2, 172, 1)
  joined_FP = basic_pitch.joined(output_NFP, len(wave_T))
  assert len(joined_FP) == 3 * 86
  assert joined_FP[0] == 15 and joined_FP[141] == 156 and joined_FP[142] == 172 + 15


def test_times_are_those_of_the_package():
  # Its documentation: frames of 11.6 ms, shortened by 10.3 ms after each window of 172 frames.
  found = basic_pitch.seconds(np.array([0.0, 171.0, 172.0, 344.0]))
  offset = 256 / 22050 * (172 - 43844 / 256) + 0.0018
  np.testing.assert_allclose(
    found, [0, 171 * SECONDS, 172 * SECONDS - offset, 344 * SECONDS - 2 * offset]
  )


def test_silence_and_very_short_clips_have_no_notes():
  assert basic_pitch.notes(*maps()).shape == (0, 4)
  assert basic_pitch.notes(np.ones((2, 88)), np.ones((2, 88))).shape == (0, 4)


def test_missing_packages_are_named(monkeypatch, tmp_path):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='basic-pitch is not installed: run `pip install --no-deps'):
    basic_pitch.transcriber()
  monkeypatch.setitem(sys.modules, 'onnxruntime', None)
  with pytest.raises(UserError, match='onnxruntime is not installed'):
    basic_pitch.transcriber(tmp_path / 'nmp.onnx')


@pytest.mark.oracle
def test_a_scale_is_transcribed():
  for package in ('basic_pitch', 'onnxruntime'):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f'{package} is not installed: the network is not tested')
  time_T = np.arange(6 * 16_000) / 16_000
  pitches = [60, 64, 67, 72, 69, 65]
  parts = [
    sum(
      np.sin(2 * np.pi * k * 440 * 2 ** ((pitch - 69) / 12) * time_T[:16_000]) / k**2
      for k in (1, 2, 3, 4)
    )
    * np.exp(-2 * time_T[:16_000])
    for pitch in pitches
  ]
  found_N4 = basic_pitch.transcriber()(0.2 * np.concatenate(parts), 16_000)
  for second, pitch in enumerate(pitches):
    near = np.abs(found_N4[:, 0] - second) < 0.06
    assert pitch in found_N4[near, 2]

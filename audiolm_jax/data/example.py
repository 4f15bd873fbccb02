"""Defines the entries of an example of a corpus or of encoded tokens.

A source is a sequence: `source[i]` is an Example, or None if it cannot be read. Every example has
'waveform' or tokens; other entries exist only if the corpus provides them.
"""

from typing import TypedDict

import numpy as np
from jaxtyping import Float, Int


class Example(TypedDict, total=False):
  """Holds one utterance: audio at the `sample_rate` of the source, tokens, labels.

  Fields:
    waveform: mono float32 in [-1, 1]; int16 in the detector's clips (`experiments.inputs`).
    noise: noise to be added to the waveform, of the same length. From `data.noise`.
    semantic: semantic tokens at `semantic_rate`. From token shards (`experiments.encode`).
    codes: codec codes of all levels, F = frames_per_semantic * S. From token shards.
    music_1, music_21, ...: tokens of each second, of the mean of that number of windows of a joint
      embedding of audio and texts (`stages.base.Condition`). From token shards.
    speaker: number of the voice; -1 if unknown. From folders of speakers, Libri-Light, LibriSpeech,
      TFDS, Debian's voices, synthesized speech, and token shards of these.
    phones: the phone at the centre of each frame at 25 Hz, as an index into the source's
      `phone_names`. From synthesized speech, labelled recordings of Debian's voices, and token
      shards of these.
    texts: UTF-8 bytes of each caption of the audio, padded with PAD, as `data.texts.encode` makes
      them; missing captions are all PAD.
    text: the spoken text. From synthesized speech, and Debian's voices if known.
    words: (word, first sample, end sample) of each word. From synthesized speech.
    kind: 'counting' or 'sentences'. From synthesized speech.
    label: class for a classifier: the voice, from 0 (`experiments.sources.held_out_voices`), the
      spoken number (`metrics.speech.number_windows`), or original or generated (the detector's
      clips).
    start: end of the prompt in samples, where generated audio starts. From the detector's clips.
    unseen_texts: as `texts`, with words that no training text has. From held-out splits of
      `data.music`.
    instrument, register, dynamics, texture, tempo, mode: indices into the values of
      `arrangements.ATTRIBUTES`; tonic: pitch class, C is 0; setting: index into
      `arrangements.SETTINGS`. From `data.music`.
    notes: onset and end in seconds, MIDI pitch, and velocity of each note. From `data.music`.
    tune: name of the score. From `data.music`.
  """

  waveform: Float[np.ndarray, 'T']
  noise: Float[np.ndarray, 'T']
  semantic: Int[np.ndarray, 'S']
  codes: Int[np.ndarray, 'F Q']
  speaker: Int[np.ndarray, '']
  phones: Int[np.ndarray, 'S']
  texts: Int[np.ndarray, 'C L']
  text: str
  words: list[tuple[str, int, int]]
  kind: str
  label: Int[np.ndarray, '']
  start: Int[np.ndarray, '']
  unseen_texts: Int[np.ndarray, 'C L']
  instrument: Int[np.ndarray, '']
  register: Int[np.ndarray, '']
  dynamics: Int[np.ndarray, '']
  texture: Int[np.ndarray, '']
  tempo: Int[np.ndarray, '']
  mode: Int[np.ndarray, '']
  tonic: Int[np.ndarray, '']
  setting: Int[np.ndarray, '']
  notes: Float[np.ndarray, 'N 4']
  tune: str

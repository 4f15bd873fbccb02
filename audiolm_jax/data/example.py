"""What one example of a corpus, or of encoded tokens, may hold.

A source is a sequence: `source[i]` is an Example, or None where it cannot be read. Every source
gives 'waveform' or the tokens made of it; everything else only where the corpus tells it.
"""

from typing import TypedDict

import numpy as np
from jaxtyping import Float, Int


class Example(TypedDict, total=False):
  """One utterance.

  Audio, at the `sample_rate` of its source:
    waveform: mono float32, full scale -1 to 1. From every corpus; in forgeries as int16.
    noise: of the same length, to be added to the waveform; zeros: none. From `data.noise`.
  Tokens, from token shards (`experiments.encode`):
    semantic: semantic tokens, one each 1 / semantic_rate seconds.
    codes: codec codes, F = frames_per_semantic * S, all levels.
  Labels:
    speaker: a number that is the same in all examples of a voice; -1: unknown. From folders whose
      subfolders are speakers, Libri-Light, LibriSpeech, TFDS, Debian's voices, synthesized speech,
      and token shards of these.
    phones: at 25 Hz, the phone at the centre of each frame, an index into the source's
      `phone_names`. From synthesized speech and labelled recordings of Debian's voices, and token
      shards of these.
    text: what is said. From synthesized speech, and Debian's voices where it is known.
    words: (word, first sample, end sample) of each word. From synthesized speech.
    kind: 'counting' or 'sentences'. From synthesized speech.
    label: the class that a classifier learns: of `sources.held_out_voices` the voice counted from
      0, of `metrics.speech.number_windows` the number said, of forgeries `stages.detector`'s.
    start: the sample at which the prompt ends. From forgeries.
  """

  waveform: Float[np.ndarray, 'T']
  noise: Float[np.ndarray, 'T']
  semantic: Int[np.ndarray, 'S']
  codes: Int[np.ndarray, 'F Q']
  speaker: Int[np.ndarray, '']
  phones: Int[np.ndarray, 'S']
  text: str
  words: list[tuple[str, int, int]]
  kind: str
  label: Int[np.ndarray, '']
  start: Int[np.ndarray, '']

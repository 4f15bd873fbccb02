"""Measures spoken content: recognized numbers, counting, and word error rates.

The recognizer is the log-mel CNN of `stages.classifier` over short windows with eleven classes: ten
numbers, and NO_NUMBER for windows centred between words. It is trained on codec audio of the
training voices; its error rate on held-out voices is reported with every score. Other recognizers
are functions from waveform [T] and rate (Hz) to text, see `error_rates`.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from audiolm_jax import audio
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import extras

NUMBERS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
NO_NUMBER = len(NUMBERS)


def counting_step(words: Sequence[str]) -> int:
  """Returns the step, modulo 10, between neighbouring number words.

  Args:
    words: at least two number words.

  Raises:
    UserError: if the steps differ.
  """
  steps = set(_steps([NUMBERS.index(word) for word in words]))
  if len(steps) != 1:
    raise UserError(f'{" ".join(words)!r} does not count in equal steps')
  return steps.pop()


def windows(wave_T: Float[np.ndarray, 'T'], length: int, hop: int) -> Float[np.ndarray, 'N W']:
  """Returns windows of `length` samples every `hop` samples, zero-padded outside the waveform.

  The first window is centred on the first sample.

  Args:
    wave_T: waveform.
    length: samples per window W.
    hop: samples from one window to the next.
  """
  padded_T = np.pad(wave_T, (length // 2, length))
  return np.stack([padded_T[start : start + length] for start in range(0, len(wave_T), hop)])


def number_windows(
  wave_T: Float[np.ndarray, 'T'], words: Sequence[tuple[str, int, int]], length: int
) -> list[tuple[np.ndarray, int]]:
  """Returns labelled windows of a counting utterance: one per word, and one after each word.

  Args:
    wave_T: waveform.
    words: (word, first sample, end sample) of each word.
    length: window length in samples.

  Returns:
    Pairs of a window [length] centred on a word, or on the gap after it, and its class.
  """
  padded_T = np.pad(wave_T, (length // 2, length))
  labelled = []
  for n, (word, start, end) in enumerate(words):
    labelled.append((padded_T[(start + end) // 2 :][:length], NUMBERS.index(word)))
    following = words[n + 1][1] if n + 1 < len(words) else len(wave_T)
    labelled.append((padded_T[(end + following) // 2 :][:length], NO_NUMBER))
  return labelled


def decode_numbers(
  log_probs_NC: Float[np.ndarray, 'N C'], switch_penalty: float = 4.0
) -> list[int]:
  """Returns the numbers on the best path (Viterbi) through the windows.

  Each change of class costs `switch_penalty` nats. Repeated classes are merged and NO_NUMBER is
  removed.

  Args:
    log_probs_NC: log-probabilities of the classes in each window, in nats.
    switch_penalty: cost of a change of class, in nats.
  """
  num_windows, num_classes = log_probs_NC.shape
  if not num_windows:
    return []
  score_C, came_from_NC = log_probs_NC[0].copy(), np.zeros((num_windows, num_classes), int)
  for n in range(1, num_windows):
    best = int(score_C.argmax())
    switch = score_C[best] - switch_penalty > score_C
    came_from_NC[n] = np.where(switch, best, np.arange(num_classes))
    score_C = np.maximum(score_C, score_C[best] - switch_penalty) + log_probs_NC[n]
  path = [int(score_C.argmax())]
  for n in range(num_windows - 1, 0, -1):
    path.append(int(came_from_NC[n, path[-1]]))
  path.reverse()
  return [c for n, c in enumerate(path) if c != NO_NUMBER and (n == 0 or path[n - 1] != c)]


def grammar_scores(heard: Sequence[Sequence[int]], steps: Sequence[int]) -> dict[str, float]:
  """Returns how well the numbers recognized in each clip count by the step of its prompt.

  Args:
    heard: recognized numbers of each clip.
    steps: counting step of each clip's prompt.

  Returns:
    obeys: share of clips with at least two numbers whose neighbours all differ by the step.
    right_steps: share of all neighbouring pairs that differ by the step (chance: 0.1).
    numbers: mean count of numbers per clip.
  """
  right = [
    [found == step for found in _steps(values)] for values, step in zip(heard, steps, strict=True)
  ]
  pairs = [pair for clip in right for pair in clip]
  return {
    'obeys': float(np.mean([bool(clip) and all(clip) for clip in right])),
    'right_steps': float(np.mean(pairs)) if pairs else 0.0,
    'numbers': float(np.mean([len(values) for values in heard])),
  }


def word_error_rate(heard: Sequence[Sequence[int]], said: Sequence[Sequence[int]]) -> float:
  """Returns insertions, deletions and substitutions per spoken number, over all clips.

  Args:
    heard: recognized numbers of each clip.
    said: spoken numbers of each clip.
  """
  return sum(map(_edits, heard, said)) / max(1, sum(map(len, said)))


class ErrorRates(NamedTuple):
  """Holds insertions, deletions and substitutions per reference word and character.

  The rates may exceed 1.
  """

  words: float
  characters: float


def error_rates(
  recognize: Callable[[np.ndarray, int], str],
  waves: Sequence[np.ndarray],
  texts: Sequence[str],
  sample_rate: int,
) -> ErrorRates:
  """Returns the word and character error rates of a recognizer.

  Case and punctuation are ignored.

  Args:
    recognize: function (waveform [T], rate in Hz) -> text.
    waves: waveform [T] of each clip.
    texts: reference text of each clip.
    sample_rate: of the waveforms, in Hz.

  Raises:
    UserError: if a clip has no text, or jiwer is not installed.
  """
  jiwer = extras.load('jiwer')
  if len(waves) != len(texts):
    raise UserError(f'{len(waves)} clips and {len(texts)} texts: give one text for each clip')
  said = [_plain(text) for text in texts]
  if silent := [number for number, text in enumerate(said) if not text]:
    raise UserError(f'clips {silent} have no text: leave them out')
  heard = [_plain(recognize(wave_T, sample_rate)) for wave_T in waves]
  return ErrorRates(float(jiwer.wer(said, heard)), float(jiwer.cer(said, heard)))


def pocketsphinx_numbers() -> Callable[[np.ndarray, int], str]:
  """Returns a recognizer of strings of the ten NUMBERS: pocketsphinx with its English model.

  It is independent of the networks trained here, but small and old, with many errors on synthesized
  voices.

  Raises:
    UserError: if pocketsphinx is not installed.
  """
  sphinx = extras.load('pocketsphinx')
  rate = 16_000  # Hz, of the acoustic model
  # cmn='batch' normalizes each clip separately; otherwise results depend on earlier clips.
  decoder = sphinx.Decoder(samprate=rate, cmn='batch', lm=None, loglevel='FATAL')
  decoder.add_jsgf_string(
    'numbers', f'#JSGF V1.0; grammar g; public <numbers> = ({" | ".join(NUMBERS)})+;'
  )
  decoder.activate_search('numbers')

  def recognize(wave_T: np.ndarray, sample_rate: int) -> str:
    [wave_T] = audio.resample(np.asarray(wave_T, np.float32)[None], sample_rate, rate)
    decoder.start_utt()
    decoder.process_raw(
      np.round(np.clip(wave_T, -1, 1) * 32767).astype('<i2').tobytes(),
      no_search=False,
      full_utt=True,
    )
    decoder.end_utt()
    found = decoder.hyp()
    return '' if found is None else found.hypstr

  return recognize


def _plain(text: str) -> str:
  """Returns the lower-case words of a text, separated by single spaces."""
  return ' '.join(re.findall(r"[\w']+", text.lower()))


def _edits(one: Sequence[int], other: Sequence[int]) -> int:
  row = list(range(len(other) + 1))
  for i, a in enumerate(one, 1):
    previous, row = row, [i]
    for j, b in enumerate(other, 1):
      row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a != b)))
  return row[-1]


def _steps(values: Sequence[int]) -> list[int]:
  return [(after - before) % len(NUMBERS) for before, after in zip(values, values[1:])]

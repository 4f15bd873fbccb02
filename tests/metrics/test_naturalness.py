import socket
import sys

import numpy as np
import pytest

from audiolm_jax.data import synthesized
from audiolm_jax.metrics import naturalness


@pytest.fixture(scope='module')
def speech():
  config = synthesized.Config(
    num_train_voices=1, num_test_voices=1, train_minutes=0.1, test_minutes=0.1
  )
  return synthesized.examples(config, 'train')[0]['waveform']


def test_more_noise_sounds_less_natural_and_no_network_is_asked(speech, monkeypatch):
  monkeypatch.setattr(socket.socket, 'connect', lambda *_: pytest.fail('the network was asked'))
  noise_T = np.random.default_rng(0).normal(size=len(speech)).astype(np.float32)
  found = [naturalness.dnsmos(speech + scale * noise_T, 16_000) for scale in (0, 0.02, 0.2)]
  for scores in ([f.overall for f in found], [f.p808 for f in found]):
    assert (
      scores == sorted(scores, reverse=True) and 5 > scores[0] > scores[2] + 0.5 and scores[2] >= 1
    ), found


def test_what_has_no_score_says_why(speech):
  assert naturalness.dnsmos(np.zeros(16_000, np.float32), 16_000).status == 'silent'
  assert naturalness.dnsmos(speech[:0], 16_000).status == 'too short'
  assert naturalness.dnsmos(np.append(speech, np.float32(np.nan)), 16_000) == (
    None,
    None,
    'not finite',
  )


def test_a_missing_package_is_named(speech, monkeypatch):
  monkeypatch.setitem(sys.modules, 'speechmos', None)
  monkeypatch.setitem(sys.modules, 'speechmos.dnsmos', None)
  with pytest.raises(ValueError, match=r"pip install -e '\.\[eval\]'"):
    naturalness.dnsmos(speech, 16_000)

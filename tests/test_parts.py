"""Clips of any length as rows of few lengths: the values of the whole clip, in order, once each."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from audiolm_jax import parts
from audiolm_jax.nn.frame_rate import FrameRate
from audiolm_jax.nn.seanet import SEANet
from audiolm_jax.training import sharding
from experiments import sources
from tests import toy_codec, toys

CUT = parts.Cut(frame_length=2, lengths=(3, 6, 12), context=2)


def test_every_frame_is_taken_once_with_context_on_both_sides():
  for silence in (0, 5):
    cut = parts.Cut(frame_length=2, lengths=(3, 6, 12), context=2, silence=silence)
    for num_samples in range(90):
      placed = cut.parts(num_samples)
      frames, needed = -(-num_samples // 2), -(-(num_samples + silence) // 2)
      taken = [frame for part in placed for frame in range(part.first, part.end)]
      assert taken == list(range(frames))
      for part in placed:
        assert part.length in cut.lengths
        row = range(part.start, part.start + part.length)
        for frame in range(part.first, part.end):
          wanted = range(max(frame - 2, 0), min(frame + 3, needed))
          assert wanted[0] in row and wanted[-1] in row
      if len(placed) > 1:  # no padding, and no more rows than needed
        assert placed[-1].start + 12 == needed and needed > 12 + 8 * (len(placed) - 2)


def test_rows_that_are_all_context_are_refused():
  with pytest.raises(ValueError, match='rows of 4 frames leave nothing between two contexts of 2'):
    parts.Cut(frame_length=1, lengths=(2, 4), context=2)


def test_clips_come_in_order_with_the_values_of_the_whole_clip():
  """Moving sums of 5 samples, of clips of up to 80 frames; few shapes, and few clips are held."""
  shapes, read = set(), []

  def sums(wave_BT):
    shapes.add(wave_BT.shape)
    padded_BT = np.pad(wave_BT, ((0, 0), (2, 2)))
    moving_BT = sum(padded_BT[:, i : i + wave_BT.shape[1]] for i in range(5))
    return moving_BT, moving_BT[:, ::2]

  random = np.random.default_rng(0)
  waves = [random.normal(size=size).astype(np.float32) for size in random.integers(0, 160, 60)]
  clips = (read.append(index) or (index, wave_T) for index, wave_T in enumerate(waves))
  found = parts.mapped(sums, clips, CUT, batch_size=3, rates=(2, 1))
  for index, (item, (moving_T, halved_F)) in enumerate(found):
    assert item == index and len(read) - index <= 4 * 3 + 2
    padded_T = np.pad(waves[index], 2)
    expected_T = sum(padded_T[i : i + len(waves[index])] for i in range(5))
    np.testing.assert_allclose(moving_T[: len(expected_T)], expected_T, atol=1e-5)
    np.testing.assert_array_equal(halved_F, moving_T[::2])
  assert index == 59 and shapes == {(3, 6), (3, 12), (3, 24)}


def test_a_batch_is_computed_while_the_one_before_is_read():
  class Later:
    def __init__(self, number):
      self.number = number

    def __array__(self, dtype=None, copy=None):
      events.append(f'read {self.number}')
      return np.zeros((2, 3), np.float32)

  events, numbers = [], itertools.count()
  start = lambda wave_BT: [Later(number := next(numbers)), events.append(f'start {number}')][:1]
  list(parts.mapped(start, ((None, np.ones(6)) for _ in range(6)), CUT, batch_size=2))
  assert events == ['start 0', 'start 1', 'read 0', 'start 2', 'read 1', 'read 2']


@pytest.mark.parametrize(
  'network',
  [
    FrameRate(
      hop_length=32, window_length=64, overlap=16, width=8, num_blocks=2, kernel_size=3, expansion=1
    ),
    SEANet(strides=(2, 4), encoder_channels=2, decoder_channels=2),
    SEANet(strides=(2, 4), stem_stride=4, encoder_channels=2, decoder_channels=2),
  ],
)
def test_an_encoder_reads_as_far_back_as_it_says(network):
  """The gradient of a frame's embedding vanishes before its past, and not within it."""
  config = dataclasses.replace(toy_codec.CONFIG, network=network)
  hop, past = network.hop_length, network.encoder_past
  encoder = network.encoder(4, 16_000, np.float32)
  rng = np.random.default_rng(0)
  wave_1T = rng.normal(size=(1, (past + 4) * hop)).astype(np.float32)
  shapes = sharding.unbox(jax.eval_shape(encoder.init, jax.random.key(0), wave_1T))['params']
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
  last = lambda wave_1T: encoder.apply({'params': params}, wave_1T)[0, -1].sum()
  gradient_FH = jax.jit(jax.grad(last))(wave_1T)[0].reshape(-1, hop)
  reads = [bool(abs(frame_H).max() > 0) for frame_H in gradient_FH]
  assert reads == [False] * 3 + [True] * (past + 1)
  assert config.codec().past == past


def test_a_long_clip_gets_the_codes_of_the_whole_clip(monkeypatch):
  """Codes are equal; of the semantic tokens, whose encoder reads whole rows, nearly all are."""
  monkeypatch.setattr(sources, 'ROW_SECONDS', (2.0, 6.0))
  tokenizer = toys.models().tokenizer
  wave_T = toys.noise(17.3)
  cut = sources.row_cut(tokenizer.codec, tokenizer.spec)
  ratio = tokenizer.frames_per_semantic
  rows = lambda wave_BT: (tokenizer.codec.encode(wave_BT), tokenizer.semantic.encode(wave_BT))
  [(_, (codes_FQ, semantic_S))] = parts.mapped(rows, [(None, wave_T)], cut, 4, (ratio, 1))
  whole_FQ = np.asarray(tokenizer.codec.encode(wave_T[None]))[0]
  np.testing.assert_array_equal(codes_FQ[: len(whole_FQ)], whole_FQ)
  assert len(codes_FQ) == ratio * len(semantic_S) and len(codes_FQ) - len(whole_FQ) < ratio
  whole_S = np.asarray(tokenizer.semantic.encode(wave_T[None]))[0]
  agree = np.mean(semantic_S[: len(whole_S)] == whole_S)
  assert agree > 0.9, agree

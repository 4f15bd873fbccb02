"""ABX beside ZeroSpeech's own program, draws included (`make test-abx`; zerospeech-libriabx2 needs
torch).
"""

import sys
import types

import numpy as np
import pytest

from audiolm_jax.data import zerospeech
from audiolm_jax.metrics import abx

pytestmark = [
  pytest.mark.oracle,
  # zerospeech-libriabx2 makes its sparse tensors in a way that torch no longer likes.
  pytest.mark.filterwarnings(r'ignore:torch\.sparse\.SparseTensor:UserWarning'),
]

RATE = 50.0  # Hz
SEED = 3459


def made_corpus(folder, *, tokens: bool):
  """Writes an item file and one .npy for each of its files; returns items, features by file."""
  random = np.random.default_rng(7)
  items, features = [], {}
  for n in range(16):
    file, speaker, time = f'file{n}', f'speaker{n % 4}', 0.1
    num_frames = 320
    if tokens:
      features[file] = np.eye(6, dtype=np.float32)[random.integers(0, 6, num_frames)]
    else:
      features[file] = random.normal(size=(num_frames, 12)).astype(np.float32)
      features[file][random.random(num_frames) < 0.02] = 0
    for _ in range(16):
      phone, before, after = (
        str(name) for name in (random.integers(0, 3), *random.integers(0, 2, 2))
      )
      length = random.uniform(0.02, 0.5)
      items.append(
        zerospeech.Item(
          file, round(time, 4), round(time + length, 4), phone, before, after, speaker
        )
      )
      time += random.uniform(0.05, 0.3)
  zerospeech.write_items(folder / 'made.item', items)
  for file, frames_FD in features.items():
    np.save(folder / f'{file}.npy', frames_FD)
  return items, features


def theirs(folder, features, speaker, **limits):
  # only reads audio, which there is none of
  sys.modules.setdefault('torchaudio', types.ModuleType('torchaudio'))
  from zrc_abx2 import eval_ABX
  from zrc_abx2.ABX_src.models import Pooling

  # their draws depend on this order
  files = [(file, str(folder / f'{file}.npy')) for file in features]
  scores = eval_ABX.EvalABX()._ABX(
    Pooling.NONE,
    SEED,
    eval_ABX._load_npy,
    str(folder / 'made.item'),
    files,
    'cosine',
    RATE,
    [speaker],
    ['within'],
    **limits,
  )
  return scores[f'{speaker}-within']


@pytest.mark.parametrize('tokens', [False, True])
@pytest.mark.parametrize('speaker', abx.SPEAKERS)
@pytest.mark.parametrize('limits', [(1000, 1000), (3, 2)])
def test_equals_zerospeech(tmp_path, tokens, speaker, limits):
  items, features = made_corpus(tmp_path, tokens=tokens)
  read = zerospeech.read_items(tmp_path / 'made.item')
  assert read == items
  ours = (
    features
    if not tokens
    else {file: frames.argmax(axis=1)[:, None] for file, frames in features.items()}
  )
  result = abx.score(
    [abx.cut(ours[item.file], item.onset, item.offset, RATE) for item in items],
    [item.phone for item in items],
    [item.context for item in items],
    [item.speaker for item in items],
    speaker=speaker,
    distance='identity' if tokens else 'angular',
    max_group=limits[0],
    max_speakers=limits[1],
    seed=SEED,
  )
  expected = theirs(tmp_path, features, speaker, max_size_group=limits[0], max_x_across=limits[1])
  assert 0.3 < expected < 0.7
  assert result.error == pytest.approx(expected, abs=1e-6)

"""CTC recognizers beside `transformers`.

Random weights at the real configuration, narrow; texts beside its tokenizer.
"""

import json
import re

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from audiolm_jax.pretrained import ctc
from tests.pretrained.parity import TOLERANCE, padded, randomize_transformer, report

pytestmark = pytest.mark.oracle

# of facebook/wav2vec2-base-960h
SYMBOLS = ['<pad>', '<s>', '</s>', '<unk>', '|', *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
CLASSES = {
  'wav2vec2': (transformers.Wav2Vec2ForCTC, transformers.Wav2Vec2Config),
  'hubert': (transformers.HubertForCTC, transformers.HubertConfig),
}


@pytest.fixture(scope='module', params=CLASSES)
def pair(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  make_model, make_config = CLASSES[request.param]
  config = make_config(
    num_hidden_layers=1,
    hidden_size=96,
    intermediate_size=384,
    conv_dim=[32] * 7,
    vocab_size=len(SYMBOLS),
    pad_token_id=0,
  )
  model = randomize_transformer(make_model(config))
  with torch.no_grad():  # what all frames have in common must not drown what they say
    model.lm_head.bias -= model(torch.tensor(padded([16_000]))).logits.mean(dim=(0, 1))
  model.save_pretrained(folder)
  (folder / 'vocab.json').write_text(
    json.dumps({symbol: number for number, symbol in enumerate(SYMBOLS)})
  )
  return model, folder


def test_logits_of_every_frame(pair):
  model, folder = pair
  config, variables = ctc.from_folder(folder)
  lengths = [16_000, 7_777]
  wave_BT = padded(lengths)
  got = jax.jit(lambda *args: ctc.logits(config, variables, *args))(
    wave_BT, np.array(lengths, np.int32)
  )
  errors = []
  for row, length in enumerate(lengths):
    with torch.no_grad():
      want = model(torch.tensor(wave_BT[row : row + 1, :length])).logits[0].numpy()
    assert np.std(want) > 0.1
    errors.append(np.abs(np.asarray(got)[row, : len(want)] - want).max())
  report(f'{config.name} with a CTC head, narrow, logits, T={lengths}', max(errors))
  assert max(errors) < TOLERANCE


def test_a_clip_is_heard_as_the_tokenizer_reads_its_best_path(pair):
  model, folder = pair
  tokenizer = transformers.Wav2Vec2CTCTokenizer(folder / 'vocab.json')
  [wave_T] = padded([20_321])
  with torch.no_grad():
    best_S = model(torch.tensor(wave_T[None])).logits[0].argmax(-1)
  want = re.sub('<.*?>', '', tokenizer.decode(best_S))
  assert len(want) > 10
  assert ctc.recognizer(folder)(wave_T, 16_000) == ' '.join(want.split())


def test_paths_are_read_as_the_tokenizer_reads_them(pair):
  _, folder = pair
  config, _ = ctc.from_folder(folder)
  tokenizer = transformers.Wav2Vec2CTCTokenizer(folder / 'vocab.json')
  random = np.random.default_rng(0)
  for _ in range(50):
    # <s> and the like it would leave in the text
    drawn_N = random.choice([0, *range(4, len(SYMBOLS))], 30)
    path_S = np.repeat(drawn_N, random.integers(1, 4, 30))
    assert ctc.text(config, path_S.tolist()) == ' '.join(tokenizer.decode(path_S).split())

"""CLAP beside `transformers`: its feature extractor, tokenizer and both towers of `ClapModel`, with
random weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from audiolm_jax.pretrained import byte_pairs, clap, clap_audio, hub
from tests.pretrained import vocabulary
from tests.pretrained.parity import TOLERANCE, noise, report

pytestmark = pytest.mark.oracle
CLIP, VOCABULARY = clap_audio.CLIP, 300
NARROW = {
  'projection_dim': 24,
  'audio_config': {
    'patch_embeds_hidden_size': 16,
    'hidden_size': 128,
    'num_attention_heads': [2, 2, 4, 4],
    'depths': [2, 2, 3, 2],
  },
  'text_config': {
    'hidden_size': 48,
    'num_hidden_layers': 12,
    'num_attention_heads': 4,
    'intermediate_size': 96,
    'vocab_size': VOCABULARY,
  },
}
LARGER = {
  'audio_config': {'patch_embeds_hidden_size': 128, 'hidden_size': 1024, 'depths': [2, 2, 12, 2]}
}
BAND = 20.0  # decibels, the deviation of a mel band in training, about: the model divides by it


def extractor():
  """As the published preprocessor_config.json."""
  return transformers.ClapFeatureExtractor(
    truncation='rand_trunc', padding='repeatpad', frequency_min=50
  )


def randomize(model):
  """Draws weights, norms and the moments of the mel bands included; linear layers keep the size of
  their input.
  """
  torch.manual_seed(0)
  with torch.no_grad():
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
      if name.endswith('running_mean'):
        tensor.normal_(-30, 10)
      elif name.endswith('running_var'):
        tensor.uniform_(0.5 * BAND**2, 1.5 * BAND**2)
      elif name.endswith('bias'):
        tensor.normal_(0, 0.1)
      elif 'norm' in name.lower() and name.endswith('weight'):
        tensor.uniform_(0.5, 1.5)
      elif name.startswith('logit_scale'):
        tensor.fill_(2.0 if name.endswith('a') else 3.0)
      elif tensor.is_floating_point():
        tensor.normal_(0, 0.5 if name.endswith('table') else tensor[0].numel() ** -0.5)
  return model.eval()


class Pair(NamedTuple):
  """The original, and ours, compiled: audio and text give (the tower's vector, its hidden states,
  the embedding).
  """

  model: Any
  config: clap.Config
  variables: Any
  audio: Callable
  text: Callable


def pair(folder, options) -> Pair:
  model = randomize(transformers.ClapModel(transformers.ClapConfig(**options)))
  model.save_pretrained(folder)
  ours = hub.from_pretrained(folder)
  audio = jax.jit(
    lambda wave_BT: (*clap.window_states(*ours, wave_BT), clap.audio_embeddings(*ours, wave_BT))
  )
  text = jax.jit(
    lambda tokens_BL: (*clap.text_states(*ours, tokens_BL), clap.text_embeddings(*ours, tokens_BL))
  )
  return Pair(model, *ours, audio, text)


@pytest.fixture(scope='module')
def narrow(tmp_path_factory):
  return pair(tmp_path_factory.mktemp('clap'), NARROW)


def features(wave_BT):
  return extractor()(
    list(np.asarray(wave_BT, np.float64)), sampling_rate=48_000, return_tensors='pt'
  )['input_features']


def texts(vocab_size, length=23, batch=4):
  """Returns token ids of texts of several lengths, the longest and the empty one included, with
  padding.
  """
  rng = np.random.default_rng(length)
  tokens_BL = rng.integers(4, vocab_size, (batch, length))
  for row, size in enumerate(np.linspace(length, 2, batch).astype(int)):
    tokens_BL[row, size:] = 1
    tokens_BL[row, [0, size - 1]] = 0, 2
  return tokens_BL.astype(np.int32)


def compare_audio(pair, wave_BT, what):
  """Returns our embeddings, after comparing them and every hidden state with what the original
  makes of these clips.
  """
  inputs = features(wave_BT).float()
  with torch.no_grad():
    want = pair.model.audio_model(inputs, output_hidden_states=True)
    want_BD = pair.model.get_audio_features(inputs).pooler_output.numpy()
  mean_BD, states, got_BD = pair.audio(clap.filled(jnp.asarray(wave_BT)))
  assert len(states) == len(want.hidden_states) == len(pair.config.audio.depths) + 1
  want_states = [state.permute(0, 2, 3, 1).numpy() for state in want.hidden_states]
  errors = [
    np.abs(np.asarray(ours) - theirs).max()
    for ours, theirs in zip(states, want_states, strict=True)
  ]
  errors.append(np.abs(mean_BD - want.pooler_output.numpy()).max())
  errors.append(np.abs(got_BD - want_BD).max())
  report(
    f'{what}, T={wave_BT.shape[1]}, {len(states)} hidden states / embedding',
    max(errors[:-1]),
    errors[-1],
  )
  assert max(errors) < TOLERANCE
  assert all(np.std(state) > 0.1 for state in want_states)
  return got_BD


def compare_texts(pair, tokens_BL, what):
  """Returns our embeddings, after comparing them and every hidden state with what the original
  makes of these texts.
  """
  inputs = {
    'input_ids': torch.tensor(tokens_BL).long(),
    'attention_mask': torch.tensor(tokens_BL != 1).long(),
  }
  with torch.no_grad():
    want = pair.model.text_model(**inputs, output_hidden_states=True)
    want_BD = pair.model.get_text_features(**inputs).pooler_output.numpy()
  vector_BD, states, got_BD = pair.text(tokens_BL)
  assert len(states) == len(want.hidden_states) == pair.config.text.num_layers + 1
  inside_BL = tokens_BL != 1
  errors = [
    np.abs(np.asarray(ours) - theirs.numpy())[inside_BL].max()
    for ours, theirs in zip(states, want.hidden_states, strict=True)
  ]
  errors.append(np.abs(vector_BD - want.pooler_output.numpy()).max())
  errors.append(np.abs(got_BD - want_BD).max())
  report(
    f'{what}, L={tokens_BL.shape[1]}, {len(states)} hidden states / embedding',
    max(errors[:-1]),
    errors[-1],
  )
  assert max(errors) < TOLERANCE
  assert all(np.std(state.numpy()) > 0.1 for state in want.hidden_states)
  return got_BD


def waves():
  """By name: ten seconds, and how far decibels may differ. Speech-like pulses have nearly empty
  upper bands.
  """
  time_T = np.arange(CLIP) / 48_000
  rng = np.random.default_rng(0)
  noise_T = rng.standard_normal(CLIP)
  tone_T = 0.5 * np.sin(2 * np.pi * 440 * time_T)
  voice_T = sum(np.sin(2 * np.pi * 120 * n * time_T + n) / n**2 for n in range(1, 30))
  voice_T = 0.2 * voice_T * (1 + np.sin(2 * np.pi * 3 * time_T))
  return {
    'noise': (0.3 * noise_T, TOLERANCE),
    'quiet noise': (1e-3 * noise_T, TOLERANCE),
    'silence': (np.zeros(CLIP), TOLERANCE),
    # An FFT in float32 leaves 1e-8 of the loudest frequency in all the others; theirs is in
    # float64.
    'tone in noise of -80 dB': (tone_T * (time_T > 0.4) + 1e-4 * noise_T, 0.05),
    'voice in noise of -80 dB': (voice_T + 1e-4 * noise_T, 0.05),
    'tone alone': (tone_T, 0.1),
  }


@pytest.mark.parametrize('name', waves())
def test_log_mel_and_what_the_model_makes_of_it(narrow, name):
  wave_T, decibels = waves()[name]
  wave_BT = wave_T.astype(np.float32)[None]
  want_FM = features(wave_BT)[0, 0].numpy()
  got_FM = np.asarray(
    jax.jit(lambda wave_BT: clap_audio.log_mel(narrow.config.audio, wave_BT))(wave_BT)
  )[0]
  assert got_FM.shape == want_FM.shape == (1001, 64)
  errors_FM = np.abs(got_FM - want_FM)
  with torch.no_grad():
    want_BD = narrow.model.get_audio_features(
      torch.tensor(want_FM)[None, None].float()
    ).pooler_output.numpy()
  got_BD = narrow.audio(np.repeat(wave_BT, 2, axis=0))[-1][:1]
  errors = (errors_FM.max(), np.sqrt(np.mean(errors_FM**2)), np.abs(got_BD - want_BD).max())
  report(f'CLAP, log-mel in dB, largest / root mean square / embedding, {name}', *errors)
  assert errors[0] < decibels and errors[2] < TOLERANCE


@pytest.mark.parametrize('num_samples', [CLIP, CLIP - 1, 160_001, 48_000, 719])
def test_audio_tower(narrow, num_samples):
  got_BD = compare_audio(narrow, noise(num_samples), 'CLAP, narrow, audio')
  assert np.abs(got_BD[0] - got_BD[1]).max() > 1e-3


def test_a_long_clip_is_the_mean_of_what_the_original_makes_of_its_windows(narrow):
  loudness_T = np.repeat([1, 0.01, 0.5, 0.002] * 3, 48_000)[: CLIP + 77_777]
  wave_BT = (noise(len(loudness_T), batch=1) * loudness_T).astype(np.float32)
  windows = np.stack([wave_BT[0, start : start + CLIP] for start in (0, 48_000)])
  with torch.no_grad():
    each_ND = narrow.model.get_audio_features(features(windows).float()).pooler_output.numpy()
  assert np.abs(each_ND[0] - each_ND[1]).max() > 1e-3
  mean_D = each_ND.mean(axis=0)
  got_BD = jax.jit(lambda wave_BT: clap.audio_embeddings(narrow.config, narrow.variables, wave_BT))(
    wave_BT
  )
  np.testing.assert_allclose(got_BD[0], mean_D / np.linalg.norm(mean_D), atol=TOLERANCE)


@pytest.mark.parametrize('length, batch', [(2, 1), (23, 4), (512, 2)])
def test_text_tower(narrow, length, batch):
  got_BD = compare_texts(narrow, texts(VOCABULARY, length, batch), 'CLAP, narrow, text')
  assert batch == 1 or np.abs(got_BD[0] - got_BD[1]).max() > 1e-3


def test_logits(narrow):
  wave_BT, tokens_BL = noise(CLIP), texts(VOCABULARY)
  with torch.no_grad():
    want = narrow.model(
      input_features=features(wave_BT).float(),
      input_ids=torch.tensor(tokens_BL).long(),
      attention_mask=torch.tensor(tokens_BL != 1).long(),
    ).logits_per_audio.numpy()
  got = np.asarray(
    clap.logits(narrow.variables, narrow.audio(wave_BT)[-1], narrow.text(tokens_BL)[-1])
  )
  assert got.shape == want.shape == (2, 4) and np.std(want) > 0.1
  report('CLAP, narrow, logits', np.abs(got - want).max())
  np.testing.assert_allclose(got, want, atol=TOLERANCE)


def random_texts(count=300):
  """Letters, numbers, marks, spaces and controls of many scripts in any order, some of more than 16
  bits.
  """
  rng = np.random.default_rng(0)
  alphabet = [
    *"the sound of a 'piano', 12%?! \n\t_-'s'll'VE",
    *'éÅßøñ',
    *'音楽のギター',
    *'гитара',
    *'٣٤५½²Ⅷ',
    *'\u00a0\u2003\u3000\x85\x1c\x1f',
    *'e\u0301',
    *'🎸👩‍🎤',
    *'\u200b\ufeff\x00\x7f\xad',
  ]
  return [''.join(rng.choice(alphabet, rng.integers(0, 30))) for _ in range(count)]


def test_tokenizer(tmp_path):
  """With a vocabulary learned from these texts, so that joins of every kind are made."""
  tokenizers = pytest.importorskip('tokenizers')
  learned = tokenizers.ByteLevelBPETokenizer()
  sentences = [
    "Calm piano of the '80s, with a singer who doesn't sing.",
    '  An electric  guitar!!\n\nFast, 128 bpm…',
    '',
    ' ',
    'É',
    'x' * 200,
    *random_texts(),
  ]
  special = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
  learned.train_from_iterator(sentences, 700, special_tokens=special, min_frequency=2)
  learned.save_model(str(tmp_path))
  theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path)
  pairs = byte_pairs.load(tmp_path, 700, padding=1)
  assert len(pairs.ranks) > 200
  wanted = theirs(sentences, padding=True)
  got_BL = byte_pairs.encode_all(pairs, sentences, max_tokens=512)
  np.testing.assert_array_equal(got_BL, wanted['input_ids'])
  np.testing.assert_array_equal(got_BL != 1, np.array(wanted['attention_mask']) == 1)


def test_tokens_of_the_vocabulary_of_the_other_tests(tmp_path):
  """One written by hand, read by both."""
  folder = vocabulary.write(tmp_path)
  text = 'calm guitar of the 1980s, the piano and 音楽 -- é'
  wanted = transformers.RobertaTokenizer.from_pretrained(folder)(text)['input_ids']
  assert byte_pairs.encode(byte_pairs.load(folder, 400, padding=1), text) == wanted


@pytest.mark.slow
@pytest.mark.parametrize('name', ['unfused', 'larger'])
def test_full_width(tmp_path, name):
  full = pair(
    tmp_path, {'unfused': {'audio_config': {}}, 'larger': LARGER}[name] | {'text_config': {}}
  )
  assert full.config.audio.width == {'unfused': 96, 'larger': 128}[name]
  compare_audio(full, noise(300_001, batch=1), f'CLAP, {name}, full width, audio')
  compare_texts(full, texts(50_265), f'CLAP, {name}, full width, text')

"""w2v-BERT 2.0 beside `transformers`: `SeamlessM4TFeatureExtractor`, then `Wav2Vec2BertModel` with
random weights.

Full width is tested with 3 of the 24 blocks, which are alike: all of them would take 2.3 GB twice.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from audiolm_jax.pretrained import hub, w2v_bert2
from tests.pretrained.parity import TOLERANCE, padded, randomize_transformer, report

pytestmark = pytest.mark.oracle


def extractor():
  # as the published preprocessor_config.json
  return transformers.SeamlessM4TFeatureExtractor(padding_value=1.0)


def pair(folder, **options):
  model = randomize_transformer(
    transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(**options))
  )
  model.save_pretrained(folder)
  return model, *hub.from_pretrained(folder)


@pytest.fixture(scope='module')
def narrow(tmp_path_factory):
  return pair(tmp_path_factory.mktemp('w2v_bert2'), hidden_size=128, intermediate_size=512)


def compare(pair, lengths, what):
  model, config, variables = pair
  wave_BT = padded(lengths)
  rows = [wave_T[:length] for wave_T, length in zip(wave_BT, lengths)]
  inputs = extractor()(rows, sampling_rate=16_000, return_tensors='pt')
  with torch.no_grad():
    want = model(**inputs, output_hidden_states=True).hidden_states
  # From their log-mel, which has a test of its own: what it differs by grows through 24 random
  # blocks, on some machines to several 1e-4 (docs/log.md).
  features_BSD = jnp.asarray(inputs['input_features'].numpy())
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(w2v_bert2, 'log_mel', lambda *_: features_BSD)
    got = jax.jit(lambda *args: w2v_bert2.hidden_states(config, variables, args[0], None, args[1]))(
      jnp.asarray(wave_BT), jnp.asarray(lengths, jnp.int32)
    )
  frames_B = np.asarray(w2v_bert2.num_frames(config, np.array(lengths)))
  np.testing.assert_array_equal(frames_B, inputs['attention_mask'].sum(1).numpy())
  assert len(got) == len(want) == config.num_layers + 1
  errors = [
    np.abs(np.asarray(ours)[row, :frames] - theirs[row, :frames].numpy()).max()
    for ours, theirs in zip(got, want)
    for row, frames in enumerate(frames_B)
  ]
  report(f'{what}, {len(got)} hidden states, T={lengths}', max(errors))
  assert max(errors) < TOLERANCE
  assert all(np.std(state.numpy()) > 0.1 for state in want)
  return got


def test_config(narrow):
  _, config, _ = narrow
  assert config == w2v_bert2.Config(width=128, mlp_width=512)
  assert (config.hop_length, config.frame_rate, config.frame_length) == (320, 50.0, 560)


def waves():
  """Noise, a tone over silence, and speech-like pulses whose upper bands are nearly empty."""
  time_T = np.arange(17_321) / 16_000
  rng = np.random.default_rng(0)
  tone = 0.5 * np.sin(2 * np.pi * 440 * time_T) * (time_T > 0.4)
  voice = sum(np.sin(2 * np.pi * 120 * n * time_T + n) / n**2 for n in range(1, 30))
  return {
    'noise': 0.3 * rng.standard_normal(16_000),
    'quiet noise': 1e-3 * rng.standard_normal(16_159),
    'tone': tone + 1e-4 * rng.standard_normal(len(tone)),
    'voice': 0.2 * voice * (1 + np.sin(2 * np.pi * 3 * time_T))
    + 1e-4 * rng.standard_normal(len(tone)),
    'short': 0.3 * rng.standard_normal(560),
  }


@pytest.mark.parametrize('name', waves())
def test_log_mel(name):
  wave_T = waves()[name].astype(np.float32)
  want = extractor()(wave_T, sampling_rate=16_000, return_tensors='np')
  frames = int(want['attention_mask'].sum())
  got = np.asarray(
    jax.jit(lambda wave: w2v_bert2.log_mel(w2v_bert2.Config(), wave))(jnp.asarray(wave_T[None]))
  )[0]
  assert got.shape == (frames, 160)
  error = np.abs(got - want['input_features'][0, :frames]).max()
  report(f'w2v-BERT 2.0, log-mel, {name}', error)
  assert error < TOLERANCE


@pytest.mark.parametrize('lengths', [[560], [8_001], [15_999, 40_321, 719]])
def test_every_hidden_state(narrow, lengths):
  compare(narrow, lengths, 'w2v-BERT 2.0, narrow')
  inputs = padded(lengths), jnp.asarray(lengths, jnp.int32)
  states = jax.jit(lambda *args: w2v_bert2.hidden_states(*narrow[1:], args[0], None, args[1]))(
    *inputs
  )
  one_layer = jax.jit(lambda *args: w2v_bert2.features(*narrow[1:], args[0], 7, args[1]))(*inputs)
  np.testing.assert_allclose(one_layer, states[7], atol=TOLERANCE)


def test_full_width(tmp_path):
  compare(
    pair(tmp_path, num_hidden_layers=3), [16_123, 9_000], 'w2v-BERT 2.0, full width, 3 blocks'
  )

"""HuBERT and w2v-BERT 2.0: what holds without the originals, and which files are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.pretrained import hub, hubert, w2v_bert2
from audiolm_jax.tokenizer import SemanticEncoder
from tests.pretrained import random_weights
from tests.pretrained.test_tensors import write

CONFIGS = {'hubert': random_weights.HUBERT, 'w2v_bert2': random_weights.W2V_BERT2}
MODULES = {'hubert': hubert, 'w2v_bert2': w2v_bert2}


@pytest.fixture(scope='module', params=CONFIGS)
def model(request, tmp_path_factory):
  folder = random_weights.folder(tmp_path_factory.mktemp(request.param), CONFIGS[request.param])
  return MODULES[request.param], *hub.from_pretrained(folder)


def noise(length, total):
  wave_T = np.zeros(total, np.float32)
  wave_T[:length] = 0.1 * np.random.default_rng(length).standard_normal(length)
  return wave_T


def test_a_row_of_a_batch_is_the_row_alone(model):
  module, config, variables = model
  assert (config.hop_length, config.frame_rate) == (320, 50.0)
  wave_BT = np.stack([noise(4_000, 4_000), noise(2_345, 4_000)])
  features = jax.jit(
    lambda wave_BT, num_samples_B: module.features(config, variables, wave_BT, 2, num_samples_B)
  )
  both = features(wave_BT, np.array([4_000, 2_345]))
  alone = jax.jit(lambda wave_BT: module.features(config, variables, wave_BT, 2))(
    wave_BT[1:, :2_345]
  )[0]
  assert len(alone) == module.num_frames(config, 2_345)
  np.testing.assert_allclose(both[1, : len(alone)], alone, atol=1e-5)
  assert np.std(both) > 0.1


def test_tokens_have_their_place_in_time_whatever_pads_them(model):
  module, config, variables = model
  encoder = SemanticEncoder(config=config, variables=variables, layer=2)
  halved = dataclasses.replace(encoder, frames_per_token=2)
  assert (halved.frame_rate, halved.hop_length) == (25.0, 640)
  alone = jax.jit(lambda wave_BT: module.features(config, variables, wave_BT, 2))(
    noise(2_345, 2_345)[None]
  )[0]
  frames = len(alone)
  # 8 = ceil(2345 / 320)
  expected = np.concatenate([alone, np.repeat(alone[-1:], 8 - frames, axis=0)])
  # The second row is shorter than a frame, as the empty rows of a last batch are: it harms no
  # other.
  got = np.asarray(encoder.features(np.stack([noise(2_345, 4_801), noise(0, 4_801)])))
  assert got.shape[1] == 16 and np.isfinite(got).all()
  np.testing.assert_allclose(got[0, :8], expected, atol=1e-5)
  got = np.asarray(halved.features(noise(2_345, 2_345)[None]))[0]
  np.testing.assert_allclose(got, expected.reshape(4, 2, -1).mean(axis=1), atol=1e-5)
  with pytest.raises(ValueError, match='frames_per_token=0'):
    dataclasses.replace(encoder, frames_per_token=0)
  with pytest.raises(ValueError, match='this model has 0'):
    dataclasses.replace(encoder, layer=3).features(jnp.zeros((1, 3_200)))


@pytest.mark.parametrize('name', CONFIGS)
def test_parameter_diff(tmp_path, name):
  arrays = random_weights.arrays(CONFIGS[name])
  norm = 'encoder.layers.1.final_layer_norm.bias'
  projection = 'feature_projection.projection.weight'
  shape = list(arrays[projection].shape)
  del arrays[norm]
  arrays[projection] = np.zeros((3, 3), np.float32)
  arrays['lm_head.weight'] = np.zeros((2, 8), np.float32)
  arrays['masked_spec_embed'] = np.zeros(8, np.float32)  # not needed, not an error
  with pytest.raises(ValueError) as caught:
    hub.from_pretrained(write(tmp_path, CONFIGS[name], arrays))
  lines = str(caught.value).splitlines()[1:]
  assert sorted(line.strip() for line in lines) == sorted(
    [
      f'{norm}: (absent) in the file, [8] in the model',
      f'{projection}: [3, 3] in the file, {shape} in the model',
      'lm_head.weight: [2, 8] in the file, (absent) in the model',
    ]
  )


@pytest.mark.parametrize(
  'change',
  [
    {'position_embeddings_type': 'rotary'},
    {'hidden_act': 'gelu'},
    {'add_adapter': True},
    {'num_attention_heads': 3},
    {'use_intermediate_ffn_before_adapter': True},
    {'feature_projection_input_dim': 161},
    {'layer_norm_eps': 2},
    {'conv_depthwise_kernel_size': 8},
    {'num_hidden_layers': 2**20},
    {'left_max_position_embeddings': 0},
  ],
)
def test_w2v_bert2_configs_are_refused(change):
  with pytest.raises(ValueError):
    w2v_bert2.config_from(random_weights.W2V_BERT2 | change)


@pytest.mark.parametrize('length', [1, 2, 5, 12])
def test_every_pair_of_frames_has_the_value_of_its_distance(length):
  left, right = 4, 2
  values = (
    np.random.default_rng(length).standard_normal((2, length, left + right + 1)).astype(np.float32)
  )
  got = np.asarray(w2v_bert2.spread(jnp.asarray(values)[None], left))[0]
  for row in range(2):
    for here in range(length):
      for there in range(length):
        distance = min(max(there - here, -left), right)
        assert got[row, here, there] == values[row, here, distance + left]


def test_log_mel_ignores_padding():
  config = w2v_bert2.Config()
  wave_T = noise(3_000, 3_000)
  log_mel = jax.jit(lambda *args: w2v_bert2.log_mel(config, *args))
  alone = np.asarray(log_mel(wave_T[None]))[0]
  padded = np.asarray(log_mel(np.pad(wave_T, (0, 2_000))[None], np.array([3_000])))[0]
  assert alone.shape == (8, 160)
  np.testing.assert_allclose(padded[:8], alone, atol=1e-5)
  # all but the last of 17 frames of 10 ms, over which mean and variance are taken
  bands_FM = alone.reshape(16, 80)
  assert np.abs(bands_FM.mean(0)).max() < 0.3 and np.all(
    (0.5 < bands_FM.std(0)) & (bands_FM.std(0) < 1.5)
  )

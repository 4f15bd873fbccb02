"""HuBERT beside `transformers.HubertModel`, random weights at the real configuration shrunk in width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from audiolm_jax.pretrained import hub, hubert
from tests.pretrained.parity import report

pytestmark = pytest.mark.oracle
TOLERANCE = 1e-4


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  torch.manual_seed(0)
  config = transformers.HubertConfig(hidden_size=96, intermediate_size=384, conv_dim=[32] * 7)
  model = transformers.HubertModel(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if name.endswith('bias'):
        parameter.normal_(0, 0.1)
      elif 'layer_norm.weight' in name:
        parameter.uniform_(0.5, 1.5)
      elif parameter.ndim >= 2 and 'original0' not in name:
        parameter.normal_(0, 1 / np.sqrt(parameter[0].numel()))
  folder = tmp_path_factory.mktemp('hubert')
  model.save_pretrained(folder)
  return model, *hub.from_pretrained(folder)


def test_config(pair):
  _, config, _ = pair
  assert config.num_layers == 12 and config.num_heads == 12 and config.position_groups == 16
  assert (config.hop_length, config.frame_rate, config.frame_length) == (320, 50.0, 400)


@pytest.mark.parametrize('lengths', [[400], [8_001], [15_999, 9_321, 719]])
def test_every_hidden_state(pair, lengths):
  model, config, variables = pair
  wave_BT = np.zeros((len(lengths), max(lengths)), np.float32)
  for row_T, length in zip(wave_BT, lengths):
    row_T[:length] = 0.3 * np.random.default_rng(length).standard_normal(length)
  mask = torch.tensor(np.arange(max(lengths)) < np.array(lengths)[:, None]).long() if len(lengths) > 1 else None
  with torch.no_grad():
    want = model(torch.tensor(wave_BT), attention_mask=mask, output_hidden_states=True).hidden_states
  num_samples_B = jnp.asarray(lengths, jnp.int32) if len(lengths) > 1 else None
  got = jax.jit(lambda *args: hubert.hidden_states(config, variables, args[0], None, args[1]))(
      jnp.asarray(wave_BT), num_samples_B
  )
  frames_B = np.asarray(hubert.num_frames(config, np.array(lengths)))
  np.testing.assert_array_equal(frames_B, model._get_feat_extract_output_lengths(torch.tensor(lengths)).numpy())
  assert len(got) == len(want) == 13
  errors = [
      np.abs(np.asarray(ours)[row, :frames] - theirs[row, :frames].numpy()).max()
      for ours, theirs in zip(got, want)
      for row, frames in enumerate(frames_B)
  ]
  report(f'hubert base, 13 hidden states, T={lengths}', max(errors))
  assert max(errors) < TOLERANCE
  one_layer = jax.jit(lambda *args: hubert.features(config, variables, args[0], 7, args[1]))(
      jnp.asarray(wave_BT), num_samples_B
  )
  np.testing.assert_allclose(one_layer, got[7], atol=TOLERANCE)
  assert all(np.std(state.numpy()) > 0.1 for state in want)

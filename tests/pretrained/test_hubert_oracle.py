"""HuBERT beside `transformers.HubertModel`: random weights at the real configuration, narrow and at
full width.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from audiolm_jax.pretrained import hub, hubert
from tests.pretrained.parity import TOLERANCE, padded, randomize_transformer, report

pytestmark = pytest.mark.oracle


def pair(folder, **options):
  model = randomize_transformer(transformers.HubertModel(transformers.HubertConfig(**options)))
  model.save_pretrained(folder)
  return model, *hub.from_pretrained(folder)


@pytest.fixture(scope='module')
def narrow(tmp_path_factory):
  return pair(
    tmp_path_factory.mktemp('hubert'), hidden_size=96, intermediate_size=384, conv_dim=[32] * 7
  )


def compare(pair, lengths, what):
  """Compares the rows of a padded batch with what the original makes of each row alone."""
  model, config, variables = pair
  wave_BT = padded(lengths)
  got = jax.jit(lambda *args: hubert.hidden_states(config, variables, args[0], None, args[1]))(
    jnp.asarray(wave_BT), jnp.asarray(lengths, jnp.int32)
  )
  errors = []
  for row, length in enumerate(lengths):
    with torch.no_grad():
      want = model(
        torch.tensor(wave_BT[row : row + 1, :length]), output_hidden_states=True
      ).hidden_states
    assert len(got) == len(want) == config.num_layers + 1
    assert want[0].shape[1] == hubert.num_frames(config, length)
    assert all(np.std(state.numpy()) > 0.1 for state in want)
    errors += [
      np.abs(np.asarray(ours)[row, : theirs.shape[1]] - theirs[0].numpy()).max()
      for ours, theirs in zip(got, want)
    ]
  report(f'{what}, {len(got)} hidden states, T={lengths}', max(errors))
  assert max(errors) < TOLERANCE
  return got


def test_config(narrow):
  _, config, _ = narrow
  assert config.num_layers == 12 and config.num_heads == 12 and config.position_groups == 16
  assert (config.hop_length, config.frame_rate, config.frame_length) == (320, 50.0, 400)


@pytest.mark.parametrize('lengths', [[400], [8_001], [15_999, 9_321, 719]])
def test_every_hidden_state(narrow, lengths):
  got = compare(narrow, lengths, 'HuBERT base, narrow')
  one_layer = jax.jit(lambda *args: hubert.features(*narrow[1:], args[0], 7, args[1]))(
    padded(lengths), jnp.asarray(lengths, jnp.int32)
  )
  np.testing.assert_allclose(one_layer, got[7], atol=TOLERANCE)


def test_full_width(tmp_path):
  compare(pair(tmp_path), [16_123, 9_000], 'HuBERT base, full width')

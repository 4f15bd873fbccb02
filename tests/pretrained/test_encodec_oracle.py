"""EnCodec beside `transformers.EncodecModel`, random weights at the real configuration shrunk in
width.
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from audiolm_jax.pretrained import encodec, hub
from tests.pretrained.parity import TOLERANCE, noise, randomize, report

pytestmark = pytest.mark.oracle


def saved(folder, seed=0, **changes):
  """Returns a random model of the published layout, and what we read of it."""
  model = randomize(transformers.EncodecModel(transformers.EncodecConfig(**changes)), seed)
  model.save_pretrained(folder)
  return model, *hub.from_pretrained(folder)


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  return saved(tmp_path_factory.mktemp('encodec'), num_filters=8, hidden_size=32)


def theirs(model, wave_BT, bandwidth):
  """Returns (embeddings, codes, waveform), ours in layout."""
  with torch.no_grad():
    z_BFD = model.encoder(torch.tensor(wave_BT)[:, None]).numpy().swapaxes(1, 2)
    encoded = model.encode(torch.tensor(wave_BT)[:, None], bandwidth=bandwidth)
    decoded = model.decode(encoded.audio_codes, encoded.audio_scales).audio_values.numpy()
  return z_BFD, encoded.audio_codes.numpy()[0].swapaxes(1, 2), decoded[:, 0]


def compare(name, trio, num_samples, bandwidth):
  model, config, variables = trio
  wave_BT = noise(num_samples)
  want_BFD, want_BFQ, want_BT = theirs(model, wave_BT, bandwidth)

  @jax.jit
  def encode(variables, wave_BT):
    z_BFD = encodec.Encoder(config.seanet).apply({'params': variables.params['encoder']}, wave_BT)
    return z_BFD, encodec.encode(config, variables, wave_BT, want_BFQ.shape[-1])

  got_BFD, got_BFQ = encode(variables, wave_BT)
  got_BT = np.asarray(jax.jit(encodec.decode, static_argnums=0)(config, variables, got_BFQ))
  errors = np.abs(got_BFD - want_BFD).max(), np.abs(got_BT - want_BT).max()
  report(
    f'{name} embeddings / audio, {want_BFQ.shape[-1]} levels, codes identical, T={num_samples}',
    *errors,
  )
  np.testing.assert_array_equal(got_BFQ, want_BFQ)
  assert got_BFQ.shape[1] == -(-num_samples // config.hop_length)
  assert max(errors) < TOLERANCE
  assert np.std(want_BFD) > 0.01 and np.std(want_BT) > 0.01  # of a single sample, where T=1
  return got_BFQ


def test_config(pair):
  model, config, _ = pair
  assert (config.num_quantizers, config.hop_length, config.frame_rate) == (32, 320, 75.0)
  assert config.num_quantizers == model.config.num_quantizers


@pytest.mark.parametrize('bandwidth', [1.5, 6.0, 24.0])
def test_codes_and_audio(pair, bandwidth):
  codes_BFQ = compare('encodec', pair, 40 * 320, bandwidth)
  assert codes_BFQ.shape[-1] == round(bandwidth / 0.75) and len(np.unique(codes_BFQ)) > 50


@pytest.mark.parametrize('num_samples', [1, 319, 3 * 320 + 7])
def test_odd_lengths_are_padded_as_the_source_pads_them(pair, num_samples):
  compare('encodec', pair, num_samples, 6.0)


def test_every_hidden_state(pair):
  model, config, variables = pair
  wave_BT, recorded = noise(20 * 320), []
  hooks = [
    layer.register_forward_hook(lambda _, __, y: recorded.append(y.numpy().swapaxes(1, 2)))
    for layer in model.encoder.layers
    if not isinstance(layer, torch.nn.ELU)
  ]
  with torch.no_grad():
    model.encoder(torch.tensor(wave_BT)[:, None])
  for hook in hooks:
    hook.remove()
  capture = lambda params, wave_BT: encodec.Encoder(config.seanet).apply(
    {'params': params}, wave_BT, capture_intermediates=lambda module, _: '_' in (module.name or '')
  )[1]
  state = jax.jit(capture)(variables.params['encoder'], wave_BT)
  found = {
    name: value['__call__'][0]
    for name, value in state['intermediates'].items()
    if name.startswith('layers_')
  }
  got = [found[name] for name in sorted(found, key=lambda name: int(name.split('_')[1]))]
  assert len(got) == len(recorded) == 11
  errors = [np.abs(one - other).max() for one, other in zip(got, recorded, strict=True)]
  report(f'encodec encoder, {len(errors)} hidden states', max(errors))
  assert max(errors) < TOLERANCE


@pytest.mark.slow
def test_full_width(tmp_path):
  compare('encodec, full width', saved(tmp_path), 24_000, 6.0)

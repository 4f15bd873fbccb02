"""DAC beside `transformers.DacModel`, random weights at the real configuration shrunk in width
(`make test-oracle`).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from audiolm_jax import audio
from audiolm_jax.pretrained import dac, hub
from tests.pretrained.parity import report

pytestmark = pytest.mark.oracle
TOLERANCE = 1e-4


def published_config(name, **changes):
  """The numbers of the published checkpoints, `descript/dac_*khz`."""
  layouts = {
    '16khz': dict(sampling_rate=16_000, downsampling_ratios=[2, 4, 5, 8], n_codebooks=12),
    '24khz': dict(sampling_rate=24_000, downsampling_ratios=[2, 4, 5, 8], n_codebooks=32),
    '44khz': dict(sampling_rate=44_100, downsampling_ratios=[2, 4, 8, 8], n_codebooks=9),
  }
  return transformers.DacConfig(**layouts[name], **changes)


def random_model(config, seed=0):
  """Weights of a size that keeps every part of the model at work: the library's own start silences
  most of it.
  """
  torch.manual_seed(seed)
  model = transformers.DacModel(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if name.endswith('alpha'):
        parameter.uniform_(0.5, 2.0)
      elif name.endswith('bias'):
        parameter.normal_(0, 0.05)
      elif 'codebook' in name:
        parameter.normal_(0, 0.3)
      elif 'conv_t1' in name:
        parameter.normal_(0, 1 / np.sqrt(2 * parameter.shape[0]))
      else:
        parameter.normal_(0, 0.7 / np.sqrt(parameter[0].numel()))
  return model


@pytest.fixture(scope='module', params=['16khz', '24khz', '44khz'])
def pair(request, tmp_path_factory):
  model = random_model(
    published_config(request.param, encoder_hidden_size=8, decoder_hidden_size=64)
  )
  folder = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(folder)
  return request.param, model, *hub.from_pretrained(folder)


def wave(num_samples, batch=2):
  rng = np.random.default_rng(num_samples)
  return (0.3 * rng.standard_normal((batch, num_samples))).astype(np.float32)


def test_config(pair):
  name, model, config, _ = pair
  assert config.hop_length == {'16khz': 320, '24khz': 320, '44khz': 512}[name]
  assert config.num_quantizers == model.config.n_codebooks
  assert config.sample_rate == model.config.sampling_rate


@pytest.mark.parametrize('num_samples', [2560, 23_040])
def test_every_hidden_state(pair, num_samples):
  name, model, config, variables = pair
  wave_BT = wave(num_samples // config.hop_length * config.hop_length)
  recorded = {}
  hooks = [
    module.register_forward_hook(lambda _, __, y, path=path: recorded.update({path: y.numpy()}))
    for path, module in model.named_modules()
    if path.startswith('encoder') and path != 'encoder'
  ]
  with torch.no_grad():
    want_BFD = model.encoder(torch.tensor(wave_BT)[:, None]).numpy().swapaxes(1, 2)
  for hook in hooks:
    hook.remove()
  got_BFD, state = dac.Encoder(config).apply(
    {'params': variables.params['encoder']}, wave_BT, capture_intermediates=True
  )
  got = {
    'encoder.' + path.removesuffix('.__call__.0').replace('block_', 'block.'): y
    for path, y in (
      (jax.tree_util.keystr(path, simple=True, separator='.'), y)
      for path, y in jax.tree.flatten_with_path(state['intermediates'])[0]
    )
  }
  got.pop('encoder.__call__.0', None)
  assert set(recorded) - {'encoder.block'} == set(got)
  errors = [np.abs(np.asarray(got[path]).swapaxes(1, 2) - recorded[path]).max() for path in got]
  report(f'dac {name} encoder, {len(errors)} hidden states, T={wave_BT.shape[1]}', max(errors))
  assert max(errors) < TOLERANCE
  np.testing.assert_allclose(got_BFD, want_BFD, atol=TOLERANCE)
  assert np.std(want_BFD) > 0.05


@pytest.mark.parametrize('num_quantizers', [None, 1, 4])
def test_codes_and_audio(pair, num_quantizers):
  name, model, config, variables = pair
  wave_BT = wave(25 * config.hop_length)
  with torch.no_grad():
    encoded = model.encode(torch.tensor(wave_BT)[:, None], n_quantizers=num_quantizers)
    want_BT = model.decode(audio_codes=encoded.audio_codes).audio_values.numpy()
  want_BFQ = encoded.audio_codes.numpy().swapaxes(1, 2)
  got_BFQ = dac.encode(config, variables, jnp.asarray(wave_BT), num_quantizers)
  np.testing.assert_array_equal(got_BFQ, want_BFQ)
  got_BT = np.asarray(dac.decode(config, variables, got_BFQ))
  assert got_BT.shape == wave_BT.shape
  length = want_BT.shape[1]
  assert length == wave_BT.shape[1] - (8 if 5 in config.strides else 0)
  error = np.abs(got_BT[:, :length] - want_BT).max()
  report(f'dac {name} audio, {want_BFQ.shape[-1]} levels, codes identical', error)
  assert error < TOLERANCE
  assert not got_BT[:, length:].any()
  # of 50 frames; one level may have as few
  assert np.std(want_BT) > 0.05 and len(np.unique(want_BFQ)) > 15


def test_odd_lengths_are_padded_as_the_source_pads_them(pair):
  name, model, config, variables = pair
  extractor = transformers.DacFeatureExtractor(
    sampling_rate=config.sample_rate, hop_length=config.hop_length
  )
  for num_samples in (1, config.hop_length - 1, 3 * config.hop_length + 1):
    wave_T = wave(num_samples, batch=1)[0]
    values = extractor(wave_T, sampling_rate=config.sample_rate, return_tensors='pt')[
      'input_values'
    ]
    with torch.no_grad():
      want = model.encode(values).audio_codes.numpy().swapaxes(1, 2)
    got = dac.encode(
      config, variables, audio.pad_to_multiple(jnp.asarray(wave_T)[None], config.hop_length)
    )
    np.testing.assert_array_equal(got, want)
  with pytest.raises(ValueError, match='pad_to_multiple'):
    dac.encode(config, variables, jnp.asarray(wave(config.hop_length + 1)))


def test_weight_normalized_checkpoint(tmp_path):
  model = random_model(published_config('16khz', encoder_hidden_size=4, decoder_hidden_size=32))
  wave_BT = wave(10 * 320)
  with torch.no_grad():
    want_BFQ = model.encode(torch.tensor(wave_BT)[:, None]).audio_codes.numpy().swapaxes(1, 2)
  model.apply_weight_norm()
  model.save_pretrained(tmp_path)
  config, variables = hub.from_pretrained(tmp_path)
  np.testing.assert_array_equal(dac.encode(config, variables, jnp.asarray(wave_BT)), want_BFQ)


@pytest.mark.slow
def test_full_width(tmp_path):
  model = random_model(published_config('16khz'))
  model.save_pretrained(tmp_path)
  config, variables = hub.from_pretrained(tmp_path)
  wave_BT = wave(16_000, batch=1)
  with torch.no_grad():
    want_BFD = model.encoder(torch.tensor(wave_BT)[:, None]).numpy().swapaxes(1, 2)
    codes = model.encode(torch.tensor(wave_BT)[:, None]).audio_codes
    want_BT = model.decode(audio_codes=codes).audio_values.numpy()
  got_BFD = jax.jit(lambda params, wave_BT: dac.Encoder(config).apply({'params': params}, wave_BT))(
    variables.params['encoder'], wave_BT
  )
  got_BFQ = jax.jit(dac.encode, static_argnums=0)(config, variables, wave_BT)
  np.testing.assert_array_equal(got_BFQ, codes.numpy().swapaxes(1, 2))
  got_BT = jax.jit(dac.decode, static_argnums=0)(config, variables, got_BFQ)
  errors = (
    np.abs(got_BFD - want_BFD).max(),
    np.abs(np.asarray(got_BT)[:, : want_BT.shape[1]] - want_BT).max(),
  )
  report('dac 16khz, full width, embeddings / audio, codes identical', *errors)
  assert max(errors) < TOLERANCE and np.std(want_BT) > 0.05

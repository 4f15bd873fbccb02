"""Mimi beside `transformers.MimiModel`, random weights at the real configuration shrunk in
width.
"""

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from audiolm_jax.pretrained import hub, mimi
from tests.pretrained.parity import TOLERANCE, noise, randomize, report

pytestmark = pytest.mark.oracle
SHRUNK = dict(
  num_filters=8,
  hidden_size=32,
  upsample_groups=32,
  codebook_dim=16,
  vector_quantization_hidden_dimension=16,
  codebook_size=256,
  intermediate_size=48,
  num_attention_heads=4,
  num_key_value_heads=4,
)


def saved(folder, seed=0, **changes):
  """Returns a random model of the published layout, and what we read of it."""
  model = randomize(transformers.MimiModel(transformers.MimiConfig(**changes)), seed)
  model.save_pretrained(folder)
  return model, *hub.from_pretrained(folder)


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  return saved(tmp_path_factory.mktemp('mimi'), num_hidden_layers=2, **SHRUNK)


def compare(name, trio, num_samples, num_quantizers):
  model, config, variables = trio
  wave_BT = noise(num_samples)
  with torch.no_grad():
    want_BFD = model.encoder(torch.tensor(wave_BT)[:, None]).latents.numpy().swapaxes(1, 2)
    codes = model.encode(torch.tensor(wave_BT)[:, None], num_quantizers=num_quantizers).audio_codes
    want_BT = model.decode(codes).audio_values.numpy()[:, 0]
  want_BFQ = codes.numpy().swapaxes(1, 2)

  @jax.jit
  def encode(variables, wave_BT):
    return mimi.embeddings(config, variables, wave_BT), mimi.encode(
      config, variables, wave_BT, num_quantizers
    )

  got_BFD, got_BFQ = encode(variables, wave_BT)
  got_BT = np.asarray(jax.jit(mimi.decode, static_argnums=0)(config, variables, got_BFQ))
  errors = np.abs(got_BFD - want_BFD).max(), np.abs(got_BT - want_BT).max()
  report(
    f'{name} embeddings / audio, {want_BFQ.shape[-1]} levels, codes identical, T={num_samples}',
    *errors,
  )
  np.testing.assert_array_equal(got_BFQ, want_BFQ)
  assert got_BFQ.shape[1] == -(-num_samples // config.hop_length)
  assert max(errors) < TOLERANCE
  assert np.std(want_BFD) > 0.05 and np.std(want_BT) > 0.05
  return got_BFQ


def test_config(pair):
  _, config, _ = pair
  assert (config.num_quantizers, config.hop_length, config.frame_rate) == (32, 1920, 12.5)


@pytest.mark.parametrize('num_quantizers', [None, 1, 8])
def test_codes_and_audio(pair, num_quantizers):
  codes_BFQ = compare('mimi', pair, 10 * 1920, num_quantizers)
  assert codes_BFQ.shape[-1] == (num_quantizers or 32) and len(np.unique(codes_BFQ)) > 10


@pytest.mark.parametrize('num_samples', [1, 959, 3 * 1920 + 7])
def test_odd_lengths_are_padded_as_the_source_pads_them(pair, num_samples):
  compare('mimi', pair, num_samples, 8)


def test_the_transformer_forgets(tmp_path):
  """A window of 5 frames is shorter than the clip, so that what it hides counts."""
  compare(
    'mimi, window 5',
    saved(tmp_path, seed=1, sliding_window=5, num_hidden_layers=2, **SHRUNK),
    12 * 1920,
    4,
  )


def test_every_hidden_state(tmp_path):
  model, config, variables = saved(tmp_path, **SHRUNK)
  wave_BT = noise(8 * 1920)
  with torch.no_grad():
    want = model.encoder(torch.tensor(wave_BT)[:, None], output_hidden_states=True).hidden_states
  apply = lambda module, name, x, **options: module.apply(
    {'params': variables.params[name]}, x, **options
  )
  x_BSD = jax.jit(lambda wave_BT: apply(mimi.Encoder(config.seanet), 'encoder', wave_BT))(wave_BT)
  transform = lambda x_BSD: apply(
    mimi.Transformer(config), 'encoder_transformer', x_BSD, capture_intermediates=True
  )[1]
  state = jax.jit(transform)(x_BSD)
  got = [x_BSD] + [
    state['intermediates'][f'layers_{n}']['__call__'][0] for n in range(config.num_layers)
  ]
  errors = [np.abs(one - other.numpy()).max() for one, other in zip(got, want, strict=True)]
  report(f'mimi encoder, {len(errors)} hidden states', max(errors))
  assert max(errors) < TOLERANCE


@pytest.mark.slow
def test_full_width(tmp_path):
  compare('mimi, full width', saved(tmp_path), 24_000, 8)

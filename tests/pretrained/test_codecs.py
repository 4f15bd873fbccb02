"""EnCodec and Mimi without their originals: what is causal, what is counted, what is refused. See
test_*_oracle.py.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from audiolm_jax.pretrained import encodec, hub, layers, mimi, seanet
from tests.pretrained import random_weights

DATA = {'encodec': random_weights.ENCODEC, 'mimi': random_weights.MIMI}
SOURCES = {'encodec': encodec, 'mimi': mimi}


@pytest.fixture(scope='module', params=sorted(DATA))
def model(request, tmp_path_factory):
  folder = random_weights.folder(tmp_path_factory.mktemp(request.param) / 'in', DATA[request.param])
  return request.param, folder, *hub.from_pretrained(folder)


def embeddings(name, config, variables, wave_BT):
  if name == 'mimi':
    return mimi.embeddings(config, variables, wave_BT)
  return seanet.Encoder(config.seanet).apply({'params': variables.params['encoder']}, wave_BT)


def test_sizes(model):
  name, _, config, variables = model
  hop = {'encodec': 10, 'mimi': 20}[name]
  assert (config.hop_length, config.frame_rate, config.num_quantizers) == (hop, 24_000 / hop, 3)
  wave_BT = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6 * hop + 1)), jnp.float32)
  codec = config.codec()
  codes_BFQ = jax.jit(codec.encode, static_argnums=2)(variables, wave_BT, None)
  assert (
    codes_BFQ.shape == (2, 7, 3) and codes_BFQ.dtype == jnp.int32 and len(np.unique(codes_BFQ)) > 5
  )
  assert 0 <= codes_BFQ.min() and codes_BFQ.max() < config.codebook_size == 16
  decoded = {levels: jax.jit(codec.decode)(variables, codes_BFQ[..., :levels]) for levels in (1, 3)}
  assert decoded[1].shape == decoded[3].shape == (2, 7 * hop)
  assert np.abs(decoded[1] - decoded[3]).max() > 1e-3
  np.testing.assert_array_equal(
    jax.jit(codec.encode, static_argnums=2)(variables, wave_BT, 2), codes_BFQ[..., :2]
  )
  for levels in (0, 4):
    with pytest.raises(ValueError, match='num_quantizers=3'):
      codec.encode(variables, wave_BT, levels)
  with pytest.raises(ValueError, match='no samples'):
    codec.encode(variables, wave_BT[:, :0], None)


def test_nothing_looks_ahead(model):
  """Where a sample or a frame changes, nothing before it does; what comes before the clip counts
  once it has begun.
  """
  name, _, config, variables = model
  hop, frames, at = config.hop_length, 16, 9
  random = np.random.default_rng(1)
  wave_BT = jnp.asarray(random.standard_normal((1, frames * hop)), jnp.float32)
  embed = jax.jit(lambda wave_BT: embeddings(name, config, variables, wave_BT))
  before, after = embed(wave_BT), embed(wave_BT.at[:, at * hop :].multiply(-1))
  np.testing.assert_allclose(after[:, :at], before[:, :at], atol=1e-6)
  assert np.abs(after - before)[0, at:].max(axis=-1).min() > 1e-4
  codes_BFQ = jnp.asarray(random.integers(0, 16, (1, frames, 3)), jnp.int32)
  decode = jax.jit(lambda codes_BFQ: config.codec().decode(variables, codes_BFQ))
  before, after = decode(codes_BFQ), decode(codes_BFQ.at[:, at:].set((codes_BFQ[:, at:] + 1) % 16))
  np.testing.assert_allclose(after[:, : at * hop], before[:, : at * hop], atol=1e-6)
  assert np.abs(after - before)[0, at * hop :].reshape(-1, hop).max(axis=-1).min() > 1e-4


def test_levels_are_residual_and_mimi_splits_them(tmp_path):
  """The second level of Mimi quantizes the embedding itself, EnCodec's what the first one left."""
  for name, data in DATA.items():
    config, variables = hub.from_pretrained(random_weights.folder(tmp_path / name, data))
    wave_BT = jnp.asarray(
      np.random.default_rng(2).standard_normal((1, 40 * config.hop_length)), jnp.float32
    )
    embed = lambda wave_BT: (
      embeddings(name, config, variables, wave_BT),
      config.codec().encode(variables, wave_BT, 2),
    )
    z_BFD, codes_BFQ = jax.jit(embed)(wave_BT)
    z_FD = np.asarray(z_BFD)[0]
    arrays = random_weights.arrays(data)
    if name == 'encodec':
      books, z = (
        [arrays[f'quantizer.layers.{level}.codebook.embed'] for level in range(2)],
        [z_FD, z_FD],
      )
    else:
      stems = [f'quantizer.{kind}_residual_vector_quantizer' for kind in ('semantic', 'acoustic')]
      parts = ('embed_sum', 'cluster_usage')
      sums = [[arrays[f'{stem}.layers.0.codebook.{part}'] for part in parts] for stem in stems]
      books = [total / np.maximum(count, 1e-5)[:, None] for total, count in sums]
      z = [z_FD @ arrays[f'{stem}.input_proj.weight'][..., 0].T for stem in stems]
    nearest = lambda x_FD, book_KD: np.argmin(np.square(x_FD[:, None] - book_KD).sum(-1), axis=1)
    first = nearest(z[0], books[0])
    second = nearest(z[1] - (books[0][first] if name == 'encodec' else 0), books[1])
    np.testing.assert_array_equal(codes_BFQ[0], np.stack([first, second], axis=1))


def test_lstm():
  """Beside the equations, step by step in float64."""
  x_BND = np.random.default_rng(3).standard_normal((2, 5, 3))
  module = seanet.Lstm(1)
  params = jax.jit(module.init)(jax.random.key(0), jnp.asarray(x_BND))['params']
  params = jax.tree.map(lambda leaf: leaf + 0.1, params)
  weight = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
  sigmoid, hidden, cell, want = (
    lambda x: 1 / (1 + np.exp(-x)),
    np.zeros((2, 3)),
    np.zeros((2, 3)),
    [],
  )
  for n in range(5):
    gates = x_BND[:, n] @ weight['weight_ih_l0'].T + hidden @ weight['weight_hh_l0'].T
    i, f, g, o = np.split(gates + weight['bias_ih_l0'] + weight['bias_hh_l0'], 4, axis=1)
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    hidden = sigmoid(o) * np.tanh(cell)
    want.append(x_BND[:, n] + hidden)
  got = jax.jit(module.apply)({'params': params}, jnp.asarray(x_BND, jnp.float32))
  np.testing.assert_allclose(got, np.stack(want, axis=1), atol=1e-5)


def test_squared_sine():
  x = np.concatenate([np.linspace(-20, 20, 4001), np.linspace(-1e4, 1e4, 4001)]).astype(np.float32)
  np.testing.assert_allclose(
    jax.jit(layers.squared_sine)(x), np.sin(x.astype(np.float64)) ** 2, atol=4e-7
  )
  slope = jax.jit(jax.vmap(jax.grad(layers.squared_sine)))(x[:4001])
  np.testing.assert_allclose(slope, np.sin(2 * x[:4001].astype(np.float64)), atol=2e-5)


@pytest.mark.parametrize('dtype, digits', [(jnp.bfloat16, 8), (np.float16, 11), (np.float64, 24)])
def test_other_precisions_become_float32(model, tmp_path, dtype, digits):
  name, folder, config, want = model
  arrays = {
    key: array.astype(dtype) for key, array in load_file(folder / 'model.safetensors').items()
  }
  (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
  save_file(arrays, tmp_path / 'model.safetensors')
  params = SOURCES[name].load(tmp_path, config).params
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  rounded = SOURCES[name].load(folder, config).params
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=2.0 ** (1 - digits)), params, rounded
  )


def damaged(folder, target, change):
  arrays = load_file(folder / 'model.safetensors')
  change(arrays)
  target.mkdir(exist_ok=True)
  (target / 'config.json').write_text((folder / 'config.json').read_text())
  save_file(arrays, target / 'model.safetensors')
  return target


def test_parameter_diff(model, tmp_path):
  _, folder, _, _ = model
  arrays = load_file(folder / 'model.safetensors')
  books = sorted(name for name in arrays if '.codebook.embed' in name)

  def change(arrays):
    del arrays['encoder.layers.0.conv.bias']
    arrays['decoder.layers.0.conv.weight'] = np.zeros((1, 2, 7), np.float32)
    arrays[books[0]] = np.zeros((15, 4), np.float32)
    arrays['../../evil'] = np.zeros(1, np.float32)

  with pytest.raises(ValueError) as caught:
    hub.from_pretrained(damaged(folder, tmp_path / 'bad', change))
  lines = str(caught.value)
  for line in (
    'encoder.layers.0.conv.bias: (absent) in the file, [2] in the model',
    'decoder.layers.0.conv.weight: [1, 2, 7]',
    f'{books[0]}: [15, 4] in the file, [16, 4] in the model',
    '../../evil: [1] in the file, (absent) in the model',
  ):
    assert line in lines
  assert len(lines.splitlines()) == 5
  whole = (folder / 'model.safetensors').read_bytes()
  (tmp_path / 'bad' / 'model.safetensors').write_bytes(whole[:-3])
  with pytest.raises(ValueError, match='damaged|truncated'):
    hub.from_pretrained(tmp_path / 'bad')


@pytest.mark.parametrize(
  'name, change',
  [
    *(
      ('encodec', change)
      for change in (
        {'use_causal_conv': False},
        {'norm_type': 'time_group_norm'},
        {'normalize': True},
        {'chunk_length_s': 1.0},
        {'audio_channels': 2},
        {'target_bandwidths': []},
        {'target_bandwidths': [1e9]},
        {'target_bandwidths': 'all'},
        {'codebook_dim': 7},
        {'num_filters': 3},
        {'upsampling_ratios': [2**20] * 16},
        {'num_lstm_layers': 99},
        {'use_conv_shortcut': 1},
        {'codebook_size': 1},
      )
    ),
    *(
      ('mimi', change)
      for change in (
        {'num_semantic_quantizers': 3},
        {'upsample_groups': 1},
        {'hidden_act': 'relu'},
        {'num_attention_heads': 8},
        {'frame_rate': 12.5},
        {'rope_parameters': {'rope_type': 'linear'}},
        {'rope_parameters': [1]},
        {'rope_theta': -1},
        {'norm_eps': 'small'},
        {'num_hidden_layers': 2**20},
        {'codebook_dim': 8},
        {'num_key_value_heads': 1},
        {'head_dim': 64},
      )
    ),
  ],
)
def test_configs_are_refused(name, change, tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(DATA[name] | change))
  with pytest.raises(ValueError, match=str(tmp_path)):
    hub.from_pretrained(tmp_path)

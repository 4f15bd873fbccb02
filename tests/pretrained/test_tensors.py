"""Folders of others: what is refused, before any weight is read; and that what is read is what was
written.
"""

import json
import pathlib
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from audiolm_jax.pretrained import dac, hub, hubert, tensors

DAC_CONFIG = {
  'model_type': 'dac',
  'encoder_hidden_size': 2,
  'decoder_hidden_size': 8,
  'downsampling_ratios': [2, 5],
  'upsampling_ratios': [5, 2],
  'n_codebooks': 3,
  'codebook_size': 16,
  'codebook_dim': 4,
  'sampling_rate': 16_000,
  'hop_length': 512,
}
HUBERT_CONFIG = {
  'model_type': 'hubert',
  'conv_dim': [4, 4],
  'conv_kernel': [10, 3],
  'conv_stride': [5, 2],
  'hidden_size': 8,
  'num_conv_pos_embeddings': 6,
  'num_conv_pos_embedding_groups': 2,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'intermediate_size': 12,
}


def dac_tensors(seed=0):
  """The tensors of a `DacModel` with DAC_CONFIG, written down from the original's layer list."""
  shapes = {}

  def conv(name, outputs, inputs, kernel):
    shapes[f'{name}.weight'], shapes[f'{name}.bias'] = (outputs, inputs, kernel), (outputs,)

  def snake(name, width):
    shapes[f'{name}.alpha'] = (1, width, 1)

  def units(name, width):
    for number in (1, 2, 3):
      unit = f'{name}.res_unit{number}'
      snake(f'{unit}.snake1', width), snake(f'{unit}.snake2', width)
      conv(f'{unit}.conv1', width, width, 7), conv(f'{unit}.conv2', width, width, 1)

  conv('encoder.conv1', 2, 1, 7)
  for level, (width, stride) in enumerate([(2, 2), (4, 5)]):
    units(f'encoder.block.{level}', width)
    snake(f'encoder.block.{level}.snake1', width)
    conv(f'encoder.block.{level}.conv1', 2 * width, width, 2 * stride)
  snake('encoder.snake1', 8), conv('encoder.conv2', 8, 8, 3)
  conv('decoder.conv1', 8, 8, 7)
  for level, (width, stride) in enumerate([(8, 5), (4, 2)]):
    snake(f'decoder.block.{level}.snake1', width)
    shapes[f'decoder.block.{level}.conv_t1.weight'] = (width, width // 2, 2 * stride)
    shapes[f'decoder.block.{level}.conv_t1.bias'] = (width // 2,)
    units(f'decoder.block.{level}', width // 2)
  snake('decoder.snake1', 2), conv('decoder.conv2', 1, 2, 7)
  for level in range(3):
    (
      conv(f'quantizer.quantizers.{level}.in_proj', 4, 8, 1),
      conv(f'quantizer.quantizers.{level}.out_proj', 8, 4, 1),
    )
    shapes[f'quantizer.quantizers.{level}.codebook.weight'] = (16, 4)
  rng = np.random.default_rng(seed)
  draw = lambda name, shape: (
    0.3 * rng.standard_normal(shape).astype(np.float32) + name.endswith('alpha')
  )
  return {name: draw(name, shape) for name, shape in shapes.items()}


def write(folder, config, arrays):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config))
  save_file(arrays, folder / 'model.safetensors')
  return folder


def test_terminal_escapes_in_tensor_names_are_printed_as_text(tmp_path):
  folder = write(
    tmp_path, DAC_CONFIG, dac_tensors() | {'\x1b[2J' + 'x' * 500: np.zeros(1, np.float32)}
  )
  with pytest.raises(
    ValueError, match=r'\\x1b\[2Jx+\.\.\.: \[1\] in the file, \(absent\)'
  ) as caught:
    hub.from_pretrained(folder)
  assert '\x1b' not in str(caught.value) and len(str(caught.value)) < 600


@pytest.fixture
def folder(tmp_path):
  return write(tmp_path / 'dac', DAC_CONFIG, dac_tensors())


def conv1d(x_DN, weight, bias, stride=1, dilation=1, padding=0):
  """A convolution as its definition has it: sums over taps and inputs, float64."""
  x_DN = np.pad(x_DN, ((0, 0), (padding, padding)))
  reach = (weight.shape[2] - 1) * dilation
  starts = range(0, x_DN.shape[1] - reach, stride)
  columns = [
    np.einsum('oik,ik->o', weight, x_DN[:, n : n + reach + 1 : dilation]) + bias for n in starts
  ]
  return np.stack(columns, axis=1)


def snake(x_DN, alpha):
  return x_DN + np.sin(alpha[0] * x_DN) ** 2 / (alpha[0] + 1e-9)


class ByDefinition:
  """DAC written as loops over the tensors of the file, without our modules."""

  def __init__(self, arrays):
    self.arrays = {name: array.astype(np.float64) for name, array in arrays.items()}

  def conv(self, name, x_DN, **options):
    return conv1d(x_DN, self.arrays[f'{name}.weight'], self.arrays[f'{name}.bias'], **options)

  def snake(self, name, x_DN):
    return snake(x_DN, self.arrays[f'{name}.alpha'])

  def units(self, name, x_DN):
    for number, dilation in ((1, 1), (2, 3), (3, 9)):
      unit = f'{name}.res_unit{number}'
      hidden = self.conv(
        f'{unit}.conv1', self.snake(f'{unit}.snake1', x_DN), dilation=dilation, padding=3 * dilation
      )
      x_DN = x_DN + self.conv(f'{unit}.conv2', self.snake(f'{unit}.snake2', hidden))
    return x_DN

  def upsample(self, name, x_DN, stride):
    weight, bias = self.arrays[f'{name}.weight'], self.arrays[f'{name}.bias']
    y_DN = np.zeros((weight.shape[1], (x_DN.shape[1] + 1) * stride))
    for n in range(x_DN.shape[1]):
      y_DN[:, n * stride : (n + 2) * stride] += np.einsum('i,iok->ok', x_DN[:, n], weight)
    trim = -(-stride // 2)
    return y_DN[:, trim : y_DN.shape[1] - trim] + bias[:, None]

  def encode(self, wave_T):
    x_DN = self.conv('encoder.conv1', wave_T[None], padding=3)
    for level, stride in enumerate([2, 5]):
      block = f'encoder.block.{level}'
      x_DN = self.snake(f'{block}.snake1', self.units(block, x_DN))
      x_DN = self.conv(f'{block}.conv1', x_DN, stride=stride, padding=-(-stride // 2))
    residual_DF = self.conv('encoder.conv2', self.snake('encoder.snake1', x_DN), padding=1)
    codes = []
    for level in range(3):
      name = f'quantizer.quantizers.{level}'
      codebook_KD = self.arrays[f'{name}.codebook.weight']
      projected_DF = self.conv(f'{name}.in_proj', residual_DF)
      unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
      codes.append(np.argmax(unit(projected_DF.T) @ unit(codebook_KD).T, axis=1))
      residual_DF = residual_DF - self.conv(f'{name}.out_proj', codebook_KD[codes[-1]].T)
    return np.stack(codes, axis=1)

  def decode(self, codes_FQ):
    books = [
      self.arrays[f'quantizer.quantizers.{level}.codebook.weight']
      for level in range(codes_FQ.shape[1])
    ]
    z_DF = sum(
      self.conv(f'quantizer.quantizers.{level}.out_proj', book[codes_FQ[:, level]].T)
      for level, book in enumerate(books)
    )
    x_DN = self.conv('decoder.conv1', z_DF, padding=3)
    for level, stride in enumerate([5, 2]):
      block = f'decoder.block.{level}'
      x_DN = self.upsample(f'{block}.conv_t1', self.snake(f'{block}.snake1', x_DN), stride)
      x_DN = self.units(block, x_DN)
    return np.tanh(self.conv('decoder.conv2', self.snake('decoder.snake1', x_DN), padding=3))[0]


def test_dac_is_what_the_file_defines(folder):
  config, variables = hub.from_pretrained(folder)
  assert (config.hop_length, config.frame_rate) == (10, 1600)  # not the 512 of config.json
  wave_BT = np.random.default_rng(1).standard_normal((2, 60)).astype(np.float32)
  want = ByDefinition(dac_tensors())
  codes_BFQ = np.asarray(
    jax.jit(lambda wave: dac.encode(config, variables, wave))(jnp.asarray(wave_BT))
  )
  np.testing.assert_array_equal(codes_BFQ, [want.encode(wave_T) for wave_T in wave_BT])
  assert len(np.unique(codes_BFQ)) > 3
  got_BT = np.asarray(
    jax.jit(lambda codes: dac.decode(config, variables, codes))(jnp.asarray(codes_BFQ))
  )
  want_BT = np.stack([want.decode(codes_FQ) for codes_FQ in codes_BFQ])
  assert got_BT.shape == (2, 60) and want_BT.shape == (2, 58)
  np.testing.assert_allclose(got_BT, np.pad(want_BT, ((0, 0), (0, 2))), atol=1e-5)
  assert np.std(want_BT) > 0.01


@pytest.mark.parametrize('names', tensors.NORM_NAMES)
def test_normalized_weights_are_folded(folder, tmp_path, names):
  arrays = dac_tensors()
  for name in [name for name in arrays if name.endswith('.weight') and 'codebook' not in name]:
    weight = arrays.pop(name)
    stem = name.removesuffix('.weight')
    magnitude = np.sqrt(np.sum(weight**2, axis=(1, 2), keepdims=True))
    arrays[f'{stem}.{names[0]}'], arrays[f'{stem}.{names[1]}'] = magnitude, 3 * weight
  _, want = hub.from_pretrained(folder)
  _, got = hub.from_pretrained(write(tmp_path / 'normalized', DAC_CONFIG, arrays))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), got, want)


def test_half_precision_and_shards(folder, tmp_path):
  arrays = {name: array.astype(np.float16) for name, array in dac_tensors().items()}
  other = write(tmp_path / 'shards', DAC_CONFIG, {})
  (other / 'model.safetensors').unlink()
  names = sorted(arrays)
  for part, chosen in enumerate((names[::2], names[1::2])):
    save_file({name: arrays[name] for name in chosen}, other / f'model-{part}.safetensors')
  weight_map = {name: f'model-{number % 2}.safetensors' for number, name in enumerate(names)}
  (other / tensors.INDEX).write_text(json.dumps({'weight_map': weight_map}))
  _, want = hub.from_pretrained(folder)
  _, got = hub.from_pretrained(other)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-3), got, want)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))


def test_arguments(folder):
  config, variables = hub.from_pretrained(folder)
  for num_samples in (0, 9, 11):
    with pytest.raises(ValueError, match='pad_to_multiple'):
      dac.encode(config, variables, jnp.zeros((1, num_samples)))
  for levels in (0, 4):
    with pytest.raises(ValueError, match='num_quantizers=3'):
      dac.encode(config, variables, jnp.zeros((1, 20)), levels)
  with pytest.raises(ValueError, match='num_quantizers=3'):
    dac.decode(config, variables, jnp.zeros((1, 2, 4), jnp.int32))
  assert dac.encode(config, variables, jnp.zeros((1, 20)), 2).shape == (1, 2, 2)


def test_parameter_diff(tmp_path):
  arrays = dac_tensors()
  del arrays['encoder.conv1.bias']
  arrays['decoder.conv2.weight'] = np.zeros((1, 3, 7), np.float32)
  arrays['../../evil'] = np.zeros(1, np.float32)
  arrays['encoder.snake1.alpha'] = np.zeros((1, 8, 1), np.int32)
  with pytest.raises(ValueError) as caught:
    hub.from_pretrained(write(tmp_path / 'bad', DAC_CONFIG, arrays))
  text = str(caught.value)
  assert 'encoder.conv1.bias: (absent) in the file, [2] in the model' in text
  assert 'decoder.conv2.weight: [1, 3, 7] in the file, [1, 2, 7] in the model' in text
  assert '../../evil: [1] in the file, (absent) in the model' in text
  assert 'encoder.snake1.alpha: I32 in the file' in text
  assert len(text.splitlines()) == 5
  assert {path.name for path in tmp_path.iterdir()} == {'bad'}


def test_weights_that_are_not_finite(tmp_path):
  arrays = dac_tensors()
  arrays['encoder.conv1.bias'][1] = np.nan
  with pytest.raises(ValueError, match='encoder.conv1.bias holds NaN'):
    hub.from_pretrained(write(tmp_path / 'bad', DAC_CONFIG, arrays))


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'weights.pt', 'last.ckpt'])
def test_pickles_are_refused_unopened(tmp_path, name):
  (tmp_path / 'config.json').write_text(json.dumps(DAC_CONFIG))
  (tmp_path / name).write_bytes(b'cos\nsystem\n(S"touch pwned"\ntR.')
  with pytest.raises(ValueError, match=f'{name}.*unpickling'):
    hub.from_pretrained(tmp_path)
  (tmp_path / name).unlink()
  with pytest.raises(ValueError, match='neither model.safetensors'):
    hub.from_pretrained(tmp_path)


@pytest.mark.parametrize(
  'name', ['../outside.safetensors', '/etc/passwd', 'sub/a.safetensors', '..', 'model.bin', '']
)
def test_index_cannot_leave_the_folder(folder, name):
  save_file(dac_tensors(), folder.parent / 'outside.safetensors')
  (folder / 'model.safetensors').unlink()
  (folder / tensors.INDEX).write_text(json.dumps({'weight_map': {'encoder.conv1.bias': name}}))
  with pytest.raises(ValueError, match='only .* in its folder are read'):
    hub.from_pretrained(folder)


def test_index_without_its_shards(folder):
  (folder / 'model.safetensors').unlink()
  (folder / tensors.INDEX).write_text(json.dumps({'weight_map': {'a': 'model-1.safetensors'}}))
  with pytest.raises(ValueError, match='model-1.safetensors.*fetch'):
    hub.from_pretrained(folder)
  for text in ('{}', '{"weight_map": []}', '[]', 'no json', '[' * 100_000):
    (folder / tensors.INDEX).write_text(text)
    with pytest.raises(ValueError):
      hub.from_pretrained(folder)


def header(folder, text: bytes, declared=None, data=b''):
  length = len(text) if declared is None else declared
  (folder / 'model.safetensors').write_bytes(length.to_bytes(8, 'little') + text + data)


def test_damaged_files_cost_no_memory(folder):
  whole = (folder / 'model.safetensors').read_bytes()
  huge = json.dumps({'a': {'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 2**42]}}).encode()
  overlapping = json.dumps(
    {name: {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]} for name in ('a', 'b')}
  ).encode()
  path = folder / 'model.safetensors'
  cases = {
    'truncated data': lambda: path.write_bytes(whole[:-5]),
    'truncated header': lambda: path.write_bytes(whole[:100]),
    'five bytes': lambda: path.write_bytes(whole[:5]),
    'empty': lambda: path.write_bytes(b''),
    'extra bytes': lambda: path.write_bytes(whole + b'more'),
    'header of 2^63 bytes': lambda: header(folder, b'{}', declared=2**63),
    'tensor of 4 TiB': lambda: header(folder, huge),
    'overlapping tensors': lambda: header(folder, overlapping, data=bytes(16)),
    'no JSON': lambda: header(folder, b'\xff' * 64),
  }
  for what, make in cases.items():
    make()
    tracemalloc.start()
    with pytest.raises(ValueError, match='model.safetensors'):
      hub.from_pretrained(folder)
      pytest.fail(what)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20, what


def test_gigantic_header_is_refused_by_its_size(folder):
  with (folder / 'model.safetensors').open('wb') as file:  # sparse: the disk holds almost nothing
    file.write((2**33).to_bytes(8, 'little'))
    file.truncate(2**33 + 8)
  with pytest.raises(ValueError, match='header of 8,589,934,592 bytes, more than'):
    hub.from_pretrained(folder)


@pytest.mark.parametrize(
  'change',
  [
    {'model_type': 'gpt2'},
    {'model_type': None},
    {'n_codebooks': 0},
    {'n_codebooks': 10**9},
    {'n_codebooks': '3'},
    {'codebook_size': 2.5},
    {'downsampling_ratios': []},
    {'downsampling_ratios': [2] * 99},
    {'downsampling_ratios': 4},
    {'upsampling_ratios': [2, 5]},
    {'encoder_hidden_size': 2**19},
    {'downsampling_ratios': [2**20] * 16},
    {'decoder_hidden_size': 7},
    {'sampling_rate': True},
  ],
)
def test_configs_are_refused(folder, change):
  (folder / 'config.json').write_text(json.dumps(DAC_CONFIG | change))
  with pytest.raises(ValueError, match='dac'):
    hub.from_pretrained(folder)


@pytest.mark.parametrize(
  'change',
  [
    {'feat_extract_norm': 'layer'},
    {'do_stable_layer_norm': True},
    {'conv_stride': [5]},
    {'num_attention_heads': 3},
    {'layer_norm_eps': 'small'},
    {'num_hidden_layers': 2**20},
  ],
)
def test_hubert_configs_are_refused(change):
  with pytest.raises(ValueError):
    hubert.config_from(HUBERT_CONFIG | change)


def test_config_that_is_too_large(folder):
  (folder / 'config.json').write_text('{"a": "' + 'x' * tensors.MAX_JSON_BYTES + '"}')
  with pytest.raises(ValueError, match='more than'):
    hub.from_pretrained(folder)


def test_names_that_are_no_folder(tmp_path, monkeypatch):
  for name in ('nowhere', '../nowhere', 'https://example.org/model', 'a/b/c'):
    with pytest.raises(ValueError, match='neither a folder'):
      hub.from_pretrained(name)
  monkeypatch.setitem(__import__('sys').modules, 'huggingface_hub', None)
  with pytest.raises(ValueError, match='pip install huggingface_hub'):
    hub.from_pretrained('descript/dac_16khz')
  with pytest.raises(ValueError, match='revision'):
    hub.from_pretrained(tmp_path, revision='main')


def test_hub_names_download_config_and_safetensors_alone(folder, monkeypatch):
  asked = {}

  class Hub:
    @staticmethod
    def snapshot_download(name, **options):
      asked.update(options, name=name)
      return str(folder)

  monkeypatch.setitem(__import__('sys').modules, 'huggingface_hub', Hub)
  config, _ = hub.from_pretrained('descript/dac_16khz', revision='abc')
  assert config.num_quantizers == 3
  assert (asked['name'], asked['revision']) == ('descript/dac_16khz', 'abc')
  assert not any(
    pathlib.PurePath('pytorch_model.bin').match(pattern) for pattern in asked['allow_patterns']
  )


def test_hubert_features():
  config = hubert.config_from(HUBERT_CONFIG)
  assert (config.hop_length, config.frame_rate, config.frame_length) == (10, 1600, 20)
  variables = jax.jit(config.make().init)(jax.random.key(0))
  wave_BT = jax.random.normal(jax.random.key(1), (2, 65))
  states = hubert.hidden_states(config, variables, wave_BT, None, jnp.array([65, 33]))
  assert [state.shape for state in states] == [(2, 5, 8)] * 3
  np.testing.assert_array_equal(
    hubert.num_frames(config, np.array([19, 20, 29, 30, 65])), [0, 1, 1, 2, 5]
  )
  np.testing.assert_array_equal(
    hubert.features(config, variables, wave_BT, 1, jnp.array([65, 33])), states[1]
  )
  # The Transformer does not look at the frames of padding: frame 0 and 1 of the second row stay.
  changed = hubert.Encoder(config).apply(
    {'params': variables.params['encoder']},
    jnp.zeros((1, 5, 8)).at[:, 3].set(9),
    jnp.arange(5)[None] < 2,
    2,
  )
  empty = hubert.Encoder(config).apply(
    {'params': variables.params['encoder']}, jnp.zeros((1, 5, 8)), jnp.arange(5)[None] < 2, 2
  )
  np.testing.assert_allclose(changed[-1][:, :2], empty[-1][:, :2], atol=1e-6)
  for layer in (-1, 3):
    with pytest.raises(ValueError, match='this model has 0'):
      hubert.features(config, variables, wave_BT, layer)
  with pytest.raises(ValueError, match='one frame takes 20'):
    hubert.features(config, variables, wave_BT[:, :19], 1)

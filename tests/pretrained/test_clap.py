"""CLAP without its original: what a vector of a clip or a text depends on, what is refused. See
test_clap_oracle.py.
"""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from audiolm_jax import joint_embedding
from audiolm_jax.pretrained import clap, clap_audio, hub
from audiolm_jax.training import checkpoints
from experiments import pretrained
from tests.pretrained import random_weights, vocabulary
from tests.pretrained.parity import noise
from tests.pretrained.test_tensors import write

RATE = 48_000


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return vocabulary.write(
    random_weights.folder(tmp_path_factory.mktemp('clap') / 'in', random_weights.CLAP)
  )


@pytest.fixture(scope='module')
def model(folder):
  return hub.from_pretrained(folder)


@pytest.fixture(scope='module')
def embed(model):
  config, variables = model
  return jax.jit(lambda wave_BT: clap.audio_embeddings(config, variables, wave_BT))


def unit(x_BD):
  return x_BD / np.linalg.norm(x_BD, axis=-1, keepdims=True)


def test_log_mel_by_its_definition():
  """Four frames in float64: mirrored ends, Hann window, power, Slaney's bands from 50 Hz to 14 kHz,
  decibels.
  """
  config = clap_audio.Config()
  wave_BT = noise(clap_audio.CLIP, batch=1)
  got_FM = np.asarray(jax.jit(lambda wave_BT: clap_audio.log_mel(config, wave_BT))(wave_BT))[0]
  assert got_FM.shape == (1001, 64)
  padded_T = np.pad(wave_BT[0].astype(np.float64), 512, mode='reflect')
  filters_MN = librosa.filters.mel(
    sr=RATE, n_fft=1024, n_mels=64, fmin=50, fmax=14_000, dtype=np.float64
  )
  window_N = np.sin(np.pi * np.arange(1024) / 1024) ** 2
  for frame in (0, 1, 777, 1000):
    power_N = np.abs(np.fft.rfft(padded_T[frame * 480 : frame * 480 + 1024] * window_N)) ** 2
    np.testing.assert_allclose(got_FM[frame], 10 * np.log10(filters_MN @ power_N), atol=1e-4)
  silence_FM = clap_audio.log_mel(config, jnp.zeros((1, clap_audio.CLIP)))[0]
  np.testing.assert_allclose(silence_FM, -100, atol=1e-4)


def test_fold_lays_pieces_of_time_over_one_another():
  """1001 frames become 1024, the first and the last stay where they are, the others to a twentieth
  of a frame.
  """
  config = clap_audio.Config()
  value = lambda time, band: 3 * time - 100 * band
  time_F1, band_M = np.arange(1001, dtype=np.float32)[:, None], np.arange(64)
  got = np.asarray(clap_audio.fold(config, jnp.asarray(value(time_F1, band_M), jnp.float32)[None]))[
    0
  ]
  assert got.shape == (256, 256)
  place = np.arange(1024) * 1000 / 1023
  inside = slice(2, 1022)  # beyond the ends there is nothing to rise to
  stretched = np.stack(
    [[got[piece * 64 + band] for piece in range(4)] for band in range(64)]
  ).reshape(64, 1024)
  np.testing.assert_allclose(
    stretched[:, inside], value(place, band_M[:, None])[:, inside], atol=3 / 20
  )
  np.testing.assert_allclose(
    stretched[:, [0, -1]], value(np.array([0, 1000]), band_M[:, None]), atol=1e-3
  )


@pytest.mark.parametrize('moved', [False, True])
def test_patches_see_their_window_and_no_further(moved):
  """Which patches change with one of them: those in the same window of a picture that does not wrap
  around.
  """
  config = clap_audio.Config(window=4)
  block = clap_audio.Block(config, num_heads=2, moved=moved)
  x_BHWD = jax.random.normal(jax.random.key(0), (1, 12, 12, 8))
  params = jax.jit(block.init)(jax.random.key(1), x_BHWD)
  apply = jax.jit(lambda x_BHWD: block.apply(params, x_BHWD))
  number = (np.arange(12) - (2 if moved else 0)) // 4  # of the window along one axis
  for row, column in ((0, 0), (1, 5), (11, 11), (6, 2)):
    changed = (
      np.abs(apply(x_BHWD.at[0, row, column, 0].add(1.0)) - apply(x_BHWD))[0].max(axis=-1) > 1e-6
    )
    np.testing.assert_array_equal(
      changed, (number == number[row])[:, None] & (number == number[column])
    )


def test_a_short_clip_is_repeated_as_a_whole(embed):
  for seconds, times in ((3.3, 3), (7.0, 1), (5.0, 2), (1 / RATE, 480_000)):
    wave_BT = noise(round(seconds * RATE))
    want_BT = np.zeros((2, clap_audio.CLIP), np.float32)
    want_BT[:, : times * wave_BT.shape[1]] = np.concatenate([wave_BT] * times, axis=1)
    np.testing.assert_array_equal(clap.filled(jnp.asarray(wave_BT)), want_BT)
  long_BT = jnp.ones((1, clap_audio.CLIP + 1))
  np.testing.assert_array_equal(clap.filled(long_BT), long_BT)
  wave_BT = noise(3 * RATE)
  np.testing.assert_allclose(
    embed(wave_BT), embed(np.asarray(clap.filled(jnp.asarray(wave_BT)))), atol=1e-6
  )


def test_a_long_clip_is_the_mean_of_ten_seconds_from_every_second_on(embed):
  rng = np.random.default_rng(0)
  # windows that differ
  loudness_T = np.repeat(10 ** rng.uniform(-3, 0, 13), RATE)[: round(12.4 * RATE)]
  wave_BT = (noise(len(loudness_T)) * loudness_T).astype(np.float32)
  windows = [
    np.asarray(embed(wave_BT[:, second * RATE : (second + 10) * RATE])) for second in range(3)
  ]
  assert np.abs(windows[0] - windows[2]).max() > 1e-3
  got_BD = np.asarray(embed(wave_BT))
  np.testing.assert_allclose(got_BD, unit(np.mean(windows, axis=0)), atol=1e-6)
  assert np.abs(got_BD[0] - got_BD[1]).max() > 1e-3
  np.testing.assert_allclose(np.linalg.norm(got_BD, axis=1), 1, atol=1e-6)


def test_no_clip_is_refused(model):
  with pytest.raises(ValueError, match='no samples'):
    clap.audio_embeddings(*model, jnp.zeros((1, 0)))


def test_a_text_does_not_depend_on_its_padding_or_its_neighbours(model, folder):
  config, variables = model
  pairs = clap.tokenizer(config, folder)
  tokens_BL = clap.tokens(config, pairs, ['calm guitar', 'the piano of the 1980s, é'])
  assert tokens_BL.shape == (2, 16)
  embed = jax.jit(lambda tokens_BL: clap.text_embeddings(config, variables, tokens_BL))
  both_BD = np.asarray(embed(tokens_BL))
  alone_BD = embed(tokens_BL[:1, : np.sum(tokens_BL[0] != 1)])
  np.testing.assert_allclose(both_BD[0], alone_BD[0], atol=1e-6)
  assert np.abs(both_BD[0] - both_BD[1]).max() > 0.01
  np.testing.assert_allclose(np.linalg.norm(both_BD, axis=1), 1, atol=1e-6)
  swapped_BL = tokens_BL.copy()
  swapped_BL[0, 1:3] = swapped_BL[0, 2:0:-1]
  assert np.abs(embed(swapped_BL)[0] - both_BD[0]).max() > 1e-3  # order counts


def test_texts_that_are_too_long_are_refused(model, folder):
  config, variables = model
  assert config.text.max_tokens == 38
  pairs = clap.tokenizer(config, folder)
  assert clap.tokens(config, pairs, ['x' * 36]).shape == (1, 38)
  with pytest.raises(ValueError, match='makes 39 tokens, the model reads 38'):
    clap.tokens(config, pairs, ['x' * 37])
  with pytest.raises(ValueError, match='39 tokens: this model reads at most 38'):
    clap.text_embeddings(config, variables, jnp.zeros((1, 39), jnp.int32))


def test_a_joint_embedding_equals_the_functions(model, folder, embed):
  config, variables = model
  joint = joint_embedding.of_clap(config, variables, folder)
  assert (joint.sample_rate, joint.window_length, joint.embedding_dim) == (RATE, 480_000, 6)
  wave_BT = noise(round(12.4 * RATE))
  wave_BT[1, 3 * RATE :] = 0.5  # not a part of the second clip
  got_BD = joint.audio(wave_BT, np.array([wave_BT.shape[1], 3 * RATE]))
  np.testing.assert_allclose(got_BD[0], embed(wave_BT)[0], atol=1e-5)
  np.testing.assert_allclose(got_BD[1], embed(wave_BT[:, : 3 * RATE])[1], atol=1e-5)
  captions = ['calm guitar', 'the piano of the 1980s, é']
  tokens_BL = clap.tokens(config, clap.tokenizer(config, folder), captions)
  want_BD = jax.jit(lambda tokens_BL: clap.text_embeddings(config, variables, tokens_BL))(tokens_BL)
  np.testing.assert_allclose(joint.texts(captions), want_BD, atol=1e-5)
  with pytest.raises(ValueError, match="' ' is blank"):
    joint.texts([' '])
  with pytest.raises(ValueError, match='makes 39 tokens, the model reads 38'):
    joint.texts(['x' * 37])


def test_logits_are_scaled_products(model):
  audio_BD, text_ND = (
    unit(np.random.default_rng(n).normal(size=(n, 6))).astype(np.float32) for n in (2, 3)
  )
  got = clap.logits(model[1], jnp.asarray(audio_BD), jnp.asarray(text_ND))
  scale = np.exp(model[1].params['logit_scale_a'])
  np.testing.assert_allclose(
    got, [[scale * np.dot(a, t) for t in text_ND] for a in audio_BD], rtol=1e-5
  )


def test_parameter_diff(tmp_path):
  arrays = random_weights.arrays(random_weights.CLAP)
  table, projection = (
    'audio_model.audio_encoder.layers.1.blocks.0.attention.self.relative_position_bias_table',
    'text_projection.linear1.weight',
  )
  del arrays['audio_model.audio_encoder.batch_norm.running_mean']
  arrays[table] = np.zeros((49, 3), np.float32)
  arrays['audio_model.audio_encoder.patch_embed.fusion_model.bias'] = np.zeros(2, np.float32)
  # What older files hold beside the weights.
  arrays['text_model.embeddings.position_ids'] = np.arange(40)[None]
  arrays['audio_model.audio_encoder.batch_norm.num_batches_tracked'] = np.array(3)
  arrays[table.replace('bias_table', 'index')] = np.zeros((16, 16), np.int64)
  with pytest.raises(ValueError) as caught:
    hub.from_pretrained(write(tmp_path, random_weights.CLAP, arrays))
  assert arrays[projection].shape == (6, 8)
  assert sorted(line.strip() for line in str(caught.value).splitlines()[1:]) == [
    'audio_model.audio_encoder.batch_norm.running_mean: (absent) in the file, [16] in the model',
    f'{table}: [49, 3] in the file, [49, 2] in the model',
    'audio_model.audio_encoder.patch_embed.fusion_model.bias: [2] in the file, (absent) in the model',
  ]


@pytest.mark.parametrize(
  'part, change, message',
  [
    (
      'audio_config',
      {'enable_fusion': True},
      'audio_config: enable_fusion=True.*take one that is not fused',
    ),
    ('audio_config', {'depths': [1, 2]}, 'different lengths'),
    ('audio_config', {'hidden_size': 32}, 'hidden_size=32, only 16'),
    ('audio_config', {'patch_stride': [2, 2]}, 'patch_stride'),
    (
      'audio_config',
      {'num_attention_heads': [1, 3, 2]},
      'stage 1 of width 8 is no multiple of its 3 heads',
    ),
    ('audio_config', {'num_mel_bins': 32}, 'does not hold 1001 frames'),
    ('audio_config', {'num_mel_bins': 24}, 'does not hold 1001 frames'),
    ('audio_config', {'window_size': 5}, 'no multiple of window_size=5'),
    ('audio_config', {'depths': [1, 2**10, 1]}, 'more than 256 layers'),
    ('audio_config', {'mlp_ratio': 0}, 'mlp_ratio'),
    ('audio_config', {'patch_embeds_hidden_size': 2**19}, 'width of the last stage'),
    ('text_config', {'hidden_act': 'relu'}, 'text_config: .*hidden_act'),
    ('text_config', {'position_embedding_type': 'relative_key'}, 'position_embedding_type'),
    ('text_config', {'num_attention_heads': 3}, 'not a multiple'),
    ('text_config', {'pad_token_id': 300}, 'leaves no text'),
    ('text_config', {'max_position_embeddings': 3}, 'leaves no text'),
    ('text_config', {'num_hidden_layers': 2**20}, 'num_hidden_layers'),
  ],
)
def test_configs_are_refused(part, change, message):
  data = random_weights.CLAP
  with pytest.raises(ValueError, match=message):
    clap.config_from(data | {part: data[part] | change})


@pytest.mark.parametrize(
  'change',
  [
    {'projection_hidden_act': 'gelu'},
    {'audio_config': None},
    {'text_config': [1]},
    {'projection_dim': 0},
  ],
)
def test_other_configs_are_refused(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    clap.config_from(random_weights.CLAP | change)


def test_published_configs():
  """The larger ones state little beside the defaults."""
  larger = {'patch_embeds_hidden_size': 128, 'hidden_size': 1024, 'depths': [2, 2, 12, 2]}
  config = clap.config_from({'audio_config': larger, 'text_config': {}})
  assert (
    config.audio == clap_audio.Config(width=128, depths=(2, 2, 12, 2))
    and config.audio.output_width == 1024
  )
  assert (config.sample_rate, config.embedding_dim, config.text.max_tokens) == (48_000, 512, 512)
  assert clap.config_from({'audio_config': {}, 'text_config': {}}) == clap.Config()


@pytest.mark.parametrize(
  'name, message',
  [
    (
      'OpenMuQ/MuQ-MuLan-large',
      'CC-BY-NC-4.0.* is not read.*commercial use.*larger_clap_music stands in',
    ),
    ('laion/clap-htsat-fused', 'is not read.*use laion/clap-htsat-unfused'),
  ],
)
def test_what_we_know_and_do_not_read_is_refused_with_its_reason(
  tmp_path, monkeypatch, name, message
):
  # nothing is downloaded first
  monkeypatch.setitem(__import__('sys').modules, 'huggingface_hub', None)
  with pytest.raises(ValueError, match=message):
    hub.from_pretrained(name)
  with pytest.raises(ValueError, match=message):
    pretrained.main(['import', name, '--allow-non-commercial', f'--output={tmp_path / "out"}'])
  assert not (tmp_path / 'out').exists()


def test_an_import_has_its_vocabulary_and_takes_the_place_of_mulan_in_a_workdir(
  tmp_path, folder, model
):
  pretrained.main(['import', str(folder), f'--output={tmp_path / "out"}', '--licence=Apache-2.0'])
  config, variables, metadata = checkpoints.load_variables(tmp_path / 'out')
  assert config == model[0] and metadata['pretrained']['licence'] == 'Apache-2.0'
  jax.tree.map(np.testing.assert_array_equal, variables, model[1])
  pairs = clap.tokenizer(config, tmp_path / 'out')
  assert pairs == clap.tokenizer(config, folder)
  run = tmp_path / 'run'
  pretrained.main(['import', str(folder), f'--workdir={run}', '--licence=Apache-2.0'])
  assert checkpoints.load_variables(run / 'mulan').config == config
  with pytest.raises(ValueError, match='vocab.json cannot be read'):
    clap.tokenizer(config, tmp_path)


def test_the_vocabulary_is_downloaded_with_the_weights(tmp_path, monkeypatch):
  folder = vocabulary.write(random_weights.folder(tmp_path, random_weights.CLAP))
  asked = {}

  class Hub:
    @staticmethod
    def snapshot_download(name, **options):
      asked.update(options)
      return str(folder)

  monkeypatch.setitem(__import__('sys').modules, 'huggingface_hub', Hub)
  assert (
    clap.tokenizer(clap.config_from(random_weights.CLAP), hub.fetch('laion/larger_clap_music')).ids[
      '<pad>'
    ]
    == 1
  )
  (folder / 'model.safetensors').rename(folder / 'elsewhere')
  with pytest.raises(ValueError, match='no safetensors at revision main.*refs/pr/1'):
    hub.fetch('laion/larger_clap_music')
  assert {'vocab.json', 'merges.txt', '*.safetensors', 'config.json'} <= set(
    asked['allow_patterns']
  )

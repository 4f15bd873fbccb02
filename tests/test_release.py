import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import audiolm_jax
from audiolm_jax import (
  arrays_file,
  audio,
  chain,
  embedding_tokens,
  generation,
  joint_embedding,
  kmeans,
  release,
  tokenizer,
)
from audiolm_jax.embedding_tokens import Quantizer
from audiolm_jax.errors import UserError
from audiolm_jax.metrics import codec as codec_metrics
from audiolm_jax.training import checkpoints, exports
from tests import hub_server, toys


@pytest.fixture(scope='module')
def models():
  return toys.models()


@pytest.fixture(scope='module')
def written(models, tmp_path_factory):
  """A release in float16, with a detector; not to be changed."""
  folder = tmp_path_factory.mktemp('release') / 'toy'
  others = {'detector': toys.model('detector')}
  release.save_pretrained(models, folder, others=others, texts={'README.md': 'A toy.\n'})
  return folder


@pytest.fixture
def copied(written, tmp_path):
  shutil.copytree(written, tmp_path / 'copy')
  return tmp_path / 'copy'


def halved(tree):
  return jax.tree.map(lambda x: np.asarray(x).astype(np.float16).astype(np.float32), tree)


def test_float32_gives_back_the_same_continuation(models, tmp_path):
  release.save_pretrained(models, tmp_path / 'toy', dtype='float32')
  loaded = audiolm_jax.from_pretrained(tmp_path / 'toy')
  assert loaded.sampling == toys.SAMPLING
  prompt_BT = toys.noise(0.5)[None]
  for acoustic in chain.ACOUSTIC:
    expected, found = (
      generation.continue_audio(one, jax.random.key(3), prompt_BT, seconds=0.4, acoustic=acoustic)
      for one in (models, loaded)
    )
    np.testing.assert_array_equal(found.codes_BFQ, expected.codes_BFQ)
    np.testing.assert_array_equal(found.wave_BT, expected.wave_BT)


def test_two_exports_of_the_same_weights_are_equal_files_with_the_mode_of_the_umask(
  models, written, tmp_path, umask
):
  others = {'detector': toys.model('detector')}
  again = tmp_path / 'again'
  release.save_pretrained(models, again, others=others, texts={'README.md': 'A toy.\n'})
  names = ('digests.json', 'semantic_tokens/kmeans.safetensors')
  for name in names:
    assert (again / name).read_bytes() == (written / name).read_bytes()
  modes = {path.stat().st_mode & 0o777 for path in again.rglob('*')}
  assert modes == {0o640, 0o750}  # files and folders


def test_weights_are_those_of_training_in_half_precision(models, written):
  for name in ('semantic', 'coarse', 'fine', 'soundstorm'):
    found = checkpoints.load_variables(written / name)
    expected = getattr(models, name)
    assert found.config == expected.config and found.metadata['step'] == 7
    jax.tree.map(
      np.testing.assert_array_equal, found.variables.params, halved(expected.variables.params)
    )
  stored = load_file(written / 'semantic/model.safetensors')
  assert {array.dtype for array in stored.values()} == {np.dtype('float16')}
  vectors = checkpoints.load_variables(written / 'soundstream').variables.state['codebooks']
  expected = models.tokenizer.codec.variables.state['codebooks'].vectors_QKD
  np.testing.assert_array_equal(vectors.vectors_QKD, halved(expected))


def test_what_only_training_needs_is_left_out(models, written):
  stored = set(load_file(written / 'soundstream/model.safetensors'))
  generator = arrays_file.flatten(models.tokenizer.codec.variables.params['generator'])
  names = {f'params.generator.{path}' for path in generator}
  assert stored == names | {'state.codebooks.vectors_QKD'}
  features = load_file(written / 'w2v_bert/model.safetensors')
  parts = {name.split('.')[1] for name in features}
  assert parts == {'encoder', 'projection', 'contrastive_blocks', 'mlm_blocks'}


def test_a_release_is_read_as_a_workdir_is(models, written):
  codec = audiolm_jax.load_codec(written)
  loaded = audiolm_jax.load_models(written)
  assert loaded.tokenizer.codec.fingerprint == codec.fingerprint
  assert loaded.semantic.metadata['fingerprints'] == loaded.tokenizer.fingerprints
  clusters = kmeans.load(tokenizer.clusters_path(written))
  assert clusters.layer == 1
  np.testing.assert_array_equal(
    clusters.quantizer.centroids_KD, models.tokenizer.semantic.quantizer.centroids_KD
  )
  assert checkpoints.load_variables(written / 'detector').config == toys.CONFIGS['detector']


def test_stages_choose_the_acoustic_models(written):
  loaded = release.from_pretrained(written, stages=['soundstorm'])
  assert loaded.soundstorm is not None and loaded.coarse is None and loaded.fine is None
  with pytest.raises(UserError, match=r"stages=\['sound'\]: choose from coarse, fine, soundstorm"):
    release.from_pretrained(written, stages=['sound'])


def test_a_stage_that_is_not_there_is_named(copied):
  shutil.rmtree(copied / 'fine')
  with pytest.raises(UserError, match='has no stage fine: it has coarse, soundstorm'):
    release.from_pretrained(copied, stages=['coarse', 'fine'])


@pytest.mark.parametrize('name', ['config.json', 'soundstorm/model.safetensors'])
def test_a_flipped_bit_is_refused(copied, name):
  data = bytearray((copied / name).read_bytes())
  data[-2] ^= 1
  (copied / name).write_bytes(data)
  with pytest.raises(UserError, match=f'{name} (differs from its digest|is not JSON)'):
    release.from_pretrained(copied)


def test_missing_files_are_named(copied):
  (copied / 'digests.json').unlink()
  with pytest.raises(UserError, match='digests.json cannot be read .*fetch or export it again'):
    release.from_pretrained(copied)


def rewritten(folder, **changes):
  config = json.loads((folder / 'config.json').read_text()) | changes
  (folder / 'config.json').write_text(json.dumps(config))
  exports.write_digests(folder)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'model_type': 'bert'}, 'describes a model of type bert, not audiolm_jax'),
    ({'format': 2}, 'has format 2; audiolm_jax .* reads format 1'),
    ({'stages': {'semantic': 3}}, 'has no stages as audiolm_jax writes them'),
    ({'sampling': None}, 'has no sampling rules'),
    ({'sampling': {'class': 'os.system', 'fields': {}}}, "names the class 'os.system'"),
  ],
)
def test_other_configs_are_refused(copied, changes, message):
  rewritten(copied, **changes)
  with pytest.raises(UserError, match=message):
    release.from_pretrained(copied)


def test_arrays_of_another_shape_are_refused(copied):
  path = copied / 'semantic/model.safetensors'
  arrays = load_file(path)
  arrays['params.output'] = arrays['params.output'][:, :-1].copy()
  save_file(arrays, path)
  exports.write_digests(copied)
  with pytest.raises(UserError, match="holds other arrays than its config, as .*'params.output'"):
    release.from_pretrained(copied)


def test_nothing_is_overwritten_and_nothing_is_left_half(models, written, tmp_path):
  with pytest.raises(UserError, match='toy exists: choose another folder'):
    release.save_pretrained(models, written)
  with pytest.raises(UserError, match="dtype='int8': choose one of float32, float16"):
    release.save_pretrained(models, tmp_path / 'new', dtype='int8')
  large = models.semantic.variables.params | {'output': np.full((8, 8), 1e6, np.float32)}
  semantic = models.semantic._replace(variables=models.semantic.variables._replace(params=large))
  with pytest.raises(UserError, match=r'output.* holds values that float16 cannot: use float32'):
    release.save_pretrained(models._replace(semantic=semantic), tmp_path / 'new')
  with pytest.raises(FileNotFoundError):
    release.save_pretrained(models, tmp_path / 'new', copies={'a.wav': tmp_path / 'missing'})
  assert not list(tmp_path.iterdir())


def test_names_that_are_nothing_are_refused(tmp_path):
  with pytest.raises(UserError, match='nothing is neither a folder of this machine nor a repos'):
    release.fetch('nothing')
  with pytest.raises(UserError, match='config.json cannot be read'):
    release.fetch(tmp_path)
  with pytest.raises(UserError, match="revision='v1' is for repositories"):
    release.fetch(tmp_path, revision='v1')


@pytest.fixture
def hub(monkeypatch, tmp_path):
  constants = pytest.importorskip('huggingface_hub.constants')
  with hub_server.serving() as server:
    url = f'{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}'
    monkeypatch.setattr(constants, 'ENDPOINT', server.url)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', url)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    yield server


def test_a_release_goes_to_the_hub_and_comes_back(written, hub):
  url = audiolm_jax.push_to_hub(written, 'me/toy', token='hf_secret', revision='v1')
  assert url.startswith(f'{hub.url}/me/toy/commit/')
  assert hub.tokens == {'Bearer hf_secret'}
  stored = {str(path.relative_to(written)) for path in written.rglob('*') if path.is_file()}
  assert set(hub.repositories['me/toy']['v1']) == stored
  assert not hub.repositories['me/toy']['main']
  folder = release.fetch('me/toy', revision='v1')
  exports.check_all(folder)
  found = audiolm_jax.from_pretrained('me/toy', revision='v1', stages=['soundstorm'])
  expected = release.from_pretrained(written)
  assert found.tokenizer.fingerprints == expected.tokenizer.fingerprints
  with pytest.raises(UserError, match='me/other could not be downloaded'):
    release.fetch('me/other')


def test_a_damaged_release_is_not_published(copied, hub):
  (copied / 'README.md').write_text('changed')
  with pytest.raises(UserError, match='README.md differs from its digest'):
    audiolm_jax.push_to_hub(copied, 'me/toy', token='hf_secret')
  exports.write_digests(copied)
  (copied / 'notes.txt').write_text('more')
  with pytest.raises(UserError, match='digests.json does not list notes.txt'):
    audiolm_jax.push_to_hub(copied, 'me/toy', token='hf_secret')
  assert not hub.repositories


def test_the_packaged_release_is_whole_and_small():
  folder = release.fetch()
  exports.check_all(folder)
  stored = [path for path in folder.rglob('*') if path.is_file()]
  assert sum(path.stat().st_size for path in stored) < 20e6
  assert len(list((folder / 'examples').glob('*.flac'))) == 3
  models = release.from_pretrained()
  # One acoustic path: the package holds 20 MB, and the coarse model has all of its levels.
  assert models.coarse is not None and models.fine is None and models.soundstorm is None
  assert models.tokenizer.codec.bit_rate() == 6000


def test_the_packaged_codec_reconstructs_speakers_it_has_never_heard():
  folder = release.fetch()
  codec = audiolm_jax.load_codec(folder)
  for path in (folder / 'examples').glob('*.flac'):
    wave_BT = jnp.asarray(audio.load(path, codec.sample_rate)[None])
    distances = [
      float(codec_metrics.log_mel_distance(wave_BT, codec.reconstruct(wave_BT, levels), 16_000)[0])
      for levels in (1, 3, 12)
    ]
    # docs/results/speech.md has the means over many clips; silence would have 4 nats or more.
    assert distances[2] < distances[1] < distances[0] < 1.0 and distances[2] < 0.6


def test_a_release_holds_the_joint_embedding_and_its_quantizer(models, tmp_path):
  mulan = toys.model('mulan')
  vectors_QKD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4)), jnp.float32)
  music = tokenizer.MusicTokenizer(
    joint_embedding.of_mulan(mulan.config, mulan.variables),
    Quantizer(vectors_QKD),
    words=frozenset({'slow', 'drums'}),
  )
  both = tokenizer.Tokenizer(models.tokenizer.codec, models.tokenizer.semantic, music)
  release.save_pretrained(models._replace(tokenizer=both), tmp_path / 'toy', dtype='float32')
  found = audiolm_jax.from_pretrained(tmp_path / 'toy')
  assert found.tokenizer.fingerprints['music_tokens'] == music.fingerprint
  assert found.semantic.metadata['fingerprints'] == found.tokenizer.fingerprints
  assert found.tokenizer.spec.condition_levels == 2 and found.tokenizer.spec.condition_size == 4
  assert found.tokenizer.music.words == {'slow', 'drums'}
  captions = ['a slow piece', 'drums']
  np.testing.assert_array_equal(found.tokenizer.music.texts(captions), music.texts(captions))
  # Another embedding beside the quantizer is noticed.
  other = joint_embedding.of_mulan(mulan.config, toys.model('mulan', seed=1).variables)
  quantizer = tmp_path / 'toy/music_tokens/quantizer.safetensors'
  with pytest.raises(UserError, match='was fitted to embeddings of the model'):
    embedding_tokens.load(quantizer, other.fingerprint)

"""What encoding says of a corpus: what was left out, what has changed, who else encodes. Models are
stubs.
"""

import dataclasses
import os
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from audiolm_jax import audio, embedding_tokens, storage, tokenizer
from audiolm_jax.data import inventory, skipped, texts, token_shards
from audiolm_jax.stages.base import Condition
from audiolm_jax.tokens import Spec
from experiments import corpora, encode, sources
from experiments.recipe import Imported, MusicTokens
from experiments.recipes import folder as folder_recipe
from tests import toy_embedding

RATE, HOP = 16_000, 320
PRINTS = {'soundstream': 'abc', 'semantic_tokens': 'def'}
SPEC = Spec(frame_rate=50.0, semantic_rate=25.0)
CODEC = types.SimpleNamespace(sample_rate=RATE, hop_length=HOP, context=0, past=0)
EMBEDDING = dataclasses.replace(
  toy_embedding.EMBEDDING, config=toy_embedding.Config(RATE), window_length=2 * RATE
)
AGAIN = '`python -m experiments.encode'


def encode_batch(wave_BT):
  """A code is the number of the first sample's sixteenth."""
  codes_BFQ = np.round(wave_BT[:, ::HOP, None] * 16).astype(np.int32)
  return codes_BFQ, codes_BFQ[:, ::2, 0]


def fill(root, names):
  root.mkdir(exist_ok=True)
  for index, name in enumerate(names, 1):
    audio.save(root / name, np.full(2 * HOP * index, index / 16, np.float32), RATE)


def recipe_of(root, **options):
  options = {'max_bad_fraction': 0.5, **options}
  corpus = corpora.Folder(root=str(root), test_root=str(root.with_name('test')), **options)
  return dataclasses.replace(folder_recipe.RECIPE, corpus=corpus)


def run(recipe, workdir, split='train'):
  encode.encode_split(recipe, workdir, split, encode_batch, CODEC, SPEC, PRINTS)


@pytest.fixture
def root(tmp_path, monkeypatch):
  monkeypatch.setattr(encode, 'SHARD_EXAMPLES', 2)
  monkeypatch.setattr(sources, 'BATCH_SIZE', 1)
  fill(tmp_path / 'test', ['held out.wav'])
  fill(tmp_path / 'audio', [f'{index}.wav' for index in range(5)])
  return tmp_path / 'audio'


def read(workdir, split='train'):
  source = token_shards.TokenShards(workdir / 'tokens', split)
  return [int(source[index]['semantic'][0]) for index in range(len(source))]


def test_what_is_left_out_is_counted_and_listed_and_counts_are_of_what_was_done(
  root, tmp_path, capsys
):
  (root / '1.wav').write_bytes(b'')
  (root / '._2.wav').write_bytes(b'')
  run(recipe_of(root), tmp_path / 'run')
  said = capsys.readouterr().out
  assert read(tmp_path / 'run') == [1, 3, 4, 5]
  listing = str(tmp_path / 'run/corpus/skipped.jsonl')
  assert 'train: 4 clips in 3 shards' in said
  assert f'1 of 5 clips could not be read; they and the reasons: {listing}' in said
  assert [os.path.basename(path) for path, _ in skipped.read(listing)] == ['._2.wav', '1.wav']


def test_a_workdir_in_a_bucket_gets_the_same_files(root, bucket, tmp_path, monkeypatch, capsys):
  """Also after an encoding that ended between two shards."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  (root / '1.wav').write_bytes(b'')
  recipe, folder = recipe_of(root), tmp_path / 'run' / 'tokens'
  run(recipe, tmp_path / 'run')
  run(recipe, bucket)
  assert storage.files_below(bucket / 'tokens') == storage.files_below(folder)
  for name in storage.files_below(folder):
    assert (bucket / 'tokens' / name).read_bytes() == (folder / name).read_bytes(), name
  listing = corpora.listing(sources.corpus_folder(bucket))
  assert listing.startswith(str(tmp_path / 'cache')) and listing in capsys.readouterr().out
  for name in ('train.json', 'train-00001-of-00003.array_record'):
    (bucket / 'tokens' / name).unlink()
  run(recipe, bucket)
  assert read(bucket) == read(tmp_path / 'run') == [1, 3, 4, 5]
  fill(root, ['new.wav'])
  run(recipe, bucket)
  assert f'`gcloud storage mv {bucket}/tokens {bucket}/tokens.old1`' in capsys.readouterr().out
  with encode.only_encoder(bucket / 'tokens'):
    with pytest.raises(ValueError, match='in use by process .*gcloud storage rm gs://'):
      with encode.only_encoder(bucket / 'tokens'):
        pass


def test_a_corpus_that_changed_before_the_end_is_refused_and_put_back_goes_on(
  root, tmp_path, monkeypatch, capsys
):
  workdir = tmp_path / 'run'
  write, calls = token_shards.write_shard, []

  def killed(*arguments):
    calls.append(0)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return write(*arguments)

  monkeypatch.setattr(token_shards, 'write_shard', killed)
  with pytest.raises(KeyboardInterrupt):
    run(recipe_of(root), workdir)
  monkeypatch.setattr(token_shards, 'write_shard', write)
  fill(root, ['00.wav'])
  remedy = f'`mv {workdir}/tokens {workdir}/tokens.old1`, then {AGAIN} --workdir={workdir}`'
  with pytest.raises(ValueError, match=r'1 added .00.wav.*') as error:
    run(recipe_of(root), workdir)
  assert remedy in str(error.value)
  (root / '00.wav').unlink()
  audio.save(root / '4.wav', np.full(9 * HOP, 0.5, np.float32), RATE, overwrite=True)
  with pytest.raises(ValueError, match='1 changed .4.wav'):
    run(recipe_of(root), workdir)
  os.rename(workdir / 'tokens', workdir / 'tokens.old1')  # the remedy, as printed
  run(recipe_of(root), workdir)
  assert read(workdir) == [1, 2, 3, 4, 8]
  assert 'tokens.old2' in encode.move_command(workdir / 'tokens')


def test_a_finished_encode_says_what_was_added_since_and_how_to_add_it(root, tmp_path, capsys):
  workdir = tmp_path / 'run'
  run(recipe_of(root), workdir)
  run(recipe_of(root), workdir)
  assert capsys.readouterr().out.splitlines()[-1] == f'train: already encoded; {workdir}/tokens'
  fill(root, ['new.wav'])
  run(recipe_of(root), workdir)
  said = capsys.readouterr().out
  assert 'already encoded' in said and '1 added (new.wav)' in said
  assert f'`mv {workdir}/tokens {workdir}/tokens.old1`, then {AGAIN} --workdir={workdir}`' in said
  os.rename(root, tmp_path / 'elsewhere')  # tokens are of use without their corpus
  run(recipe_of(root), workdir)
  assert capsys.readouterr().out == f'train: already encoded; {workdir}/tokens\n'


def test_a_large_corpus_has_no_more_shards_than_a_reader_can_keep_open(
  root, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(encode, 'MAX_SHARDS', 2)
  run(recipe_of(root), tmp_path / 'run')
  assert 'train: 5 clips in 2 shards' in capsys.readouterr().out
  assert read(tmp_path / 'run') == [1, 2, 3, 4, 5]


def test_a_shard_is_read_a_few_batches_ahead():
  reads, done = [], []

  class Corpus:
    def __getitem__(self, index):
      reads.append(index)
      return {'waveform': np.full(2 * HOP, index / 16, np.float32)}

  size = sources.BATCH_SIZE * jax.local_device_count()
  clips = encode.encoded(Corpus(), range(9 * size), encode_batch, CODEC, SPEC, done.append)
  next(clips)
  assert sorted(reads) == list(range(len(reads))) and len(reads) <= 2 * size + 16
  assert len(list(clips)) == 9 * size - 1 and done == [1] * (9 * size)


def test_shards_that_another_version_cut_are_refused(root, tmp_path, monkeypatch):
  workdir = tmp_path / 'run'
  run(recipe_of(root), workdir)
  (workdir / 'tokens/train.json').unlink()
  monkeypatch.setattr(encode, 'MAX_SHARDS', 2)
  with pytest.raises(ValueError, match='00000-of-00003.* is not one of the 2 shards.*tokens.old1'):
    run(recipe_of(root), workdir)


def test_a_moved_corpus_is_the_same(root, tmp_path):
  before = inventory.of(recipe_of(root).corpus.examples('train', None))
  os.rename(root, tmp_path / 'moved')
  assert inventory.of(recipe_of(tmp_path / 'moved').corpus.examples('train', None)) == before


def test_a_split_of_which_nothing_can_be_read_is_refused_with_its_listing(root, tmp_path):
  (tmp_path / 'test/held out.wav').write_bytes(b'no audio')
  with pytest.raises(ValueError, match='test: none of 1 clips could be read; why is in .*skipped'):
    run(recipe_of(root, max_bad_fraction=1.0), tmp_path / 'run', 'test')
  assert not (tmp_path / 'run/tokens/test.json').exists()


def test_the_second_encoder_says_who_holds_the_folder(tmp_path):
  program = (
    'import pathlib, sys; from experiments import encode\n'
    'with encode.only_encoder(pathlib.Path(sys.argv[1])): print(flush=True); input()'
  )
  with subprocess.Popen(
    [sys.executable, '-c', program, tmp_path / 'tokens'], stdin=-1, stdout=-1
  ) as other:
    other.stdout.readline()
    with pytest.raises(ValueError, match=f'is in use by process {other.pid} on'):
      with encode.only_encoder(tmp_path / 'tokens'):
        pass
    other.communicate(b'\n')
  with encode.only_encoder(tmp_path / 'tokens'):
    pass


def test_the_sample_for_the_clusters_is_bound_to_the_corpus(root, tmp_path):
  corpus = lambda: inventory.of(sources.corpus(recipe_of(root), 'train', tmp_path, 8_000))
  before = inventory.digest(corpus())
  fill(root, ['new.wav'])
  assert inventory.digest(corpus()) != before


@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 0.98, 1.0])
def test_a_torn_share_of_the_sample_is_made_again_not_a_traceback(tmp_path, share):
  path = tmp_path / 'sample.npz'
  frames_ND = np.arange(12, dtype=np.float32).reshape(6, 2)
  np.savez(path, frames=frames_ND, lengths=[4, 0, 2], sample='mine')
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  assert encode._is_sample(path, 'mine') == (share == 1) and not encode._is_sample(path, 'other')
  if share == 1:
    whole = encode._read_sample(path)
    assert [len(batch) for batch in whole] == [1, 0, 1]
    np.testing.assert_array_equal(np.concatenate([whole[0][0], whole[2][0]]), frames_ND)
  else:
    with pytest.raises(ValueError, match='sample.npz is damaged .*: run `rm .*sample.npz`'):
      encode._read_sample(path)


def test_the_lock_of_an_encoder_whose_machine_is_gone_names_a_remedy_that_works(tmp_path):
  folder = tmp_path / 'a run' / 'tokens'
  folder.mkdir(parents=True)
  (folder / 'lock').write_text('{"pid": 7, "host": "vanished", "started": "1"}')
  with pytest.raises(ValueError, match='in use by process 7 on vanished') as error:
    with encode.only_encoder(folder):
      pass
  [remedy] = re.findall('`(rm .*)`', str(error.value))
  subprocess.run(remedy, shell=True, check=True)
  with encode.only_encoder(folder):
    pass


def test_voices_stay_beside_their_tokens(root, tmp_path):
  recipe = recipe_of(root, speaker_folders=True)
  run(recipe, tmp_path / 'run')
  source = token_shards.TokenShards(tmp_path / 'run/tokens', 'train')
  assert [int(source[index]['speaker']) for index in range(5)] == [0] * 5


def test_tokens_of_music_are_beside_those_of_the_clips(root, tmp_path):
  workdir = tmp_path / 'run'
  music = dataclasses.replace(toy_embedding.tokenizer(), embedding=EMBEDDING)
  more = lambda wave_T: {
    f'music_{n}': found for n, found in music.seconds(wave_T, RATE, (1, 3)).items()
  }
  encode.encode_split(recipe_of(root), workdir, 'train', encode_batch, CODEC, SPEC, PRINTS, more)
  source = token_shards.TokenShards(workdir / 'tokens', 'train')
  for index in range(5):  # a sample of n sixteenths is half as many eighths
    for name in ('music_1', 'music_3'):
      found_SN = source[index][name]
      assert found_SN.shape == (1, 2) and abs(found_SN[0, 0] - (index + 1) / 2) <= 0.51


def test_tokens_of_another_mulan_are_refused(root, tmp_path):
  workdir = tmp_path / 'run'
  prints = PRINTS | {'music_tokens': 'abc'}
  for name in ('train', 'test'):
    encode.encode_split(recipe_of(root), workdir, name, encode_batch, CODEC, SPEC, prints)
  with pytest.raises(ValueError, match="made by the models .*'music_tokens': 'abc'"):
    other = prints | {'music_tokens': 'def'}
    encode.encode_split(recipe_of(root), workdir, 'train', encode_batch, CODEC, SPEC, other)


def test_the_quantizer_is_fitted_to_windows_of_the_training_split(root, tmp_path, capsys):
  recipe = dataclasses.replace(
    recipe_of(root), music_tokens=MusicTokens(num_quantizers=1, codebook_size=5)
  )
  embedding = EMBEDDING
  encode.fit_music_tokens(recipe, tmp_path / 'run', embedding)
  path = tmp_path / 'run/music_tokens/quantizer.safetensors'
  fitted = embedding_tokens.load(path, embedding.fingerprint)
  assert fitted.map_ED is None
  # Five clips of one window, five codes: each vector is that of a clip.
  samples = np.arange(1, 6) / 16
  found_KD = sorted(np.asarray(fitted.vectors_QKD[0]).tolist(), reverse=True)
  np.testing.assert_allclose(found_KD, toy_embedding.vectors(samples), atol=0.02)
  assert [file.name for file in path.parent.iterdir()] == [path.name]
  assert 'music tokens: 1 levels of 5 codes of 5 windows' in capsys.readouterr().out
  with pytest.raises(ValueError, match='fitted to embeddings of the model'):
    embedding_tokens.load(path, 'another')
  music = tokenizer.MusicTokenizer(embedding, fitted)
  encode.check_music_settings(tmp_path, music, recipe.music_tokens)
  for name, wanted in (('codebook_size', 4), ('text_map', True)):
    other = dataclasses.replace(recipe.music_tokens, **{name: wanted})
    with pytest.raises(ValueError, match=f'{name}=.* the recipe has {wanted}: move it'):
      encode.check_music_settings(tmp_path, music, other)
  mapped = dataclasses.replace(
    recipe, music_tokens=dataclasses.replace(recipe.music_tokens, text_map=True)
  )
  with pytest.raises(ValueError, match='text_map needs a text of every example'):
    encode.fit_music_tokens(mapped, tmp_path / 'other', embedding)


def test_texts_are_mapped_to_the_audio_of_their_clips(tmp_path, monkeypatch):
  """Each row of the sample has the vector of a window and that of the first text of its clip."""
  captions = ['low', 'middle', 'high']
  examples = [
    {'waveform': np.full(800, n / 8, np.float32), 'texts': texts.encode([caption, 'low'], 8)}
    for n, caption in enumerate(captions)
  ]
  rows = list(sources.map_windows(toy_embedding.EMBEDDING, examples, 200, with_texts=True))
  for n, row_ND in enumerate(rows):
    assert row_ND.shape == (3, 4)
    np.testing.assert_allclose(row_ND[:, :2], row_ND[:, 2:], atol=1e-6)
    np.testing.assert_allclose(row_ND[0, :2], toy_embedding.vectors(n / 8), atol=1e-6)
  [plain_ND] = sources.map_windows(toy_embedding.EMBEDDING, examples[:1], 200)
  assert plain_ND.shape == (3, 2)


def test_stages_with_a_condition_need_mulan_in_the_recipe():
  recipe = folder_recipe.RECIPE
  stage = recipe.stages['semantic']
  model = dataclasses.replace(stage.model, condition=Condition(windows=21))
  conditioned = {'semantic': dataclasses.replace(stage, model=model)}
  with pytest.raises(ValueError, match='stages with a condition, but no stage mulan'):
    recipe.derived(conditioned)
  whole = recipe.derived(conditioned | {'mulan': Imported(source='laion/larger_clap_music')})
  assert whole.condition_windows == (21,) and recipe.condition_windows == ()

"""From folders of audio to tokens of MuLan in the shards, and from texts to music: random models."""

import argparse
import dataclasses

import numpy as np
import pytest

from audiolm_jax import audio, kmeans, tokenizer
from audiolm_jax.data import pipeline, texts, token_shards
from audiolm_jax.stages.base import Condition
from audiolm_jax.training import saving
from experiments import corpora, encode, sources, workspace
from experiments.cli import clips
from experiments.inputs import Audio
from experiments.recipe import Evaluation, MusicTokens, SemanticTokens, StageRecipe
from experiments.recipes import folder as folder_recipe
from tests import toys

# Windows of MuLan have 1 s, the crops of the semantic stage 2 s.
CONDITION = Condition(levels=2, size=4, windows=2, dropout=0.1)
SEMANTIC = dataclasses.replace(toys.CONFIGS['semantic'], condition=CONDITION)
SOUNDSTORM = dataclasses.replace(
  toys.CONFIGS['soundstorm'], condition=dataclasses.replace(CONDITION, windows=1)
)


@pytest.fixture
def recipe(tmp_path):
  for folder, count in (('train', 6), ('test', 2)):
    (tmp_path / folder).mkdir()
    for n in range(count):
      audio.save(tmp_path / folder / f'{n}.wav', toys.noise(2.0, seed=n), toys.RATE)
  base = folder_recipe.RECIPE
  model_of = lambda name, model: dataclasses.replace(base.stages[name], model=model)
  return base.derived(
    {
      'mulan': StageRecipe(
        model=toys.CONFIGS['mulan'], data=Audio(), train=base.stages['w2v_bert'].train
      ),
      'semantic': model_of('semantic', SEMANTIC),
      'soundstorm': dataclasses.replace(base.stages['semantic'], model=SOUNDSTORM),
      'coarse': None,
      'fine': None,
    },
    corpus=corpora.Folder(root=str(tmp_path / 'train'), test_root=str(tmp_path / 'test')),
    semantic_tokens=SemanticTokens(layer=1, num_clusters=toys.CLUSTERS),
    music_tokens=MusicTokens(num_quantizers=3, codebook_size=4, sample_seconds=100.0),
    sampling=toys.SAMPLING,
    evaluation=Evaluation(carry_seconds=0.4),
  )


def test_words_of_training_texts_are_read_from_captions_or_from_examples(tmp_path, monkeypatch):
  base = folder_recipe.RECIPE
  (tmp_path / 'music').mkdir()
  for n in range(2):
    audio.save(tmp_path / f'music/{n}.wav', toys.noise(0.5, seed=n), toys.RATE)
  listed = tmp_path / 'captions.csv'
  listed.write_text('file,caption,caption2\n0.wav,Slow harp,\n1.wav,"slow, é",fast\n')
  corpus = corpora.Captioned(
    root=str(tmp_path / 'music'), captions=str(listed), num_texts=2, held_out=0.0
  )
  words_of = lambda corpus: sources.training_words(base.derived(corpus=corpus), tmp_path / 'run')
  assert words_of(corpus) == {'slow', 'harp', 'é', 'fast'}
  monkeypatch.setattr(sources, 'MAX_WORDS', 3)
  assert words_of(corpus) == set()
  assert words_of(corpora.Folder(root=str(tmp_path / 'music'), held_out=0.0)) == set()
  described = [{'texts': texts.encode([name], 8)} for name in ('a cello', 'a flute')]
  monkeypatch.setattr(sources, 'corpus', lambda *arguments: [None, *described])
  assert words_of(corpus) == {'a', 'cello', 'flute'}


def test_tokens_of_mulan_reach_the_stages_and_texts_the_music(recipe, tmp_path, capsys):
  workdir = tmp_path / 'run'
  semantic = toys.models().tokenizer.semantic
  for name in ('soundstream', 'w2v_bert', 'mulan'):
    saving.save_variables(workdir / name, *toys.model(name))
  kmeans.save(
    tokenizer.clusters_path(workdir),
    semantic.quantizer,
    layer=1,
    frames_per_token=1,
    model=semantic.encoder.fingerprint,
  )
  encode.encode_corpus(recipe, workdir)

  source = token_shards.TokenShards(workdir / 'tokens', 'train')
  assert source.metadata['condition_levels'] == 3 and source.metadata['condition_size'] == 4
  prints = source.metadata['fingerprints']
  assert set(prints) == {'soundstream', 'semantic_tokens', 'music_tokens'}
  music = tokenizer.load_music_tokenizer(workdir)
  assert prints['music_tokens'] == music.fingerprint
  crop = pipeline.crop(source[3], SEMANTIC.make().batch)
  assert crop['music_2'].shape == (1, 2) and crop['semantic'].shape == (50,)
  wave_T = audio.load(tmp_path / 'train/3.wav', toys.RATE)
  expected = music.seconds(wave_T, toys.RATE, (1, 2))
  np.testing.assert_array_equal(crop['music_2'][0], expected[2][0, :2])
  np.testing.assert_array_equal(source[3]['music_1'], expected[1])

  for name, config in (('semantic', SEMANTIC), ('soundstorm', SOUNDSTORM)):
    model = toys.with_random_weights(config)
    metadata = {'fingerprints': prints}
    saving.save_variables(workdir / name, model.config, model.variables, metadata)
  models = workspace.load_models(workdir)
  args = argparse.Namespace(
    seed=0, acoustic='soundstorm', seconds=3.0, story_seconds=2.0, candidates=1, guidance=2.0
  )
  waves = clips.generate(args, recipe, models, [], [['slow piano', 'drums'], ['a flute']])
  assert [len(wave_T) for wave_T in waves] == [3 * toys.RATE] * 2
  assert 'slow piano | drums' in capsys.readouterr().out

  # The quantizer of another run makes other tokens.
  tokenizer.music_path(workdir).unlink()
  other = dataclasses.replace(recipe.music_tokens, seed=1)
  encode.fit_music_tokens(
    dataclasses.replace(recipe, music_tokens=other), workdir, workspace.load_embedding(workdir)
  )
  with pytest.raises(ValueError, match='semantic was trained on tokens of music_tokens'):
    workspace.load_models(workdir)
  with pytest.raises(ValueError, match='was made by the models'):
    encode.encode_corpus(dataclasses.replace(recipe, music_tokens=other), workdir)
  # So does another MuLan.
  saving.save_variables(workdir / 'other/mulan', *toys.model('mulan', seed=1))
  quantizer = tokenizer.music_path(workdir / 'other')
  quantizer.parent.mkdir()
  quantizer.write_bytes(tokenizer.music_path(workdir).read_bytes())
  with pytest.raises(ValueError, match='was fitted to embeddings of the model'):
    tokenizer.load_music_tokenizer(workdir / 'other')

"""A recipe whose codec and features are imported, end to end: import, k-means, tokens, three
language models, audio.
"""

import dataclasses
import json
import sys

import numpy as np
import pytest

from audiolm_jax import audio
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.tokenizer import clusters_path
from audiolm_jax.training.sharding import MeshConfig
from experiments import encode, generate, pretrained, train, workspace
from experiments import recipe as recipe_lib
from experiments.corpora import Folder
from tests.pretrained import random_weights

TRANSFORMER = TransformerConfig(
  num_layers=1, num_heads=2, width=16, mlp_width=16, dtype='float32', remat=False
)
SIZES = dict(num_clusters=8, transformer=TRANSFORMER)
CODES = dict(codebook_size=16, crop_seconds=0.4)


def shrunk(recipe: recipe_lib.Recipe, root) -> recipe_lib.Recipe:
  """Returns the recipe with its rates, levels and imports, and small in all else."""

  def stage(name, **fields):
    own = recipe.stages[name]
    schedule = dataclasses.replace(
      own.train,
      batch_size=8,
      num_steps=2,
      eval_batches=1,
      save_every=2,
      eval_every=2,
      mesh=MeshConfig(),
    )
    return dataclasses.replace(own, model=dataclasses.replace(own.model, **fields), train=schedule)

  return recipe.derived(
    {
      'semantic': stage('semantic', crop_seconds=0.8, **SIZES),
      'coarse': stage('coarse', **SIZES, **CODES),
      'fine': stage('fine', transformer=TRANSFORMER, **CODES),
    },
    corpus=dataclasses.replace(recipe.corpus, root=str(root), held_out=0.4),
    semantic_tokens=dataclasses.replace(
      recipe.semantic_tokens, layer=2, num_clusters=8, sample_seconds=5.0
    ),
    evaluation=dataclasses.replace(recipe.evaluation, carry_seconds=0.2),
  )


@pytest.fixture
def recordings(tmp_path):
  (tmp_path / 'audio').mkdir()
  for number in range(8):
    wave_T = np.cumsum(np.random.default_rng(number).standard_normal(640 * (31 + number)))
    audio.save(tmp_path / 'audio' / f'{number}.wav', 0.5 * wave_T / np.abs(wave_T).max(), 16_000)
  return tmp_path / 'audio'


def run(monkeypatch, program, *arguments):
  monkeypatch.setattr(sys, 'argv', [program.__name__, *map(str, arguments)])
  program.main()


@pytest.mark.slow  # a minute of compilation each
@pytest.mark.parametrize(
  'name, features',
  [
    ('librispeech_pretrained', random_weights.HUBERT),
    ('librilight_pretrained', random_weights.W2V_BERT2),
  ],
)
def test_the_language_models_are_all_that_is_trained(
  tmp_path, monkeypatch, recordings, name, features
):
  workdir = tmp_path / 'run'
  recipe = dataclasses.replace(recipe_lib.load(name), corpus=Folder(root=''))
  assert list(recipe.trained) == ['semantic', 'coarse', 'fine']
  recipe = shrunk(recipe, recordings)
  monkeypatch.setattr(recipe_lib, 'load', lambda name, overrides=(): recipe)
  options = [f'--workdir={workdir}', f'--recipe={name}']
  with pytest.raises(ValueError, match='pretrained import descript/dac_16khz'):
    run(monkeypatch, encode, *options)
  for data in (random_weights.DAC, features):
    folder = random_weights.folder(tmp_path / data['model_type'], data)
    pretrained.main(['import', str(folder), '--licence=MIT', f'--workdir={workdir}'])
  # Rates that do not fit are refused before anything is computed, and nothing is guessed.
  tokens = recipe.semantic_tokens
  recipe = dataclasses.replace(
    recipe, semantic_tokens=dataclasses.replace(tokens, frames_per_token=1)
  )
  with pytest.raises(ValueError, match='semantic_rate=25.0, the tokens have 50.0'):
    run(monkeypatch, encode, *options)
  assert not clusters_path(workdir).exists()
  recipe = dataclasses.replace(recipe, semantic_tokens=tokens)
  run(monkeypatch, encode, *options)
  made = json.loads((workdir / 'tokens' / 'train.json').read_text())['metadata']
  assert (made['frame_rate'], made['semantic_rate'], made['num_quantizers']) == (50.0, 25.0, 12)
  for stage in recipe.trained:
    run(monkeypatch, train, f'--stage={stage}', *options)
  run(
    monkeypatch,
    generate,
    *options,
    f'--prompt={recordings / "3.wav"}',
    '--seconds=0.4',
    f'--output={tmp_path / "out"}',
  )
  continued_T = audio.load(tmp_path / 'out' / '3_continuation.wav', 16_000)
  prompt_T = audio.load(recordings / '3.wav', 16_000)
  assert len(continued_T) == len(prompt_T) + 6_400 and np.std(continued_T[len(prompt_T) :]) > 0
  # The tokens of a prompt are those that were written of the same audio.
  models = workspace.load_models(workdir)
  semantic = models.tokenizer.semantic
  assert semantic.quantizer.centroids_KD.shape == (8, 8) and semantic.encoder.frames_per_token == 2
  semantic_BS, codes_BFQ = models.tokenizer.encode(prompt_T[None])
  stored = [
    example for split in ('train', 'test') for example in workspace.token_source(workdir, split)
  ]
  [same] = [example for example in stored if len(example['semantic']) == len(prompt_T) // 640]
  np.testing.assert_array_equal(semantic_BS[0], same['semantic'])
  np.testing.assert_array_equal(codes_BFQ[0], same['codes'])
  assert len(np.unique(semantic_BS)) > 2

r"""Trains on your own audio files, at a tenth of the paper's size: one GPU or TPU chip.

  python -m experiments.train --stage=all --recipe=folder --workdir=... \
    --set corpus.root=/data/my_recordings

Reads WAV, FLAC, OGG and MP3 at any rate; 5 % of the files are held out. Not trained yet: no
results.
"""

import dataclasses

from audiolm_jax.nn.seanet import SEANet
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.stages import coarse, fine, semantic, soundstream, w2v_bert
from audiolm_jax.training.sharding import MeshConfig

from ..corpora import Folder
from ..inputs import Audio, Tokens
from ..recipe import Recipe, SemanticTokens, StageRecipe
from . import librilight

TRANSFORMER = TransformerConfig(num_layers=8, num_heads=8, width=512, mlp_width=2048)
LANGUAGE_MODEL = dataclasses.replace(
  librilight.LANGUAGE_MODEL,
  batch_size=32,
  num_steps=100_000,
  mesh=MeshConfig(),
  save_every=1_000,
  eval_every=2_000,
)

RECIPE = Recipe(
  corpus=Folder(root=''),
  stages={
    'soundstream': StageRecipe(
      model=soundstream.Config(network=SEANet(encoder_channels=16, decoder_channels=32)),
      data=Audio(),
      train=dataclasses.replace(
        librilight.RECIPE.stages['soundstream'].train, batch_size=16, num_steps=200_000
      ),
    ),
    'w2v_bert': StageRecipe(
      model=w2v_bert.Config(
        conv_channels=128,
        num_contrastive_layers=6,
        num_mlm_layers=6,
        width=512,
        mlp_width=2048,
        feature_layer=4,
        dtype='bfloat16',
      ),
      data=Audio(),
      train=dataclasses.replace(
        librilight.RECIPE.stages['w2v_bert'].train,
        batch_size=32,
        num_steps=100_000,
        mesh=MeshConfig(),
        save_every=1_000,
      ),
    ),
    'semantic': StageRecipe(
      model=semantic.Config(num_clusters=512, transformer=TRANSFORMER),
      data=Tokens(),
      train=LANGUAGE_MODEL,
    ),
    'coarse': StageRecipe(
      model=coarse.Config(num_clusters=512, transformer=TRANSFORMER),
      data=Tokens(),
      train=LANGUAGE_MODEL,
    ),
    'fine': StageRecipe(
      model=fine.Config(transformer=TRANSFORMER), data=Tokens(), train=LANGUAGE_MODEL
    ),
  },
  semantic_tokens=SemanticTokens(layer=4, num_clusters=512),
)

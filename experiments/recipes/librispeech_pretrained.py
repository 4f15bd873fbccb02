r"""Trains small language models on LibriSpeech with tokens of pretrained models: one chip.

  python -m experiments.pretrained import descript/dac_16khz --workdir=...
  python -m experiments.pretrained import facebook/hubert-base-ls960 --workdir=...
  python -m experiments.train --stage=all --recipe=librispeech_pretrained --workdir=... \
    --set corpus.root=/data/LibriSpeech

The language models have a tenth of the paper's size. The root holds the FLAC files, in any folders.
HuBERT base: layer 9 and 500 clusters, as in its paper (arXiv 2106.07447, section IV-B) for the
targets of larger models; the mean of two frames makes a token, which gives AudioLM's 25 tokens/s.
Not trained yet: no results.
"""

from audiolm_jax.stages import coarse, semantic

from ..corpora import Folder
from ..inputs import Tokens
from ..recipe import Imported, Recipe, SemanticTokens, StageRecipe
from . import folder

NUM_CLUSTERS = 500

RECIPE = Recipe(
  corpus=Folder(root='', held_out=0.01),
  stages={
    'soundstream': Imported(source='descript/dac_16khz'),
    'w2v_bert': Imported(source='facebook/hubert-base-ls960'),
    'semantic': StageRecipe(
      model=semantic.Config(num_clusters=NUM_CLUSTERS, transformer=folder.TRANSFORMER),
      data=Tokens(),
      train=folder.LANGUAGE_MODEL,
    ),
    'coarse': StageRecipe(
      model=coarse.Config(num_clusters=NUM_CLUSTERS, transformer=folder.TRANSFORMER),
      data=Tokens(),
      train=folder.LANGUAGE_MODEL,
    ),
    'fine': folder.RECIPE.stages['fine'],
  },
  semantic_tokens=SemanticTokens(layer=9, frames_per_token=2, num_clusters=NUM_CLUSTERS),
)

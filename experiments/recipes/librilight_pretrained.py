r"""Trains AudioLM's language models on Libri-Light with tokens of pretrained models.

  python -m experiments.pretrained import descript/dac_16khz --workdir=...
  python -m experiments.pretrained import facebook/w2v-bert-2.0 --workdir=...
  python -m experiments.train --stage=all --recipe=librilight_pretrained --workdir=... \
    --set corpus.root=/data/libri-light

DAC at 16 kHz has AudioLM's acoustic tokens: 50 frames/s, 12 levels of 1024 codes. w2v-BERT 2.0
makes 50 frames/s; the mean of two frames makes a token, which gives AudioLM's 25 tokens/s. Layer 17
is that of MaskGCT (arXiv 2409.00750). Everything else is as in `librilight`.

Not trained yet: no results.
"""

from ..recipe import Imported, SemanticTokens
from . import librilight

RECIPE = librilight.RECIPE.derived(
  {
    'soundstream': Imported(source='descript/dac_16khz'),
    'w2v_bert': Imported(source='facebook/w2v-bert-2.0'),
    'soundstorm': None,
  },
  semantic_tokens=SemanticTokens(
    layer=17, frames_per_token=2, num_clusters=1024, sample_seconds=72_000.0
  ),
)

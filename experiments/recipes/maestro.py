r"""Trains AudioLM for piano (arXiv 2209.03143, section IV-I) on any folder of recordings.

  python -m experiments.train --stage=all --recipe=maestro --workdir=... \
    --set corpus.root=/data/maestro

The codec has 3 levels of 2^14 codes, and there is no fine stage. Everything else is as in
`librilight`. Not trained yet: no results.
"""

import dataclasses

from audiolm_jax.stages import coarse, soundstream

from ..corpora import Folder
from . import librilight

CODEC = soundstream.PIANO

STAGES = librilight.RECIPE.stages
RECIPE = librilight.RECIPE.derived(
  {
    'soundstream': dataclasses.replace(STAGES['soundstream'], model=CODEC),
    'coarse': dataclasses.replace(
      STAGES['coarse'],
      model=coarse.Config(
        total_quantizers=CODEC.num_quantizers,
        num_quantizers=CODEC.num_quantizers,
        codebook_size=CODEC.codebook_size,
      ),
    ),
    'fine': None,
    'soundstorm': None,  # its paper covers speech only
  },
  corpus=Folder(root=''),
)

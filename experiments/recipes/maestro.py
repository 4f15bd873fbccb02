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

RECIPE = dataclasses.replace(
  librilight.RECIPE,
  corpus=Folder(root=''),
  soundstream=dataclasses.replace(librilight.RECIPE.soundstream, model=CODEC),
  coarse=dataclasses.replace(
    librilight.RECIPE.coarse,
    model=coarse.Config(
      total_quantizers=CODEC.num_quantizers,
      num_quantizers=CODEC.num_quantizers,
      codebook_size=CODEC.codebook_size,
    ),
  ),
  fine=None,
  soundstorm=None,  # the SoundStorm paper covers speech only
)

"""AudioLM for piano (arXiv 2209.03143, section IV-I): 3 levels of 2^14 codes, no fine stage; any
folder of recordings.

  python -m experiments.train --stage=all --recipe=maestro --workdir=... --set corpus.root=/data/maestro

Not trained by us yet: no numbers. All that is not named here is as in `librilight`.
"""

import dataclasses

from audiolm_jax.stages import coarse, soundstream
from experiments.corpora import Folder
from experiments.recipes import librilight

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
  soundstorm=None,  # its paper is about speech
)

"""AudioLM for piano (arXiv 2209.03143, section IV-I): 3 levels of 2^14 codes, no fine stage; any folder of recordings.

  python -m experiments.train --stage=all --recipe=maestro --workdir=... --set corpus.root=/data/maestro

Not trained by us yet: no numbers. All that is not named here is as in `librilight`.
"""

import dataclasses

from audiolm_jax.stages import coarse, soundstream
from experiments.corpora import Folder
from experiments.recipes import librilight

LEVELS, CODEBOOK_SIZE = 3, 2**14

RECIPE = dataclasses.replace(
    librilight.RECIPE,
    corpus=Folder(root=''),
    soundstream=dataclasses.replace(
        librilight.RECIPE.soundstream,
        model=soundstream.Config(num_quantizers=LEVELS, codebook_size=CODEBOOK_SIZE),
    ),
    coarse=dataclasses.replace(
        librilight.RECIPE.coarse,
        model=coarse.Config(total_quantizers=LEVELS, num_quantizers=LEVELS, codebook_size=CODEBOOK_SIZE),
    ),
    fine=None,
    soundstorm=None,  # its paper is about speech
)

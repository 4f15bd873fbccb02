"""The small codec (`small_codec`) on your own recordings, such as people's speech.

  python -m experiments.train --stage=soundstream --recipe=small_codec_folder --workdir=runs/mine \
    --set corpus.root=/data/train --set corpus.test_root=/data/test
"""

import dataclasses

from experiments.corpora import Folder
from experiments.recipes import small_codec

CODEC = small_codec.RECIPE.soundstream

RECIPE = dataclasses.replace(
    small_codec.RECIPE,
    corpus=Folder(root=''),
    # What to expect depends on the recordings.
    soundstream=dataclasses.replace(CODEC, train=dataclasses.replace(CODEC.train, bands=())),
)

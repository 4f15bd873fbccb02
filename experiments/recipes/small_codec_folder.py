"""The small codec (`small_codec`) on your own recordings, such as people's speech.

  python -m experiments.train --stage=soundstream --recipe=small_codec_folder --workdir=runs/mine \
    --set corpus.root=/data/train --set corpus.test_root=/data/test
"""

import dataclasses

from experiments.corpora import Folder
from experiments.recipes import small_codec

RECIPE = dataclasses.replace(small_codec.RECIPE, corpus=Folder(root=''))

r"""Trains the small codec (`small_codec`) on your own recordings.

  python -m experiments.train --stage=soundstream --recipe=small_codec_folder --workdir=runs/mine \
    --set corpus.root=/data/train --set corpus.test_root=/data/test

Results on human speech are in docs/results/codec.md.
"""

import dataclasses

from ..corpora import Folder
from . import small_codec

CODEC = small_codec.RECIPE.stages['soundstream']

# At twice this rate, that of `small_codec`, each run on human speech diverged and rolled back once.
OPTIMIZER = {
  group: dataclasses.replace(optimizer, learning_rate=1.5e-3)
  for group, optimizer in CODEC.train.optimizer.items()
}

TRAIN = dataclasses.replace(CODEC.train, optimizer=OPTIMIZER, expected_metrics=())

RECIPE = small_codec.RECIPE.derived(
  # None, because expected losses depend on the recordings.
  {'soundstream': dataclasses.replace(CODEC, train=TRAIN)},
  corpus=Folder(root=''),
)

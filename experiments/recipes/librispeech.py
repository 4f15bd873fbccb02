r"""Trains on LibriSpeech's clean speech, 464 hours: the models of `folder`, one GPU or TPU chip.

  for name in train-clean-100 train-clean-360 dev-clean test-clean; do
    curl -O https://www.openslr.org/resources/12/$name.tar.gz && tar -xzf $name.tar.gz
  done
  python -m experiments.train --stage=all --recipe=librispeech --workdir=runs/librispeech \
    --set corpus.root=LibriSpeech

LibriSpeech's splits share no speakers: dev-clean and test-clean are held out. CC BY 4.0. With less
disk space, use --set corpus.train='("train-clean-100",)'. Not trained yet: no results.
"""

from ..corpora import LibriSpeech
from . import folder

RECIPE = folder.RECIPE.derived(corpus=LibriSpeech(root=''))

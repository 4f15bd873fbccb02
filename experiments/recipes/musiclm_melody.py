r"""Trains MusicLM with melodies at the paper's sizes (arXiv 2301.11325, section 3.3).

  python -m experiments.train --stage=all --recipe=musiclm_melody --workdir=/mnt/shared/run \
    --set corpus.root=/data/music --set corpus.captions=/data/music/captions.csv

The recipe `musiclm` with a stage `melody`. From the paper: 12 layers, 192 numbers per window of
4 s, windows at 0, 3 and 6 s, and 24 levels of 512 codes, so that a condition has 72 tokens more.
The paper's pairs of covers and hummed tunes are not public: here, the stage learns from rendered
tunes (extra `music`), as in `tiny_melody`, with the batch and the optimizer of `mulan`. A melody is
hidden in half of the training examples, so that it may be left out. Not trained yet: no results.
"""

from audiolm_jax.data import music
from audiolm_jax.stages import melody

from ..inputs import Melodies
from ..recipe import MelodyTokens, StageRecipe
from . import musiclm

MODEL = melody.Config()
PAIRS = music.Config(
  setting='melody',
  train_clips=100_000,
  test_clips=2_048,
  clip_seconds=MODEL.crop_seconds,
  sample_rate=MODEL.sample_rate,
)

RECIPE = musiclm.RECIPE.with_melody(
  StageRecipe(model=MODEL, data=Melodies(config=PAIRS), train=musiclm.RECIPE.stages['mulan'].train),
  MelodyTokens(),
)

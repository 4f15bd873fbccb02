r"""Trains MusicLM with melodies at the paper's sizes (arXiv 2301.11325, section 3.3).

  python -m experiments.train --stage=all --recipe=musiclm_melody --workdir=/mnt/shared/run \
    --set corpus.root=/data/music --set corpus.captions=/data/music/captions.csv

The recipe `musiclm` with a stage `melody`. From the paper: 12 layers, 192 numbers per window of
4 s, windows at 0, 3 and 6 s, and 24 levels of 512 codes, so that a condition has 72 tokens more.
The paper's pairs of covers and hummed tunes are not public: here, the stage learns from rendered
tunes (extra `music`), as in `tiny_melody`, with the batch and the optimizer of `mulan`. A melody is
hidden in half of the training examples, so that it may be left out. Not trained yet: no results.
"""

import dataclasses

from audiolm_jax.data import music
from audiolm_jax.stages import melody

from ..inputs import Melodies
from ..recipe import MelodyTokens, StageRecipe
from . import musiclm

MODEL = melody.Config()
TOKENS = MelodyTokens()
PAIRS = music.Config(
  setting='melody',
  train_clips=100_000,
  test_clips=2_048,
  clip_seconds=MODEL.crop_seconds,
  sample_rate=MODEL.sample_rate,
)
NUM_TOKENS = TOKENS.num_quantizers * len(MODEL.starts)


def with_melody(one: StageRecipe) -> StageRecipe:
  """Returns a stage whose condition, if it has one, begins with a melody."""
  condition = getattr(one.model, 'condition', None)
  if condition is None:
    return one
  both = dataclasses.replace(
    condition, levels=condition.levels + NUM_TOKENS, melody_levels=NUM_TOKENS, melody_dropout=0.5
  )
  return dataclasses.replace(one, model=dataclasses.replace(one.model, condition=both))


RECIPE = dataclasses.replace(
  musiclm.RECIPE,
  stages={
    'melody': StageRecipe(
      model=MODEL, data=Melodies(config=PAIRS), train=musiclm.RECIPE.stages['mulan'].train
    ),
    **{name: with_melody(one) for name, one in musiclm.RECIPE.stages.items()},
  },
  music_tokens=dataclasses.replace(musiclm.RECIPE.music_tokens, melody=TOKENS),
)

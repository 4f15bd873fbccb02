"""Trains AudioLM for piano (arXiv 2209.03143, section IV-I) on rendered pieces, on two CPU cores.

  pip install -e ".[music]"
  python -m experiments.train --stage=all --recipe=tiny_piano --workdir=runs/tiny_piano
  python -m experiments.evaluate --suite=piano --recipe=tiny_piano --workdir=runs/tiny_piano

The corpus has clips of 8 s: chorales, and tunes for two hands (data/music.py). As in the paper,
prompts have 4 s. The models are those of `tiny_music` without conditions, which differ from the
paper as those of `tiny`. The paper's codec of 3 levels of 2^14 codes is that of `maestro`. Not
trained yet: no results.
"""

import dataclasses

from audiolm_jax.data import music

from ..corpora import Music
from ..recipe import Evaluation
from . import tiny_music

CLIP_SECONDS = 8.0


def unconditioned(name: str, **changes):
  """Returns a stage of `tiny_music` without its condition."""
  stage = tiny_music.RECIPE.stages[name]
  model = dataclasses.replace(stage.model, condition=None, **changes)
  return dataclasses.replace(stage, model=model)


RECIPE = tiny_music.RECIPE.derived(
  {
    'mulan': None,
    'semantic': unconditioned('semantic', crop_seconds=CLIP_SECONDS),
    **{name: unconditioned(name) for name in ('coarse', 'soundstorm', 'acoustic_only')},
  },
  corpus=Music(
    config=music.Config(
      setting='piano', train_clips=1500, test_clips=160, clip_seconds=CLIP_SECONDS
    )
  ),
  evaluation=Evaluation(
    num_clips=32, num_prompts=100, prompt_seconds=4.0, seconds=4.0, carry_seconds=1.0
  ),
)

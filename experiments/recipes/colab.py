r"""Trains on your own audio files on one TPU v5e chip, as Colab lends it, within hours.

  python -m experiments.train --stage=all --recipe=colab --workdir=... \
    --set corpus.root=/content/my_recordings

The models are those of `folder`, with a codec at the frame rate and SoundStorm in place of coarse
and fine, and batches meant to fill the chip. The compiler predicts memory and time of a step:

  python -m experiments.compile --stage=semantic --recipe=colab --topology=v5e:1x1

A workdir on Google Drive survives the end of a session, and the same command resumes there. Not
trained yet; docs/results/tpu.md has the predicted steps of the semantic stage and SoundStorm.
"""

import dataclasses
from typing import Any

from audiolm_jax.nn.frame_rate import FrameRate
from audiolm_jax.stages import soundstorm
from audiolm_jax.training.loop import TrainConfig
from audiolm_jax.training.optimizers import OptimizerConfig

from ..inputs import Tokens
from ..recipe import StageRecipe
from . import folder

FOLDER = folder.RECIPE.stages
CROP_SECONDS = 15.0  # of the semantic model and SoundStorm
NUM_CLUSTERS = folder.RECIPE.semantic_tokens.num_clusters


def train(batch_size: int, num_steps: int, optimizer: Any = None, **options) -> TrainConfig:
  return TrainConfig(
    batch_size=batch_size,
    num_steps=num_steps,
    optimizer=optimizer
    or OptimizerConfig(
      learning_rate=1e-3,
      schedule='cosine',
      warmup_steps=1_000,
      total_steps=num_steps,
      clip_norm=1.0,
    ),
    log_every=50,
    eval_every=1_000,
    save_every=500,  # minutes: a session may end at any time
    max_to_keep=1,
    **options,
  )


def changed(name: str, train: TrainConfig, **changes) -> StageRecipe:
  """Returns a stage of `folder` with other settings of training, and other fields of its model."""
  stage = FOLDER[name]
  return dataclasses.replace(stage, model=dataclasses.replace(stage.model, **changes), train=train)


CODEC = FOLDER['soundstream'].train
RECIPE = folder.RECIPE.derived(
  {
    'soundstream': changed(
      'soundstream',
      train(32, 40_000, CODEC.optimizer, ema_decay=CODEC.ema_decay, rollback=CODEC.rollback),
      network=FrameRate(width=384),
    ),
    'w2v_bert': changed('w2v_bert', train(32, 40_000), crop_seconds=8.0),
    # With repeats, which SoundStorm needs.
    'semantic': changed(
      'semantic', train(64, 20_000), crop_seconds=CROP_SECONDS, deduplicate=False
    ),
    'coarse': None,
    'fine': None,
    'soundstorm': StageRecipe(
      model=soundstorm.Config(
        crop_seconds=CROP_SECONDS,
        num_clusters=NUM_CLUSTERS,
        num_layers=8,
        num_heads=8,
        width=512,
        mlp_width=2048,
        level_skew=1.0,  # half of the rows learn the first level, which carries most of the voice
      ),
      data=Tokens(),
      train=train(32, 30_000),
    ),
  }
)

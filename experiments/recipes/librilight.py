r"""Trains AudioLM on Libri-Light at the paper's sizes (arXiv 2209.03143, section IV), on a TPU pod.

  python -m experiments.train --stage=semantic --recipe=librilight --workdir=/mnt/shared/run \
    --set corpus.root=/data/libri-light

w2v-BERT needs 400,000 updates of 2048 examples, the codec 25.6 M crops of a second. Set, by the
number of chips of v5e:

  chips                               16         32         64         128        256
  w2v_bert.train.batch_size           256        512        1024       2048       2048
  w2v_bert.train.accumulate_steps     8          4          2          1          1
  w2v_bert.train.num_steps            3_200_000  1_600_000  800_000    400_000    400_000
  soundstream.train.batch_size        64         64         64         256        256
  soundstream.train.num_steps         400_000    400_000    400_000    100_000    100_000

Updates of w2v-BERT stay those of 2048 examples, so its rate stays 2e-3. The codec's rate of 3e-4 is
for 64 crops. For 256, 6e-4 is the rule of the square root for Adam (arXiv 2205.10287): set
soundstream.train.optimizer.generator.learning_rate and that of discriminator. Neither was tried.

Saves also come every ten minutes, because machines may be taken away; metrics lag three steps, so
that a slow host does not stop the others at once.

Language models train with batch 256 for 1 M steps as in the paper (16 TPUv4). Optimizers and
schedules are choices of this recipe, because the paper states none, and so are all settings of the
codec's training (SoundStream states none).

SoundStorm (arXiv 2305.09636, section 4.1) replaces coarse and fine where semantic tokens keep their
repeats: train `semantic` in a separate workdir with --set semantic.model.deduplicate=False. Its ten
epochs of 60,000 hours are 560,000 batches of 256 windows of 15 s, the mean length; the paper states
neither batch nor optimizer.

Not trained yet: no results.
"""

import dataclasses

from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.stages import coarse, fine, semantic, soundstorm, soundstream, w2v_bert
from audiolm_jax.training.loop import TrainConfig
from audiolm_jax.training.monitor import RollbackConfig
from audiolm_jax.training.optimizers import OptimizerConfig
from audiolm_jax.training.sharding import MeshConfig

from ..corpora import LibriLight
from ..inputs import Audio, Tokens
from ..recipe import Recipe, SemanticTokens, StageRecipe

LANGUAGE_MODEL = TrainConfig(
  batch_size=256,
  num_steps=1_000_000,
  optimizer=OptimizerConfig(
    name='adafactor',
    learning_rate=1e-3,
    schedule='inverse_sqrt',
    warmup_steps=10_000,
    clip_norm=1.0,
  ),
  mesh=MeshConfig(fsdp=4),
  log_every=100,
  eval_every=10_000,
  save_every=5_000,
  save_every_seconds=600.0,
  slack_steps=3,
)
# As in the paper: 12 layers, 16 heads, widths 1024 / 4096, dropout 0.1, bfloat16.
TRANSFORMER = TransformerConfig()

RECIPE = Recipe(
  corpus=LibriLight(root=''),
  stages={
    'soundstream': StageRecipe(
      model=soundstream.Config(),
      data=Audio(),
      train=TrainConfig(
        batch_size=64,
        num_steps=400_000,
        optimizer={
          group: OptimizerConfig(learning_rate=3e-4, b1=0.5, b2=0.9, clip_norm=10.0)
          for group in ('generator', 'discriminator')
        },
        ema_decay=0.999,
        rollback=RollbackConfig(),
        log_every=100,
        eval_every=5_000,
        save_every=5_000,
        save_every_seconds=600.0,
        slack_steps=3,
      ),
    ),
    'w2v_bert': StageRecipe(
      model=w2v_bert.Config(dtype='bfloat16', remat=True),
      data=Audio(),
      train=dataclasses.replace(
        LANGUAGE_MODEL,
        batch_size=256,
        accumulate_steps=8,
        num_steps=8 * 400_000,
        optimizer=OptimizerConfig(
          learning_rate=2e-3, schedule='inverse_sqrt', warmup_steps=25_000, b2=0.98, clip_norm=1.0
        ),
      ),
    ),
    'semantic': StageRecipe(
      model=semantic.Config(transformer=TRANSFORMER), data=Tokens(), train=LANGUAGE_MODEL
    ),
    'coarse': StageRecipe(
      model=coarse.Config(transformer=TRANSFORMER), data=Tokens(), train=LANGUAGE_MODEL
    ),
    'fine': StageRecipe(
      model=fine.Config(transformer=TRANSFORMER), data=Tokens(), train=LANGUAGE_MODEL
    ),
    'soundstorm': StageRecipe(
      model=soundstorm.Config(),
      data=Tokens(),
      train=dataclasses.replace(LANGUAGE_MODEL, num_steps=560_000),
    ),
  },
  semantic_tokens=SemanticTokens(layer=7, num_clusters=1024, sample_seconds=72_000.0),
)

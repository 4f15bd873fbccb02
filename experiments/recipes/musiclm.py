r"""Trains MusicLM at the paper's sizes (arXiv 2301.11325) on a folder of music with captions.

  python -m experiments.train --stage=all --recipe=musiclm --workdir=/mnt/shared/run \
    --set corpus.root=/data/music --set corpus.captions=/data/music/captions.csv

Memory and time of a stage on TPUs are predicted, without a TPU, by

  python -m experiments.compile --stage=semantic --recipe=musiclm --topology=v5e:16x16

From the paper: 24 kHz; a codec of 50 frames/s with 12 levels of 1024 codes (6 kbit/s); Transformers
of 24 layers; crops of 30, 10 and 3 s; 12 tokens of MuLan in the semantic and coarse stages, of 21
windows and of 1; temperatures of 1.0, 0.95 and 0.4.

SoundStorm replaces coarse and fine, as in `librilight`, with a condition of its own (an extension):
leave it out by --set soundstorm=None, or the other two by --set coarse=None and --set fine=None.

Choices of this recipe, which the paper does not state: the codec's strides (3, 4, 5, 8); semantic
tokens with repeats, so that the time of a text in a story is exact; batches, optimizers and
schedules, which are those of `librilight` for 256 chips of v5e (on fewer, set the fields of
`w2v_bert` in the table there); for MuLan (arXiv 2208.12415), batch 1024 and 100,000 steps. The
paper's data (280,000 hours; 44 million recordings for MuLan) are not public. Its MuLan reads texts
without relation to the music of the language models; here all stages read one corpus.

Not trained yet: no results.
"""

import dataclasses

from audiolm_jax.chain import SamplingConfig
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.sampling import Rule
from audiolm_jax.stages import coarse, fine, mulan, semantic, soundstorm, soundstream
from audiolm_jax.stages.base import Condition
from audiolm_jax.training.optimizers import OptimizerConfig

from ..corpora import Captioned
from ..inputs import Audio, Tokens
from ..recipe import Recipe, SemanticTokens, StageRecipe
from . import librilight

STAGES = librilight.RECIPE.stages
CODEC = STAGES['soundstream'].train
TRANSFORMER = TransformerConfig(num_layers=24)
MULAN = mulan.Config()
SEMANTIC = semantic.Config(
  crop_seconds=30.0, deduplicate=False, condition=Condition(windows=21), transformer=TRANSFORMER
)
COARSE = coarse.Config(
  crop_seconds=10.0, deduplicate=False, condition=Condition(windows=1), transformer=TRANSFORMER
)
FINE = fine.Config(crop_seconds=3.0, transformer=TRANSFORMER)
SOUNDSTORM = soundstorm.Config(condition=Condition(windows=21))

RECIPE = Recipe(
  corpus=Captioned(root='', captions='', text_bytes=MULAN.text.num_bytes),
  stages={
    'soundstream': StageRecipe(
      model=soundstream.MUSICLM,
      data=Audio(),
      # Four times the batch of `librilight`, a quarter of its steps, and twice its rate.
      train=dataclasses.replace(
        CODEC,
        batch_size=256,
        num_steps=100_000,
        optimizer={
          group: dataclasses.replace(one, learning_rate=2 * one.learning_rate)
          for group, one in CODEC.optimizer.items()
        },
      ),
    ),
    'w2v_bert': dataclasses.replace(
      STAGES['w2v_bert'],
      train=dataclasses.replace(
        STAGES['w2v_bert'].train, batch_size=2048, accumulate_steps=1, num_steps=400_000
      ),
    ),
    'mulan': StageRecipe(
      model=MULAN,
      data=Audio(),
      train=dataclasses.replace(
        librilight.LANGUAGE_MODEL,
        batch_size=1024,
        num_steps=100_000,
        optimizer=OptimizerConfig(
          learning_rate=5e-5,
          schedule='cosine',
          warmup_steps=5_000,
          total_steps=100_000,
          clip_norm=1.0,
        ),
      ),
    ),
    'semantic': StageRecipe(model=SEMANTIC, data=Tokens(), train=librilight.LANGUAGE_MODEL),
    'coarse': StageRecipe(model=COARSE, data=Tokens(), train=librilight.LANGUAGE_MODEL),
    'fine': StageRecipe(model=FINE, data=Tokens(), train=librilight.LANGUAGE_MODEL),
    'soundstorm': StageRecipe(model=SOUNDSTORM, data=Tokens(), train=librilight.LANGUAGE_MODEL),
  },
  semantic_tokens=SemanticTokens(layer=7, num_clusters=1024, sample_seconds=72_000.0),
  sampling=SamplingConfig(semantic=Rule(1.0), coarse=Rule(0.95), fine=Rule(0.4)),
)

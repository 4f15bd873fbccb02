"""Trains all stages on synthesized speech, on two CPU cores, in twenty minutes.

  make train-tiny
  python -m experiments.train --stage=all --recipe=tiny --workdir=runs/tiny

Results are in docs/results/tiny.md. The recipe differs from the paper in sizes, and in options that
let models of a few hundred thousand parameters learn in some hundred steps. Semantic tokens stay
frame-aligned (`deduplicate=False`) and tokens carry their time (`time_embedding=True`), so that the
coarse model need not match semantic tokens to frames by counting. Three in ten codes are hidden
from its input (`code_dropout`). SoundStorm predicts 4 of 12 levels. w2v-BERT predicts clusters of
log-mel frames. The codec reads 8 samples per step, has a waveform term, and no discriminators,
which would take most of its time.
"""

from audiolm_jax.chain import SamplingConfig
from audiolm_jax.data import synthesized
from audiolm_jax.nn.discriminators import UNUSED
from audiolm_jax.nn.quantizer import RVQ
from audiolm_jax.nn.seanet import SEANet
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.sampling import ParallelRule, Rule
from audiolm_jax.stages import (
  classifier,
  coarse,
  detector,
  fine,
  semantic,
  soundstorm,
  soundstream,
  w2v_bert,
)
from audiolm_jax.training.loop import TrainConfig
from audiolm_jax.training.monitor import ExpectedMetric, RollbackConfig
from audiolm_jax.training.optimizers import OptimizerConfig

from ..corpora import Synthesized
from ..inputs import Audio, DetectorClips, HeldOutVoices, SpokenNumbers, Tokens
from ..recipe import DetectorClipsConfig, Evaluation, Recipe, SemanticTokens, StageRecipe

NUM_CLUSTERS = 64
CODEBOOK_SIZE = 128
NUM_COARSE = 2  # levels; the paper has 4, but half the sequence length allows twice the steps


def transformer(width: int, num_layers: int) -> TransformerConfig:
  return TransformerConfig(
    num_layers=num_layers,
    num_heads=2,
    width=width,
    mlp_width=4 * width,
    dropout_rate=0.0,
    dtype='float32',
    remat=False,
  )


def adam(
  learning_rate: float, num_steps: int, warmup_steps: int = 20, **options
) -> OptimizerConfig:
  return OptimizerConfig(
    learning_rate=learning_rate,
    schedule='cosine',
    warmup_steps=warmup_steps,
    total_steps=num_steps,
    clip_norm=1.0,
    **options,
  )


def stage(
  model, data, batch_size: int, num_steps: int, optimizer, from_code_vectors=False, **options
) -> StageRecipe:
  train = TrainConfig(
    batch_size=batch_size,
    num_steps=num_steps,
    optimizer=optimizer,
    log_every=10,
    eval_every=max(num_steps // 3, 1),
    eval_batches=4,
    save_every=200,
    max_to_keep=1,
    **options,
  )
  return StageRecipe(model=model, data=data, train=train, from_code_vectors=from_code_vectors)


def language_model(model, batch_size: int, num_steps: int, **options) -> StageRecipe:
  return stage(model, Tokens(), batch_size, num_steps, adam(3e-3, num_steps), **options)


CODES = dict(
  codebook_size=CODEBOOK_SIZE, time_embedding=True, transformer=transformer(width=96, num_layers=3)
)
COARSE = dict(
  crop_seconds=2.0, num_quantizers=NUM_COARSE, num_clusters=NUM_CLUSTERS, deduplicate=False, **CODES
)
CLASSIFIER = dict(channels=(16, 32, 64, 64), num_mels=40, hop_length=320)

RECIPE = Recipe(
  corpus=Synthesized(
    config=synthesized.Config(
      num_train_voices=64,
      num_test_voices=8,
      train_minutes=60.0,
      test_minutes=12.0,
      highest_number=9,
    )
  ),
  stages={
    'soundstream': stage(
      soundstream.Config(
        crop_length=6400,
        network=SEANet(strides=(5, 8), stem_stride=8, encoder_channels=64, decoder_channels=64),
        quantizer=RVQ(
          codebook_size=CODEBOOK_SIZE, embedding_dim=64, decay=0.9, dead_code_threshold=0.1
        ),
        discriminators=UNUSED,
        loss_weights={'spectral': 0.02, 'waveform': 1.0, 'commitment': 0.1},
      ),
      Audio(),
      8,
      1000,
      {group: adam(2e-3, 1000, b1=0.8, b2=0.99) for group in ('generator', 'discriminator')},
      rollback=RollbackConfig(),
      # One run of one seed (1.036, 0.931, 0.898) with a tolerance of a fifth.
      expected_metrics=(
        ExpectedMetric(metric='eval/loss', step=333, low=0.83, high=1.24),
        ExpectedMetric(metric='eval/loss', step=666, low=0.74, high=1.12),
        ExpectedMetric(metric='eval/loss', step=1000, low=0.72, high=1.08),
      ),
    ),
    'w2v_bert': stage(
      w2v_bert.Config(
        num_mels=40,
        conv_channels=16,
        num_contrastive_layers=2,
        num_mlm_layers=2,
        width=96,
        num_heads=4,
        mlp_width=256,
        dropout=0.0,
        codebook_size=64,
        code_width=64,
        num_negatives=50,
        mask_probability=0.15,
        mask_span=4,
        feature_layer=1,
        crop_seconds=2.56,
        targets='clusters',
        unmasked_weight=0.1,
      ),
      Audio(),
      16,
      1300,
      adam(3e-3, 1300, b2=0.98),
    ),
    'semantic': language_model(
      semantic.Config(
        crop_seconds=8.0,
        num_clusters=NUM_CLUSTERS,
        deduplicate=False,
        time_embedding=False,
        transformer=transformer(width=128, num_layers=3),
      ),
      16,
      400,
    ),
    # Without code dropout, the model continues the previous codes and hardly uses semantic tokens.
    'coarse': language_model(coarse.Config(code_dropout=0.3, **COARSE), 8, 2000),
    'fine': language_model(fine.Config(crop_seconds=0.64, num_coarse=NUM_COARSE, **CODES), 8, 250),
    'soundstorm': stage(
      soundstorm.Config(
        crop_seconds=2.0,
        num_clusters=NUM_CLUSTERS,
        codebook_size=CODEBOOK_SIZE,
        num_layers=3,
        num_heads=2,
        width=96,
        mlp_width=192,
        dropout=0.0,
        dtype='float32',
        remat=False,
        # The sum of 12 embeddings in 96 channels could not be separated; the codec decodes any
        # number of first levels.
        num_quantizers=4,
        random_length=False,  # because windows of a continuation have full length
        level_skew=1.0,  # half of the rows learn the first level, which carries most of the voice
      ),
      Tokens(),
      16,
      2000,
      adam(3e-3, 2000, warmup_steps=100),
    ),
    'acoustic_only': language_model(coarse.Config(condition_on_semantic=False, **COARSE), 8, 800),
    'speaker': stage(
      classifier.Config(num_classes=8, **CLASSIFIER), HeldOutVoices(), 16, 300, adam(3e-3, 300)
    ),
    'numbers': stage(
      classifier.Config(num_classes=11, crop_seconds=0.5, **CLASSIFIER),
      SpokenNumbers(),
      32,
      400,
      adam(3e-3, 400),
    ),
    'detector': stage(detector.Config(**CLASSIFIER), DetectorClips(), 16, 200, adam(3e-3, 200)),
    'detector_control': stage(
      detector.Config(**CLASSIFIER), DetectorClips(originals_only=True), 16, 200, adam(3e-3, 200)
    ),
  },
  semantic_tokens=SemanticTokens(layer=1, num_clusters=NUM_CLUSTERS, sample_seconds=1200.0),
  # An uncertain model has to sample at all levels: one greedy pass gives all frames the most
  # frequent code.
  sampling=SamplingConfig(
    soundstorm=ParallelRule(rule=Rule(0.8), noise=1.0, iterations=(16, 16, 16, 8))
  ),
  detector_clips=DetectorClipsConfig(num_train=48, num_validation=16, num_test=48, batch_size=48),
  evaluation=Evaluation(
    num_clips=32,
    num_prompts=40,
    prompt_seconds=3.0,
    seconds=4.0,
    carry_seconds=1.0,
    decoder_seconds=240.0,
  ),
)

"""Trains a small codec of 1.9 M parameters on synthesized speech: half an hour of one CPU core.

  python -m experiments.train --stage=soundstream --recipe=small_codec --workdir=runs/small_codec
  python -m experiments.evaluate --suite=codec --recipe=small_codec --workdir=runs/small_codec

It has AudioLM's rates and codebooks: 12 levels of 1024 codes at 50 frames/s, 6 kbit/s; 3 and 6
levels are 1.5 and 3 kbit/s. Results are in docs/results/codec.md. `small_codec_folder` trains it on
your own files. As `tiny`, it differs from the paper in options that let a codec learn phase in
minutes: 8 samples per step, a waveform term, no discriminators.
"""

import dataclasses

from audiolm_jax.training.monitor import ExpectedMetric

from . import tiny

NUM_STEPS = 6000
CODEBOOK_SIZE = 1024
STAGES = tiny.RECIPE.stages
CODEC = STAGES['soundstream']
MODEL = dataclasses.replace(
  CODEC.model,
  # With 160 frames per batch for 1024 codes, a code is dead when used less than once in fifty
  # batches.
  quantizer=dataclasses.replace(
    CODEC.model.quantizer, codebook_size=CODEBOOK_SIZE, decay=0.98, dead_code_threshold=0.02
  ),
  loss_weights={**CODEC.model.loss_weights, 'spectral': 0.03},
)
OPTIMIZER = {
  group: dataclasses.replace(optimizer, learning_rate=3e-3, warmup_steps=100, total_steps=NUM_STEPS)
  for group, optimizer in CODEC.train.optimizer.items()
}
TRAIN = dataclasses.replace(
  CODEC.train,
  num_steps=NUM_STEPS,
  optimizer=OPTIMIZER,
  ema_decay=0.995,
  eval_every=250,
  save_every=250,
  # One run (1.155, 0.975, 0.822) with a tolerance of a fifth.
  expected_metrics=(
    ExpectedMetric(metric='eval/loss', step=1000, low=0.92, high=1.39),
    ExpectedMetric(metric='eval/loss', step=3000, low=0.78, high=1.17),
    ExpectedMetric(metric='eval/loss', step=6000, low=0.66, high=0.99),
  ),
)


def _with_codes(stage):
  return dataclasses.replace(
    stage, model=dataclasses.replace(stage.model, codebook_size=CODEBOOK_SIZE)
  )


RECIPE = tiny.RECIPE.derived(
  {
    'soundstream': dataclasses.replace(CODEC, model=MODEL, train=TRAIN),
    **{
      name: _with_codes(STAGES[name]) for name in ('coarse', 'fine', 'soundstorm', 'acoustic_only')
    },
  }
)

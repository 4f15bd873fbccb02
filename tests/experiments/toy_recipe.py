"""The recipe `tiny` with toy models, two steps and seconds of speech, for tests of whole programs.

python -m experiments.train --stage=all --recipe=tests.experiments.toy_recipe --workdir=runs/toy
"""

import dataclasses

from audiolm_jax.data import synthesized
from audiolm_jax.nn.discriminators import UNUSED
from audiolm_jax.stages import classifier
from experiments.corpora import Synthesized
from experiments.recipe import Evaluation, SemanticTokens
from experiments.recipes import tiny
from tests import toys

CLASSIFIER = dict(channels=(4, 4), num_mels=8, hop_length=320)
MODELS = {
  'soundstream': dataclasses.replace(
    toys.CONFIGS['soundstream'],
    discriminators=UNUSED,
    loss_weights=tiny.RECIPE.stages['soundstream'].model.loss_weights,
    spectral_windows=(256, 1024),
  ),
  'w2v_bert': dataclasses.replace(
    toys.CONFIGS['w2v_bert'], targets='clusters', num_negatives=4, mask_span=4
  ),
  'semantic': toys.CONFIGS['semantic'],
  'coarse': toys.CONFIGS['coarse'],
  'fine': toys.CONFIGS['fine'],
  'soundstorm': toys.CONFIGS['soundstorm'],
  'acoustic_only': dataclasses.replace(toys.CONFIGS['coarse'], condition_on_semantic=False),
  'speaker': classifier.Config(num_classes=4, **CLASSIFIER),
  'numbers': classifier.Config(num_classes=11, crop_seconds=0.5, **CLASSIFIER),
}


def _short(name: str):
  stage = tiny.RECIPE.stages[name]
  train = dataclasses.replace(
    stage.train, num_steps=2, batch_size=8, eval_every=None, rollback=None, expected_metrics=()
  )
  return dataclasses.replace(stage, model=MODELS[name], train=train)


RECIPE = tiny.RECIPE.derived(
  {name: None for name in tiny.RECIPE.stages.keys() - MODELS.keys()}
  | {name: _short(name) for name in MODELS},
  corpus=Synthesized(
    config=synthesized.Config(
      num_train_voices=3,
      num_test_voices=4,  # of two utterances each: one to train the judges, one to continue
      train_minutes=0.5,
      test_minutes=0.67,
      utterance_seconds=5.0,
      highest_number=9,
    )
  ),
  semantic_tokens=SemanticTokens(layer=1, num_clusters=toys.CLUSTERS, sample_seconds=20.0),
  sampling=toys.SAMPLING,
  evaluation=Evaluation(
    num_clips=8,
    num_prompts=2,
    prompt_seconds=1.0,
    seconds=1.0,
    carry_seconds=0.4,
    decoder_seconds=20.0,
  ),
)

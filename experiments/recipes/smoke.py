"""Runs all stages on noise for a few steps, to check a machine rather than to learn anything.

  python -m experiments.smoke

The models are those of `tiny` with layers in bfloat16, as on TPUs. See experiments/smoke.py.
"""

import dataclasses

import numpy as np

from audiolm_jax import checks

from ..recipe import Recipe, SemanticTokens
from . import tiny

STAGES = ('soundstream', 'w2v_bert', 'semantic', 'coarse', 'fine', 'soundstorm')
NUM_STEPS = 6  # the first ones compile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
  """White noise, a new clip per index."""

  num_clips: int = 24
  seconds: float = 8.0
  sample_rate: int = 16_000  # Hz

  def __post_init__(self):
    checks.fields(self, num_clips=checks.WHOLE, seconds=checks.POSITIVE, sample_rate=checks.WHOLE)

  def examples(self, split: str, cache_dir):
    return NoiseClips(self, seed=('train', 'test').index(split))


class NoiseClips:
  """Makes the clips of one split."""

  def __init__(self, config: Noise, seed: int):
    self._config, self._seed = config, seed
    self.sample_rate = config.sample_rate

  def __len__(self) -> int:
    return self._config.num_clips

  def __getitem__(self, index: int):
    rng = np.random.default_rng((self._seed, index))
    wave_T = rng.uniform(-0.5, 0.5, round(self._config.seconds * self.sample_rate))
    return {'waveform': wave_T.astype(np.float32)}


def _short(stage):
  train = dataclasses.replace(
    stage.train,
    num_steps=NUM_STEPS,
    log_every=1,
    eval_every=None,
    eval_batches=1,
    expected_metrics=(),
  )
  model = stage.model
  if hasattr(model, 'transformer'):
    model = dataclasses.replace(
      model, transformer=dataclasses.replace(model.transformer, dtype='bfloat16')
    )
  elif hasattr(model, 'dtype'):
    model = dataclasses.replace(model, dtype='bfloat16')
  return dataclasses.replace(stage, model=model, train=train)


RECIPE = Recipe(
  corpus=Noise(),
  stages={name: _short(tiny.RECIPE.stages[name]) for name in STAGES},
  semantic_tokens=SemanticTokens(layer=1, num_clusters=tiny.NUM_CLUSTERS, sample_seconds=120.0),
  sampling=tiny.RECIPE.sampling,
  evaluation=tiny.RECIPE.evaluation,
)

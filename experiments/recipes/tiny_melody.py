r"""Trains MusicLM with melodies (arXiv 2301.11325, section 3.3) in sizes for two CPU cores.

  pip install -e ".[music]"
  python -m experiments.train --stage=all --recipe=tiny_melody --workdir=runs/tiny_melody
  python -m experiments.generate --recipe=tiny_melody --workdir=runs/tiny_melody --seconds=5 \
    --acoustic=soundstorm --text="a slow piece for flute" --melody=hum.wav --output=out/

The recipe `tiny_music` with a stage `melody`, which learns from pairs of recordings of one tune by
different instruments, in other keys and tempi. The paper's melodies have windows at 0, 3 and 6 s,
and 24 levels of 512 codes. Here, clips have 5 s, so that there are two windows, and 6 levels of 64
codes. A melody is hidden in half of the training examples, so that it may be left out. Not trained
yet: no results.
"""

from audiolm_jax.data import music
from audiolm_jax.stages import melody

from ..inputs import Melodies
from ..recipe import MelodyTokens
from . import tiny_music
from .tiny import adam, stage, transformer

STARTS = (0.0, 1.0)  # seconds
TOKENS = MelodyTokens(num_quantizers=6, codebook_size=64, sample_seconds=2400.0)
PAIRS = music.Config(setting='melody', train_clips=1200, test_clips=120, clip_seconds=4.0)

RECIPE = tiny_music.RECIPE.with_melody(
  stage(
    melody.Config(
      starts=STARTS,
      hop_length=320,
      embedding_dim=64,
      transformer=transformer(width=96, num_layers=3),
    ),
    Melodies(config=PAIRS),
    48,
    500,
    adam(1e-3, 500),
  ),
  TOKENS,
)

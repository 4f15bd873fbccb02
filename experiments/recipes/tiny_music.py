"""Trains MusicLM (arXiv 2301.11325) on rendered tunes, in sizes for two CPU cores.

  pip install -e ".[music]"
  python -m experiments.train --stage=all --recipe=tiny_music --workdir=runs/tiny_music
  python -m experiments.generate --recipe=tiny_music --workdir=runs/tiny_music --seconds=10 \
    --acoustic=soundstorm --text="a slow piece for flute, low and soft" --output=out/
  python -m experiments.evaluate --suite=music --recipe=tiny_music --workdir=runs/tiny_music \
    --set evaluation.judge_font=/usr/share/sounds/sf2/FluidR3_GM.sf2

The corpus has captioned clips of 5 s (data/music.py). A window of MuLan is a whole clip. In
addition to the differences of `tiny` from the paper, stages read 3 of 12 levels of MuLan's tokens,
because texts and their audio share the first ones only; texts are mapped to audio space before they
are quantized (`text_map`); one condition in ten is hidden in training, so that guidance is
possible. SoundStorm also has a condition. Models of codes start from the codec's code vectors. The
stage `acoustic_only` reads texts without semantic tokens, for a row of the evaluation. Judges of
attributes need a second sound font, here that of the Debian package fluid-soundfont-gm. Results are
in docs/results/music.md.
"""

import dataclasses

from audiolm_jax.chain import SamplingConfig
from audiolm_jax.data import music
from audiolm_jax.nn.discriminators import UNUSED
from audiolm_jax.nn.frame_rate import FrameRate
from audiolm_jax.nn.log_mel_cnn import LogMelCNNConfig
from audiolm_jax.nn.quantizer import RVQ
from audiolm_jax.nn.text_encoder import TextEncoderConfig
from audiolm_jax.sampling import ParallelRule, Rule
from audiolm_jax.stages import coarse, fine, mulan, semantic, soundstream
from audiolm_jax.stages.base import Condition
from audiolm_jax.training.monitor import RollbackConfig

from ..corpora import Music
from ..inputs import Audio, Tokens
from ..recipe import Evaluation, MusicTokens, Recipe, SemanticTokens
from . import tiny
from .tiny import adam, language_model, stage, transformer

TINY = tiny.RECIPE.stages
NUM_CLUSTERS = 128
CODEBOOK_SIZE = 256
NUM_COARSE = 2
CORPUS = music.Config(setting='captioned', clip_seconds=5.0, sample_rate=16_000)
CONDITION = Condition(levels=3, size=64, windows=1, dropout=0.1)
CODES = dict(
  codebook_size=CODEBOOK_SIZE, time_embedding=True, transformer=transformer(width=96, num_layers=3)
)

RECIPE = Recipe(
  corpus=Music(config=CORPUS),
  stages={
    'soundstream': stage(
      soundstream.Config(
        crop_length=9600,
        network=FrameRate(width=128, num_blocks=3, expansion=2, overlap=320, lookahead=1),
        quantizer=RVQ(
          codebook_size=CODEBOOK_SIZE, embedding_dim=32, decay=0.95, dead_code_threshold=0.05
        ),
        discriminators=UNUSED,
        spectral_windows=(128, 256, 512, 1024, 2048),
        loss_weights={'spectral': 0.08, 'waveform': 1.0, 'commitment': 0.1},
      ),
      Audio(),
      8,
      2000,
      {group: adam(1e-3, 2000, b1=0.8, b2=0.99) for group in ('generator', 'discriminator')},
      rollback=RollbackConfig(),
    ),
    'w2v_bert': stage(TINY['w2v_bert'].model, Audio(), 16, 800, adam(3e-3, 800, b2=0.98)),
    'mulan': stage(
      mulan.Config(
        audio=LogMelCNNConfig(
          channels=(8, 16, 32, 64),
          num_mels=48,
          hop_length=640,  # a step takes a ninth of the time at 320 with twice the channels
          sample_rate=CORPUS.sample_rate,
          crop_seconds=CORPUS.clip_seconds,
        ),
        text=TextEncoderConfig(
          num_bytes=CORPUS.text_bytes, transformer=transformer(width=64, num_layers=2)
        ),
        num_texts=CORPUS.num_texts,
      ),
      Audio(),
      96,
      500,
      adam(2e-3, 500),
    ),
    'semantic': language_model(
      semantic.Config(
        crop_seconds=CORPUS.clip_seconds,
        num_clusters=NUM_CLUSTERS,
        deduplicate=False,
        condition=CONDITION,
        transformer=transformer(width=128, num_layers=3),
      ),
      16,
      800,
    ),
    'coarse': language_model(
      coarse.Config(
        crop_seconds=2.0,
        num_quantizers=NUM_COARSE,
        num_clusters=NUM_CLUSTERS,
        deduplicate=False,
        code_dropout=0.3,
        condition=CONDITION,
        **CODES,
      ),
      8,
      500,
      from_code_vectors=True,
    ),
    'fine': language_model(
      fine.Config(crop_seconds=0.64, num_coarse=NUM_COARSE, **CODES), 8, 250, from_code_vectors=True
    ),
    'soundstorm': stage(
      dataclasses.replace(
        TINY['soundstorm'].model,
        num_clusters=NUM_CLUSTERS,
        codebook_size=CODEBOOK_SIZE,
        condition=CONDITION,
      ),
      Tokens(),
      16,
      800,
      adam(3e-3, 800, warmup_steps=100),
      from_code_vectors=True,
    ),
    'acoustic_only': language_model(
      coarse.Config(
        crop_seconds=2.0,
        num_quantizers=NUM_COARSE,
        num_clusters=NUM_CLUSTERS,
        condition_on_semantic=False,
        deduplicate=False,
        condition=CONDITION,
        **CODES,
      ),
      8,
      400,
      from_code_vectors=True,
    ),
  },
  semantic_tokens=SemanticTokens(layer=1, num_clusters=NUM_CLUSTERS, sample_seconds=1200.0),
  music_tokens=MusicTokens(
    num_quantizers=12, codebook_size=64, sample_seconds=2400.0, text_map=True
  ),
  sampling=SamplingConfig(
    semantic=Rule(0.9),
    soundstorm=ParallelRule(rule=Rule(0.8), noise=1.0, iterations=(16, 16, 16, 8)),
  ),
  evaluation=Evaluation(
    num_clips=32, num_prompts=200, prompt_seconds=2.0, seconds=3.0, carry_seconds=1.0
  ),
)

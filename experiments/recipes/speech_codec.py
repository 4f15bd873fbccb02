r"""Trains the codec of the released speech models on human speech: 3.2 M parameters.

  python -m experiments.train --stage=soundstream --recipe=speech_codec --workdir=runs/speech \
    --set corpus.root=/data/speech/train --set corpus.test_root=/data/speech/test

All layers run at the frame rate (nn/frame_rate.py).
"""

import dataclasses

from audiolm_jax.nn.frame_rate import FrameRate

from ..corpora import Folder
from . import small_codec_folder, tiny

NUM_STEPS = 24_000

CODEC = small_codec_folder.RECIPE.soundstream
MODEL = dataclasses.replace(
  CODEC.model,
  network=FrameRate(width=256, num_blocks=5, expansion=2, overlap=160),
  crop_length=9600,
  quantizer=dataclasses.replace(CODEC.model.quantizer, embedding_dim=32),
  spectral_windows=(128, 256, 512, 1024, 2048),
  loss_weights={**CODEC.model.loss_weights, 'spectral': 0.08},
)
OPTIMIZER = {
  group: tiny.adam(1e-3, NUM_STEPS, warmup_steps=200, b1=0.8, b2=0.99)
  for group in ('generator', 'discriminator')
}
RECIPE = dataclasses.replace(
  small_codec_folder.RECIPE,
  corpus=Folder(root='', speaker_folders=True),
  soundstream=dataclasses.replace(
    CODEC,
    model=MODEL,
    train=dataclasses.replace(
      CODEC.train,
      num_steps=NUM_STEPS,
      optimizer=OPTIMIZER,
      ema_decay=0.999,
      eval_every=2000,
      eval_batches=16,
      log_every=100,
      save_every=1000,
    ),
  ),
)

r"""Trains the small codec (`small_codec`) with a denoising switch, on speech in Gaussian noise.

  python -m experiments.train --stage=soundstream --recipe=small_codec_denoise \
    --workdir=runs/denoise
  python -m experiments.codec encode noisy.wav --output=codes/ --workdir=runs/denoise
  python -m experiments.codec decode codes/ --output=clean/ --denoise --workdir=runs/denoise

Results are in docs/results/denoising.md. For your own recordings, set
corpus=Noisy(speech=Folder(root='...'), noise=Folder(root='...')).
"""

import dataclasses

from audiolm_jax.nn.denoising import DenoisingSwitch

from ..corpora import Noisy
from . import small_codec

CODEC = small_codec.RECIPE.stages['soundstream']

MODEL = dataclasses.replace(CODEC.model, denoising=DenoisingSwitch(place='decoder'))

RECIPE = small_codec.RECIPE.derived(
  {'soundstream': dataclasses.replace(CODEC, model=MODEL)},
  corpus=Noisy(speech=small_codec.RECIPE.corpus),
)

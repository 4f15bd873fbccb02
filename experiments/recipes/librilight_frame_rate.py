r"""Trains AudioLM on Libri-Light as `librilight`, with a codec that runs at the frame rate.

  python -m experiments.train --stage=soundstream --recipe=librilight_frame_rate \
    --workdir=/mnt/shared/run --set corpus.root=/data/libri-light
  python -m experiments.compile --stage=soundstream --recipe=librilight_frame_rate \
    --topology=v5e:4x4

All products of its network (nn/frame_rate.py, similar to Vocos, arXiv 2306.00814) are of full
matrices at 50 frames/s, which suit a TPU's matrix units. Compiled for a TPU (docs/results/tpu.md),
not trained; results of a small codec of this kind are in docs/results/speech.md.
"""

import dataclasses

from audiolm_jax.nn.frame_rate import FrameRate

from . import librilight

CODEC = librilight.RECIPE.stages['soundstream']
MODEL = dataclasses.replace(CODEC.model, network=FrameRate(overlap=320, lookahead=1))

RECIPE = librilight.RECIPE.derived({'soundstream': dataclasses.replace(CODEC, model=MODEL)})

r"""Trains SEANet in place of the network of `speech`, on LibriSpeech alone, to compare the codecs.

  python -m experiments.train --stage=soundstream --recipe=speech_seanet --workdir=runs/seanet \
    --set corpus.librispeech=/data/LibriSpeech/train-clean-100

It has the strides of the small codec, and as many parameters as the network of `speech`. A step
takes three times as long; 1312 steps take the 712 s of a core in which `speech` takes 4000. Results
are in docs/results/speech.md.
"""

import dataclasses

from audiolm_jax.nn.seanet import SEANet

from ..corpora import Speech
from . import speech

CODEC = speech.codec_of(1312)
NETWORK = SEANet(strides=(5, 8), stem_stride=8, encoder_channels=88, decoder_channels=88)
RECIPE = speech.RECIPE.derived(
  {
    'soundstream': dataclasses.replace(
      CODEC, model=dataclasses.replace(CODEC.model, network=NETWORK)
    )
  },
  corpus=Speech(root='', packages=()),
)

"""The SoundStream that tests share: as small as one that does what each of them looks at."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import meta

from audiolm_jax.nn import quantizer
from audiolm_jax.nn.discriminators import Discriminators
from audiolm_jax.nn.seanet import SEANet
from audiolm_jax.stages import soundstream
from audiolm_jax.stages.base import Variables

CONFIG = soundstream.Config(
  sample_rate=8000,
  crop_length=512,
  network=SEANet(strides=(2, 4), encoder_channels=4, decoder_channels=4),
  quantizer=quantizer.RVQ(
    num_quantizers=3, codebook_size=16, embedding_dim=8, dead_code_threshold=0.5
  ),
  discriminators=Discriminators(
    start=1,
    spectral_channels=1,
    spectral_window_length=128,
    num_waveform=1,
    waveform_channels=4,
    waveform_max_channels=8,
  ),
  spectral_windows=(64, 256),  # of the paper's six: each adds to what is compiled
  loss_weights={'waveform': 100.0},
)
FSQ = dataclasses.replace(CONFIG, quantizer=quantizer.FSQ(levels=(3, 4, 5)))


def random_variables(config):
  """Returns variables of the shapes of `init`, drawn by numpy: compiling seventy random arrays takes
  longer than most tests that need them.
  """
  rng = np.random.default_rng(0)
  shapes = meta.unbox(jax.eval_shape(config.make().init, jax.random.key(0)))
  draw = lambda s: jnp.asarray(
    rng.normal(size=s.shape) / np.sqrt(np.prod(s.shape[:-1])) * (len(s.shape) > 1), s.dtype
  )
  state = {'step': jnp.zeros((), jnp.int32)}
  if isinstance(config.quantizer, quantizer.RVQ):
    books = (config.num_quantizers, config.codebook_size, config.embedding_dim)
    state['codebooks'] = quantizer.init(jax.random.key(0), *books)
  return Variables(jax.tree.map(draw, shapes.params), state)

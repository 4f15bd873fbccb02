"""Random models of all stages in toy sizes, which fit one another: 16 kHz, 4 levels of 16 codes."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import chain, kmeans, tokenizer
from audiolm_jax.codec import Codec
from audiolm_jax.nn.discriminators import Discriminators
from audiolm_jax.nn.frame_rate import FrameRate
from audiolm_jax.nn.log_mel_cnn import LogMelCNNConfig
from audiolm_jax.nn.quantizer import RVQ
from audiolm_jax.nn.text_encoder import TextEncoderConfig
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.sampling import ParallelRule
from audiolm_jax.stages import (
  coarse,
  detector,
  fine,
  mulan,
  semantic,
  soundstorm,
  soundstream,
  w2v_bert,
)
from audiolm_jax.stages.base import Model
from audiolm_jax.tokenizer import SemanticEncoder, SemanticTokenizer, Tokenizer
from audiolm_jax.training import saving, sharding

RATE = 16_000
LEVELS, CODES, CLUSTERS = 4, 16, 8
TRANSFORMER = TransformerConfig(
  num_layers=1, num_heads=2, width=8, mlp_width=8, dtype='float32', remat=False
)
SMALL = dict(num_heads=2, width=8, mlp_width=8)
TOKENS = dict(total_quantizers=LEVELS, codebook_size=CODES, transformer=TRANSFORMER)
CONFIGS = {
  'soundstream': soundstream.Config(
    crop_length=3200,
    network=FrameRate(width=8, num_blocks=1, expansion=1),
    quantizer=RVQ(num_quantizers=LEVELS, codebook_size=CODES, embedding_dim=4),
    discriminators=Discriminators(
      spectral_channels=4, num_waveform=1, waveform_channels=4, waveform_max_channels=8
    ),
  ),
  'w2v_bert': w2v_bert.Config(
    num_mels=8,
    conv_channels=2,
    num_contrastive_layers=1,
    num_mlm_layers=1,
    codebook_size=8,
    code_width=8,
    feature_layer=1,
    crop_seconds=2.0,
    **SMALL,
  ),
  'semantic': semantic.Config(
    crop_seconds=2.0, num_clusters=CLUSTERS, deduplicate=False, transformer=TRANSFORMER
  ),
  'coarse': coarse.Config(
    crop_seconds=1.0, num_clusters=CLUSTERS, num_quantizers=2, deduplicate=False, **TOKENS
  ),
  'fine': fine.Config(crop_seconds=0.4, num_coarse=2, **TOKENS),
  'soundstorm': soundstorm.Config(
    crop_seconds=1.0,
    num_clusters=CLUSTERS,
    num_quantizers=LEVELS,
    codebook_size=CODES,
    num_layers=1,
    dtype='float32',
    remat=False,
    **SMALL,
  ),
  'mulan': mulan.Config(
    audio=LogMelCNNConfig(channels=(4, 4), num_mels=8, hop_length=320, crop_seconds=1.0),
    text=TextEncoderConfig(num_bytes=16, transformer=TRANSFORMER),
    embedding_dim=4,
  ),
  'detector': detector.Config(channels=(4, 4), num_mels=8, hop_length=320),
}
SAMPLING = chain.SamplingConfig(soundstorm=ParallelRule(iterations=(2, 1, 1, 1)))


def model(name: str, seed: int = 0) -> Model:
  """Returns a stage with random weights."""
  return with_random_weights(CONFIGS[name], seed)


def with_random_weights(config, seed: int = 0) -> Model:
  """Returns a model of any config with random weights."""
  rng = np.random.default_rng(seed)

  def random(leaf):  # without compiling an initialization
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      return jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), leaf.dtype)
    return jnp.ones(leaf.shape, leaf.dtype)

  shapes = sharding.unbox(jax.eval_shape(config.make().init, jax.random.key(0)))
  return Model(config, jax.tree.map(random, shapes), {'step': 7, 'fingerprints': {}})


def models() -> chain.Models:
  """Returns models of all stages, bound to one another."""
  codec, features = model('soundstream'), model('w2v_bert')
  encoder = SemanticEncoder(config=features.config, variables=features.variables, layer=1)
  frames_ND = np.random.default_rng(0).normal(size=(100, 8))
  clusters = SemanticTokenizer(encoder, kmeans.fit(frames_ND, CLUSTERS, seed=0))
  both = Tokenizer(Codec(codec.config, codec.variables), clusters)
  bound = {
    name: model(name)._replace(metadata={'step': 7, 'fingerprints': both.fingerprints})
    for name in ('semantic', 'coarse', 'fine', 'soundstorm')
  }
  return chain.Models(both, sampling=SAMPLING, **bound)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
  """Returns white noise [T]."""
  return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


def save_workdir(folder: pathlib.Path) -> chain.Models:
  """Writes `models` as a trained workdir, and returns them."""
  made = models()
  semantic = made.tokenizer.semantic
  stages = {
    'soundstream': Model(made.tokenizer.codec.config, made.tokenizer.codec.variables),
    'w2v_bert': Model(semantic.encoder.config, semantic.encoder.variables),
    **{name: getattr(made, name) for name in ('semantic', 'coarse', 'fine', 'soundstorm')},
  }
  for name, (config, variables, metadata) in stages.items():
    saving.save_variables(folder / name, config, variables, metadata)
  kmeans.save(
    tokenizer.clusters_path(folder),
    semantic.quantizer,
    layer=1,
    frames_per_token=1,
    model=semantic.encoder.fingerprint,
  )
  return made

"""AudioLM and its family in JAX: pure functions and Flax modules; nothing runs at import.

Signatures and suffixes of array names (`codes_BFQ`) use these dimension letters:

  B  batch                         Q  residual quantizer levels
  T  waveform samples              K  codebook entries or clusters
  F  frames: codec, spectrum       V  vocabulary
  S  semantic frames               D  width (E: a second width)
  L  token sequence length         H  attention heads
  M  mel bins                      C  classes
  P  pairs, parts, or prefix       N  any other count

A digit is an axis of that size, `*dims` any number of axes. Kernels of attention
(`nn.block_attention`) use K and Q for positions of keys and queries within a block, image-like
arrays (`pretrained.clap_audio`) H and W for height and width.

The names below are what most work starts from; they are imported when they are first used:

  models = audiolm_jax.from_pretrained()
  codec = audiolm_jax.load_codec('runs/tiny')
  tokenizer = audiolm_jax.load_tokenizer('runs/tiny')
  models = audiolm_jax.load_models('runs/tiny')
  result = audiolm_jax.continue_audio(models, key, prompt_BT, seconds=7.0)

Everything else is imported from where it lives, as `audiolm_jax.stages.soundstream`.
"""

import importlib

__version__ = '0.1.0'

_HOMES = {
  'from_pretrained': 'release.from_pretrained',
  'save_pretrained': 'release.save_pretrained',
  'push_to_hub': 'release.push_to_hub',
  'load_codec': 'codec.load',
  'load_tokenizer': 'tokenizer.load_tokenizer',
  'load_semantic_tokenizer': 'tokenizer.load_semantic_tokenizer',
  'load_models': 'chain.load_models',
  'load_variables': 'training.checkpoints.load_variables',
  'save_variables': 'training.saving.save_variables',
  'continue_audio': 'generation.continue_audio',
  'continue_stream': 'generation.continue_stream',
  'generate_acoustics': 'generation.generate_acoustics',
  'acoustics_stream': 'generation.acoustics_stream',
  'generate_unconditional': 'generation.generate_unconditional',
  'SamplingConfig': 'chain.SamplingConfig',
  'Rule': 'sampling.Rule',
}
__all__ = list(_HOMES)


def __getattr__(name: str):
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, _, attribute = _HOMES[name].rpartition('.')
  return getattr(importlib.import_module(f'{__name__}.{module}'), attribute)


def __dir__() -> list[str]:
  return sorted([*globals(), *_HOMES])

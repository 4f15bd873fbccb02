"""AudioLM and its family in JAX: pure functions and Flax modules, nothing runs at import.

Dimension letters, used in every signature and as suffix of array names (`codes_BFQ`):

  B  batch                      F  acoustic frames (50 per second)
  T  waveform samples           S  semantic frames (25 per second)
  Q  residual quantizer levels  K  codebook entries, or clusters
  L  token sequence length      V  vocabulary
  D  width                      H  attention heads
  M  mel bins                   N  any other count

Import what you need from where it lives: `audiolm_jax.stages.soundstream.encode`,
`audiolm_jax.generation.continue_audio`.
"""

__version__ = '0.1.0'

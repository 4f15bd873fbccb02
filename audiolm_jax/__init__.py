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

Import each function from its module: `audiolm_jax.stages.soundstream.encode`,
`audiolm_jax.generation.continue_audio`.
"""

__version__ = '0.1.0'

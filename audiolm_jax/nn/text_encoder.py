"""Bidirectional Transformer over the UTF-8 bytes of a text, the text tower of MuLan.

A convolution joins neighbouring bytes to positions of `stride` bytes, as in CANINE (arXiv
2103.06874); a learned vector is prepended, whose output is the text's vector, as BERT's CLS.

Deviations from BERT (arXiv 1810.04805), which MuLan starts from: bytes instead of word pieces, so
that no vocabulary file is needed, relative positions with T5's buckets, and the blocks of
nn/transformer.py (RMS norm before each part, no biases). The sizes are those of BERT-base.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from audiolm_jax import checks
from audiolm_jax.nn import placement, transformer
from audiolm_jax.nn.attention import EMBED, VOCAB, dense, partitioned
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.tokens import PAD

NUM_IDS = 256  # byte values


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
  """Configures a `TextEncoder`; the defaults read 2048 bytes as BERT-base reads 512 word pieces.

  Fields:
    num_bytes: number of bytes of the longest text.
    stride: bytes per position.
    kernel_size: bytes that a position's convolution covers, centred.
    transformer: sizes of the Transformer; its relative positions are bidirectional.

  Raises:
    UserError: if a field is illegal.
  """

  num_bytes: int = 2048
  stride: int = 4
  kernel_size: int = 8
  transformer: TransformerConfig = TransformerConfig(
    num_layers=12, num_heads=12, width=768, mlp_width=3072
  )

  def __post_init__(self):
    checks.fields(
      self, num_bytes=checks.WHOLE, stride=checks.WHOLE, kernel_size=checks.whole(self.stride)
    )
    transformer.check_bidirectional(self.transformer)


class TextEncoder(nn.Module):
  """Maps byte ids [B, L] (PAD after a text) to [B, num_outputs], for any L.

  Padding does not influence the result. Dropout is active if and only if `apply` gets a 'dropout'
  key.
  """

  config: TextEncoderConfig
  num_outputs: int

  @nn.compact
  def __call__(self, ids_BL: Int[Array, 'B L']) -> Float[Array, 'B N']:
    c, sizes = self.config, self.config.transformer
    width = sizes.width
    ids_BL = jnp.pad(ids_BL, ((0, 0), (0, -ids_BL.shape[1] % c.stride)), constant_values=PAD)
    valid_BL = ids_BL != PAD
    table = partitioned(nn.initializers.normal(1.0), VOCAB, EMBED)
    embedding_VD = placement.whole(self.param('embedding', table, (NUM_IDS, width)))
    x_BLD = jnp.where(valid_BL[..., None], embedding_VD[jnp.maximum(ids_BL, 0)], 0)
    around = c.kernel_size - c.stride
    x_BSD = nn.Conv(
      width,
      (c.kernel_size,),
      strides=(c.stride,),
      padding=((around // 2, around - around // 2),),
      use_bias=False,
      dtype=sizes.dtype,
      kernel_init=partitioned(nn.initializers.lecun_normal(), None, None, EMBED),
      name='conv',
    )(x_BLD.astype(sizes.dtype))
    summary = partitioned(nn.initializers.normal(1.0), EMBED)
    summary_D = self.param('summary', summary, (width,)).astype(sizes.dtype)
    x_BSD = jnp.concatenate([jnp.broadcast_to(summary_D, (len(ids_BL), 1, width)), x_BSD], axis=1)
    valid_BS = jnp.pad(valid_BL[:, :: c.stride], ((0, 0), (1, 0)), constant_values=True)
    x_BSD = transformer.bidirectional(self, sizes, x_BSD, valid_BS)
    x_BD = transformer.norm(sizes.dtype, 'final_norm')(x_BSD[:, 0]).astype(jnp.float32)
    return dense(self.num_outputs, (EMBED, VOCAB), use_bias=True, name='logits')(x_BD)

"""Folders as publishers write them, with random weights."""

import jax
import numpy as np

from audiolm_jax.pretrained import hub, tensors
from tests.pretrained.test_tensors import write

DAC = {
  'model_type': 'dac',
  'encoder_hidden_size': 2,
  'decoder_hidden_size': 16,
  'downsampling_ratios': [2, 4, 5, 8],
  'upsampling_ratios': [8, 5, 4, 2],
  'n_codebooks': 12,
  'codebook_size': 16,
  'codebook_dim': 4,
  'sampling_rate': 16_000,
}
ENCODEC = {
  'model_type': 'encodec',
  'num_filters': 2,
  'hidden_size': 4,
  'upsampling_ratios': [5, 2],
  'codebook_size': 16,
  'target_bandwidths': [9.6, 28.8],
  'num_lstm_layers': 2,
}
MIMI = {
  'model_type': 'mimi',
  'num_filters': 2,
  'hidden_size': 8,
  'upsample_groups': 8,
  'upsampling_ratios': [5, 2],
  'codebook_size': 16,
  'codebook_dim': 4,
  'vector_quantization_hidden_dimension': 4,
  'num_quantizers': 3,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'num_key_value_heads': 2,
  'intermediate_size': 12,
  'sliding_window': 6,
}
HUBERT = {
  'model_type': 'hubert',
  'conv_dim': [4] * 7,
  'hidden_size': 8,
  'num_conv_pos_embeddings': 6,
  'num_conv_pos_embedding_groups': 2,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'intermediate_size': 12,
}
W2V_BERT2 = {
  'model_type': 'wav2vec2-bert',
  'hidden_size': 8,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'intermediate_size': 12,
  'conv_depthwise_kernel_size': 7,
  'left_max_position_embeddings': 4,
  'right_max_position_embeddings': 2,
}
CLAP = {
  'model_type': 'clap',
  'projection_dim': 6,
  'audio_config': {
    'spec_size': 128,
    'num_mel_bins': 16,
    'window_size': 4,
    'patch_embeds_hidden_size': 4,
    'hidden_size': 16,
    'depths': [1, 2, 1],
    'num_attention_heads': [1, 2, 2],
  },
  'text_config': {
    'vocab_size': 300,
    'hidden_size': 8,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
    'intermediate_size': 12,
    'max_position_embeddings': 40,
  },
}


def arrays(data, seed=0) -> dict[str, np.ndarray]:
  """Returns tensors as the config.json `data` asks for them, under the publisher's names."""
  source = hub.SOURCES[data['model_type']]
  config = source.config_from(data)
  template = jax.eval_shape(config.make().init, jax.random.key(0)).params
  template = source.stored(config) if hasattr(source, 'stored') else template
  rng, result = np.random.default_rng(seed), {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(template):
    stem, _, name = jax.tree_util.keystr(path, simple=True, separator='.').rpartition('.')
    layout = (
      tensors.LAYOUTS[name]
      if name in tensors.LAYOUTS
      else tensors.Layout(name, lambda shape: shape, None)
    )
    shape = layout.shape(tuple(leaf.shape))
    near_one = name in ('scale', 'alpha', 'cluster_usage', 'running_var')
    centre, deviation = (1.0, 0.1) if near_one else (0.0, max(np.prod(shape[1:]), 4) ** -0.5)
    stem = tensors.re.sub(r'_(\d+)(?=\.|$)', r'.\1', stem)
    array = np.asarray(centre + deviation * rng.standard_normal(shape), np.float32)
    result[f'{stem}.{layout.name}'.lstrip('.')] = array
  return result


def folder(path, data, seed=0):
  return write(path, data, arrays(data, seed))

"""Encoding, decoding and features beside `transformers`, both on one core, random weights at full
width.

  taskset -c 0 python -m tests.pretrained.speed dac encodec mimi hubert w2v_bert2 clap larger_clap

w2v-BERT 2.0 with 3 of its 24 blocks, which are alike, and with the log-mel that it reads; CLAP with
its log-mel, too.

Seconds are of the processor (other work on the machine counts little), the least of several runs.
"""

import sys
import tempfile
import time

import jax
import numpy as np
import torch
import transformers

from audiolm_jax.pretrained import clap, clap_audio, hub
from audiolm_jax.tokenizer import SemanticEncoder

REPEATS = 5
SECONDS = 1.0
MODELS = {
  'dac': lambda: transformers.DacModel(
    transformers.DacConfig(sampling_rate=16_000, downsampling_ratios=[2, 4, 5, 8], n_codebooks=12)
  ),
  'encodec': lambda: transformers.EncodecModel(transformers.EncodecConfig()),
  'mimi': lambda: transformers.MimiModel(transformers.MimiConfig()),
  'hubert': lambda: transformers.HubertModel(transformers.HubertConfig()),
  'w2v_bert2': lambda: transformers.Wav2Vec2BertModel(
    transformers.Wav2Vec2BertConfig(num_hidden_layers=3)
  ),
  'clap': lambda: transformers.ClapModel(transformers.ClapConfig(audio_config={}, text_config={})),
  'larger_clap': lambda: transformers.ClapModel(
    transformers.ClapConfig(
      audio_config={'patch_embeds_hidden_size': 128, 'hidden_size': 1024, 'depths': [2, 2, 12, 2]},
      text_config={},
    )
  ),
}
FEATURE_SECONDS = 4.0
TEXT_TOKENS = 32


def seconds(function) -> float:
  function()  # compiles, allocates
  taken = []
  for _ in range(REPEATS):
    start = time.process_time()
    function()
    taken.append(time.process_time() - start)
  return min(taken)


def measure_features(name: str):
  model = MODELS[name]().eval()
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    config, variables = hub.from_pretrained(folder)
  wave_BT = (
    np.random.default_rng(0)
    .uniform(-0.5, 0.5, (1, round(FEATURE_SECONDS * 16_000)))
    .astype(np.float32)
  )
  features = SemanticEncoder(config=config, variables=variables, layer=config.num_layers).features
  extractor = transformers.SeamlessM4TFeatureExtractor(padding_value=1.0)
  prepare = {
    'hubert': lambda: {'input_values': torch.tensor(wave_BT)},
    'w2v_bert2': lambda: extractor(list(wave_BT), sampling_rate=16_000, return_tensors='pt'),
  }[name]
  with torch.no_grad():
    mine, other = (
      seconds(lambda: features(wave_BT).block_until_ready()),
      seconds(lambda: model(**prepare())),
    )
  print(
    f'{name} {FEATURE_SECONDS:.2f} s: {mine:.3f} s, transformers {other:.3f} s, {other / mine:.2f} times as fast',
    flush=True,
  )


def measure_embeddings(name: str):
  model = MODELS[name]().eval()
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    config, variables = hub.from_pretrained(folder)
  rng = np.random.default_rng(0)
  wave_BT = rng.uniform(-0.5, 0.5, (1, clap_audio.CLIP)).astype(np.float32)
  tokens_BL = rng.integers(4, config.text.vocab_size, (1, TEXT_TOKENS)).astype(np.int32)
  embed_audio = jax.jit(
    lambda variables, wave_BT: clap.audio_embeddings(config, variables, wave_BT)
  )
  embed_text = jax.jit(
    lambda variables, tokens_BL: clap.text_embeddings(config, variables, tokens_BL)
  )
  extractor = transformers.ClapFeatureExtractor(truncation='rand_trunc', frequency_min=50)
  prepare = lambda: extractor(list(wave_BT), sampling_rate=config.sample_rate, return_tensors='pt')[
    'input_features'
  ]
  ids, mask = torch.tensor(tokens_BL).long(), torch.ones(tokens_BL.shape).long()
  pairs = {
    'audio of 10 s': (
      lambda: embed_audio(variables, wave_BT).block_until_ready(),
      lambda: model.get_audio_features(prepare().float()),
    ),
    f'text of {TEXT_TOKENS} tokens': (
      lambda: embed_text(variables, tokens_BL).block_until_ready(),
      lambda: model.get_text_features(ids, attention_mask=mask),
    ),
  }
  with torch.no_grad():
    for what, (our, their) in pairs.items():
      mine, other = seconds(our), seconds(their)
      print(
        f'{name} {what}: {mine:.3f} s, transformers {other:.3f} s, {other / mine:.2f} times as fast',
        flush=True,
      )


def measure(name: str, num_quantizers: int):
  model = MODELS[name]().eval()
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    config, variables = hub.from_pretrained(folder)
  codec = config.codec()
  num_samples = round(SECONDS * config.sample_rate) // config.hop_length * config.hop_length
  wave_BT = np.random.default_rng(0).uniform(-0.5, 0.5, (1, num_samples)).astype(np.float32)
  encode = jax.jit(codec.encode, static_argnums=2)
  decode = jax.jit(codec.decode)
  codes_BFQ = encode(variables, wave_BT, num_quantizers)
  tensor = torch.tensor(wave_BT)[:, None]
  codes = torch.tensor(np.asarray(codes_BFQ)).swapaxes(1, 2)
  theirs = {
    'dac': (
      lambda: model.encode(tensor, n_quantizers=num_quantizers),
      lambda: model.decode(audio_codes=codes),
    ),
    'encodec': (
      lambda: model.encode(tensor, bandwidth=num_quantizers * 0.75),
      lambda: model.decode(codes[None], [None]),
    ),
    'mimi': (
      lambda: model.encode(tensor, num_quantizers=num_quantizers),
      lambda: model.decode(codes),
    ),
  }[name]
  ours = (
    lambda: encode(variables, wave_BT, num_quantizers).block_until_ready(),
    lambda: decode(variables, codes_BFQ).block_until_ready(),
  )
  with torch.no_grad():
    for what, our, their in zip(('encode', 'decode'), ours, theirs):
      mine, other = seconds(our), seconds(their)
      print(
        f'{name} {what} {num_samples / config.sample_rate:.2f} s: {mine:.3f} s, transformers {other:.3f} s, '
        f'{other / mine:.2f} times as fast',
        flush=True,
      )


if __name__ == '__main__':
  torch.set_num_threads(1)
  for name in sys.argv[1:]:
    if name in ('hubert', 'w2v_bert2'):
      measure_features(name)
    elif name in ('clap', 'larger_clap'):
      measure_embeddings(name)
    else:
      measure(name, {'dac': 12, 'encodec': 8, 'mimi': 8}[name])
